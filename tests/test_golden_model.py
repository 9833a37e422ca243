"""The variants `paper` and `released` against numbers of the released code (tests/reference/model_n7_layers1.npz)."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lib.interface import Inputs, Sizes
from model.dtg_lknet import DTGLKNet
from model.released import released_position_encoding
from model.released_weights import from_released, load_released, to_released, to_released_checkpoint
from tests.conftest import dense_graphs, make_network

REFERENCE = Path(__file__).parent / "reference" / "model_n7_layers1.npz"
NAMES = {"paper": "described", "released": "released"}  # of the variants in the file
TOLERANCE = {"front_end": 2e-4}  # float32 noise of the released code; 1e-4 elsewhere


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(REFERENCE, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def released_weights(reference: dict[str, np.ndarray]) -> dict[str, Tensor]:
    prefix = "weights."
    return {n.removeprefix(prefix): torch.from_numpy(a) for n, a in reference.items() if n.startswith(prefix)}


@pytest.fixture(params=NAMES)
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(variant: str, reference: dict[str, np.ndarray]) -> DTGLKNet:
    graphs = dense_graphs(
        ~torch.from_numpy(reference["blocked_similarity"]),
        ~torch.from_numpy(reference["blocked_topology"]),
        torch.from_numpy(reference["laplacian_encoding"]),
    )
    model = make_network(variant, graphs, Sizes(steps_per_hour=12, weeks=0, days=0, hours=12, horizon=12, layers=1))
    assert isinstance(model, DTGLKNet)
    model.load_state_dict(from_released(released_weights(reference), model))  # every weight, for it is strict
    return model


@pytest.fixture
def inputs(reference: dict[str, np.ndarray]) -> Inputs:
    series, values = (torch.from_numpy(reference[name]).squeeze(-1) for name in ("x", "decoder_input"))
    return Inputs(series, values[:, :, 0], torch.zeros(len(series), dtype=torch.int64), teacher=values)


@torch.no_grad()
def test_outputs(model: DTGLKNet, variant: str, inputs: Inputs, reference: dict[str, np.ndarray]) -> None:
    model.eval()
    outputs = {
        "patches": model.front_end.patches(inputs.series),
        "front_end": model.front_end(inputs.series),
        "memory": model.encode(inputs),
        "teacher_forced": model(inputs).unsqueeze(-1),
        "rollout": model(inputs._replace(teacher=None)).unsqueeze(-1),
    }
    for name, output in outputs.items():
        expected = torch.from_numpy(reference[f"{NAMES[variant]}.{name}"])
        assert output.shape == expected.shape
        difference = (output - expected).abs().max().item()
        assert difference < TOLERANCE.get(name, 1e-4), f"{name} differs by {difference}"


def test_training_step(model: DTGLKNet, variant: str, inputs: Inputs, reference: dict[str, np.ndarray]) -> None:
    model.train()
    forecast = model(inputs)
    expected = torch.from_numpy(reference[f"{NAMES[variant]}.train_forward"]).squeeze(-1)
    assert (forecast - expected).abs().max().item() < 1e-4
    loss = torch.nn.functional.l1_loss(forecast, torch.from_numpy(reference["target"]).squeeze(-1))
    assert loss.item() == pytest.approx(float(reference[f"{NAMES[variant]}.train_loss"]), abs=1e-4)

    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norms = {name: gradient.norm().item() for name, gradient in to_released(gradients, model).items()}
    prefix = f"{NAMES[variant]}.grad_norm."
    expected_norms = {n.removeprefix(prefix): float(v) for n, v in reference.items() if n.startswith(prefix)}
    without_gradient = {name for name, norm in expected_norms.items() if norm == -1}
    assert without_gradient == expected_norms.keys() - norms.keys()
    for name, norm in norms.items():
        both_noise = norm < 1e-7 and expected_norms[name] < 1e-7
        assert both_noise or norm == pytest.approx(expected_norms[name], rel=0.01), name


def test_position_encoding_of_the_released_code(reference: dict[str, np.ndarray]) -> None:
    expected = torch.from_numpy(reference["temporal_encoding"])[0, 0]
    torch.testing.assert_close(released_position_encoding(12, 64), expected, atol=1e-6, rtol=0)


def test_released_checkpoint_round_trip(model: DTGLKNet, reference: dict[str, np.ndarray]) -> None:
    weights = released_weights(reference)
    written = to_released_checkpoint(model)
    assert weights.keys() <= written.keys()
    for name, weight in weights.items():
        if not name.endswith("Theta.weight"):  # never read, so not kept
            assert torch.equal(written[name], weight), name
    state, written = deepcopy((model.state_dict(), written))
    for tensor in model.state_dict().values():
        tensor.zero_()
    load_released(model, written)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_released_checkpoint_faults_are_listed(model: DTGLKNet, reference: dict[str, np.ndarray]) -> None:
    weights = released_weights(reference)
    del weights["prediction_generator.bias"]
    weights["prediction_generator.scale"] = torch.ones(1)
    weights["trg_embed.0.weight"] = torch.ones(64, 2)
    with pytest.raises(ValueError, match="trg_embed") as fault:
        from_released(weights, model)
    assert str(fault.value) == (
        "missing prediction_generator.bias; unknown prediction_generator.scale; "
        "trg_embed.0.weight of shape (64, 2), expected (64, 1)"
    )


def test_an_ablation_that_the_released_code_lacks_is_not_loaded_in_part(reference: dict[str, np.ndarray]) -> None:
    mask = torch.ones(7, 7, dtype=torch.bool)
    graphs = dense_graphs(mask, mask, torch.from_numpy(reference["laplacian_encoding"]))
    sizes = Sizes(steps_per_hour=12, weeks=0, days=0, hours=12, horizon=12, layers=1)
    model = make_network("paper", graphs, sizes, time_gate=False)
    with pytest.raises(RuntimeError, match=r"decoder\.0\.gate\.query\.weight"):
        load_released(model, to_released_checkpoint(model))
