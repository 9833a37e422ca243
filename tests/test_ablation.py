"""Each switch changes what it says and nothing else; the table compares like with like."""

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import ablation
from lib.config import load_config
from lib.errors import run_script
from lib.experiments import Experiment, model_arguments, start_experiment
from lib.files import load_json
from model.attention import CrossAttention
from model.build import build_model
from model.deformable_patches import RegularPatches
from model.dtg_lknet import DTGLKNet
from tests.conftest import DatasetMaker, tiny_series

pytestmark = pytest.mark.usefixtures("no_figures")


def experiment_with(path: Path, root: Path, name: str) -> Experiment:
    config = load_config(path, ablation.ABLATIONS[name])
    return start_experiment(config, root, name, build_model)


def without_large_kernels(model: DTGLKNet) -> bool:
    return all(block.large is None and block.small is not None for block in model.front_end.blocks)


def without_small_kernels(model: DTGLKNet) -> bool:
    return all(block.small is None and block.large is not None for block in model.front_end.blocks)


def without_laplacian_encoding(model: DTGLKNet) -> bool:
    other = torch.randn_like(model.laplacian_encoding)
    series, values = torch.randn(2, 5, 6), torch.randn(2, 5, 3)
    before = model.eval()(series, values)
    model.laplacian_encoding.copy_(other)
    return torch.equal(model(series, values), before)


CHANGED: dict[str, tuple[set[str], Callable[[DTGLKNet], bool]]] = {
    # the state dict's names that differ from those of the full model, by prefix; and what must hold
    "regular-patches": ({"front_end.patches"}, lambda model: isinstance(model.front_end.patches, RegularPatches)),
    "small-kernels-only": ({f"front_end.blocks.{i}.large" for i in range(6)}, without_large_kernels),
    "large-kernels-only": ({f"front_end.blocks.{i}.small" for i in range(6)}, without_small_kernels),
    "no-similarity-graph": (set(), lambda model: bool(model.similarity_mask.all())),
    "no-topology-graph": (set(), lambda model: bool(model.topology_mask.all())),
    "no-laplacian-encoding": ({"encoder_embedding.node", "decoder_embedding.node"}, without_laplacian_encoding),
    "cross-attention": ({"decoder.0.gate"}, lambda model: isinstance(model.decoder[0].gate, CrossAttention)),
}


@pytest.mark.parametrize("name", CHANGED)
@torch.no_grad()
def test_a_model_switch_changes_its_part_alone(name: str, make_dataset: DatasetMaker, tmp_path: Path) -> None:
    path = make_dataset(tiny_series(sensors=8))
    few = ["Graph.neighbours=2", "Graph.hops=2"]
    path.write_text(path.read_text() + f"\n[Graph]\n{few[0][6:]}\n{few[1][6:]}\n")
    full = experiment_with(path, tmp_path, "full").trainer.model.state_dict()
    changed = experiment_with(path, tmp_path, name).trainer.model
    prefixes, holds = CHANGED[name]
    names = full.keys() ^ changed.state_dict().keys()
    assert {prefix for prefix in prefixes if not any(found.startswith(prefix) for found in names)} == set()
    assert all(found.startswith(tuple(prefixes)) for found in names)
    graphs = ("similarity_mask", "topology_mask")
    different = [graph for graph in graphs if not torch.equal(full[graph], changed.state_dict()[graph])]
    expected = {"no-similarity-graph": ["similarity_mask"], "no-topology-graph": ["topology_mask"]}
    assert different == expected.get(name, [])
    model = (
        changed
        if name != "no-laplacian-encoding"
        else build_model(
            *(torch.zeros(5, 5, dtype=torch.bool).fill_diagonal_(True),) * 2,
            torch.randn(5, 8),
            **changed_arguments(path, name),
        )
    )
    assert holds(model)


def changed_arguments(path: Path, name: str) -> dict:
    return model_arguments(load_config(path, ablation.ABLATIONS[name]))


@pytest.mark.parametrize("name", ["regular-patches", "small-kernels-only", "no-laplacian-encoding", "cross-attention"])
@torch.no_grad()
def test_the_rollout_of_an_ablated_model_equals_decoding_anew(name: str, make_dataset: DatasetMaker) -> None:
    arguments = changed_arguments(make_dataset(), name)
    model = build_model(torch.eye(5).bool(), torch.eye(5).bool(), torch.randn(5, 8), **arguments).eval()
    series, start = torch.randn(2, 5, 6), torch.randn(2, 5)
    values, readings = start.unsqueeze(-1), model.read(model.encode(series))
    for _ in range(3):
        values = torch.cat([start.unsqueeze(-1), model.decode(values, readings)], dim=-1)
    torch.testing.assert_close(model.rollout(series, start), values[:, :, 1:], atol=1e-5, rtol=0)
    model.merge()
    torch.testing.assert_close(model.rollout(series, start), values[:, :, 1:], atol=1e-5, rtol=0)


def test_the_graph_and_training_switches_reach_their_setting(make_dataset: DatasetMaker) -> None:
    path = make_dataset()
    full = load_config(path)
    for name, key, value in [
        ("gaussian-similarity", "similarity", "gaussian"),
        ("released-similarity", "similarity", "released"),
        ("dtw-of-all-days", "dtw_rows", "all"),
    ]:
        changed = load_config(path, ablation.ABLATIONS[name]).graph
        differing = [field for field in vars(changed) if getattr(changed, field) != getattr(full.graph, field)]
        assert differing == [key]
        assert getattr(changed, key) == value
    assert load_config(path, ablation.ABLATIONS["no-fine-tuning"]).training.fine_tune_epochs == 0


def test_one_word_selects_all_rules_of_the_released_code(make_dataset: DatasetMaker) -> None:
    graph = load_config(make_dataset(), ["Model.variant=released"]).graph
    assert (graph.similarity, graph.laplacian, graph.dtw_rows) == ("released", "released", "all")
    kept = load_config(make_dataset(name="TWO"), ["Model.variant=released", "Graph.similarity=nearest"]).graph
    assert (kept.similarity, kept.laplacian, kept.dtw_rows) == ("nearest", "released", "all")


def test_the_table_is_made_and_made_again_without_training(
    make_dataset: DatasetMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_dataset(fine_tune_epochs=0)
    command = ["ablation.py", "--config", config, "--seeds", 2, "--only", "full", "regular-patches"]
    command += ["--output", tmp_path / "runs", "--results", tmp_path / "results", "--set", "Training.max_batches=2"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in command])
    run_script(ablation.main)
    table = tmp_path / "results" / "TINY"
    first, second = csv.DictReader((table / "ablation.csv").read_text().splitlines())
    assert (first["name"], first["changed"], first["seeds"], first["mae_difference"]) == ("full", "nothing", "2", "")
    maes = [
        load_json(path)["test"]["overall"]["mae"] for path in sorted(tmp_path.glob("runs/TINY/*-regular*/metrics.json"))
    ]
    assert float(second["mae"]) == pytest.approx(np.mean(maes), abs=1e-4)
    assert float(second["mae_sd"]) == pytest.approx(np.std(maes, ddof=1), abs=1e-4)
    assert float(second["mae_difference"]) == pytest.approx(float(second["mae"]) - float(first["mae"]), abs=2e-4)
    assert float(second["interval_low"]) <= float(second["mae_difference"]) <= float(second["interval_high"])
    markdown = (table / "ablation.md").read_text()
    assert markdown.startswith("# Ablation on TINY\n\n`python ablation.py --config ")
    assert "| regular-patches | Model.deformable_patches=off |     2 |" in markdown

    capsys.readouterr()
    before = (table / "ablation.csv").read_bytes()
    run_script(ablation.main)
    assert "epoch" not in capsys.readouterr().out
    assert (table / "ablation.csv").read_bytes() == before

    monkeypatch.setattr(sys, "argv", [*sys.argv, "--set", "Training.learning_rate=0.1"])
    with pytest.raises(SystemExit) as ended:
        run_script(ablation.main)
    assert ended.value.code == 2
    assert "found other settings than asked for" in capsys.readouterr().err
