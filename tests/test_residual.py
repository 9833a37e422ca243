"""The parts of the residual variants, each of which can be left out: profile, autoregression, direct head, means."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lib.data.windows import Batch
from lib.interface import Graphs, Inputs, Neighbours, Sizes
from lib.losses import mean_loss
from lib.runs import start_run
from model.embeddings import HarmonicEmbedding, TableEmbedding
from model.neighbour_means import MeanOfAll, MeanOfNeighbours
from model.residual import RESIDUAL_SIZE, HorizonDecoder, ResidualMLP
from model.sparse_product import SparseProduct
from tests.conftest import dense_graphs, load, make_network, tiny_series, write_dataset

DAY = 48
WEEK = 7 * DAY
HOUR = DAY // 24
SENSORS, HORIZON = 5, 3
SIZES = Sizes(steps_per_hour=HOUR, weeks=1, days=1, hours=4, horizon=HORIZON, channels=8, layers=1, heads=2)
SETTINGS = {"residual_mlp": {"harmonics": 6}, "residual": {"harmonics": 6, "patch_len": 4, "large_kernels": (5,)}}
VARIANTS = tuple(SETTINGS)
PARTS = ("residual", "autoregression", "direct_head", "identity", "graph_means", "past_days")


def chain(reach: int) -> Tensor:
    place = torch.arange(SENSORS)
    return (place[:, None] - place).abs() <= reach


def make_graphs() -> Graphs:
    torch.manual_seed(2)
    coefficients = 0.3 * torch.randn(2, SENSORS, SENSORS) * chain(1)
    return dense_graphs(chain(2), chain(1), torch.randn(SENSORS, 3), coefficients)


def make_model(variant: str = "residual", sizes: Sizes = SIZES, **changes: bool | float) -> nn.Module:
    torch.manual_seed(3)
    model = make_network(variant, make_graphs(), sizes, **SETTINGS[variant], **changes)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def decoder_of(model: nn.Module) -> HorizonDecoder:
    decoder: HorizonDecoder = model.members[0] if isinstance(model, ResidualMLP) else model.decoder  # type: ignore[assignment,index]
    return decoder


def make_inputs(samples: int = 2) -> Inputs:
    torch.manual_seed(4)
    series = torch.randn(2, SENSORS, SIZES.input_steps)
    profile = torch.randn(2, SENSORS, SIZES.hours * HOUR + HORIZON)
    inputs = Inputs(series, series[:, :, -1], torch.tensor([5, WEEK - 1]), profile)
    return Inputs(*(None if part is None else part[:samples] for part in inputs))


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_target_is_among_its_inputs(variant: str) -> None:
    model, inputs = make_model(variant), make_inputs()
    forecast = model(inputs)
    assert forecast.shape == (2, SENSORS, HORIZON)
    teacher = torch.cat([inputs.start.unsqueeze(-1), torch.randn(2, SENSORS, HORIZON - 1)], dim=-1)
    assert torch.equal(forecast, model(inputs._replace(teacher=teacher)))
    assert torch.equal(forecast, model(inputs._replace(teacher=teacher + 1)))


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_with_nothing_learnt_it_forecasts_its_base(variant: str) -> None:
    inputs = make_inputs()
    hour = inputs.series[:, :, -HOUR:]
    assert inputs.profile is not None
    profile = inputs.profile[:, :, -HOUR - HORIZON :]

    def untrained(**changes: bool) -> tuple[nn.Module, Tensor]:
        model = make_model(variant, direct_head=False, **changes)
        for parameter in decoder_of(model).residual_head.prediction.parameters():
            nn.init.zeros_(parameter)
        return model, model(inputs)

    assert torch.equal(untrained(residual=False)[1], hour[:, :, -1:].expand(-1, -1, HORIZON))
    assert torch.equal(untrained(autoregression=False)[1], profile[:, :, HOUR:])
    model, forecast = untrained()
    expected = decoder_of(model).autoregression(hour - profile[:, :, :HOUR])
    assert expected.abs().min() > 0
    assert torch.equal(forecast, profile[:, :, HOUR:] + expected)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_time_matters_where_there_is_identity(variant: str) -> None:
    inputs = make_inputs()
    now, later, next_week = (inputs._replace(step_of_week=inputs.step_of_week + steps) for steps in (0, 1, WEEK))
    for identity in (True, False):
        model = make_model(variant, identity=identity)
        assert torch.equal(model(now), model(later)) != identity
        assert torch.equal(model(now), model(next_week))
        if variant == "residual":
            assert torch.equal(model.encode(now), model.encode(later)) != identity


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("samples", "share"), [(1, 0.5), (2, 0.25)])
def test_it_is_a_mean_of_two_heads_each_with_its_own_loss_in_training(variant: str, samples: int, share: float) -> None:
    model, inputs = make_model(variant, direct_share=share), make_inputs(samples)
    decoder = decoder_of(model)
    direct = decoder.direct_head(inputs.series[:, :, -HOUR:], inputs.step_of_week)
    residual = decoder.by_residual(inputs, model.encode(inputs) if variant == "residual" else None)
    assert torch.equal(model(inputs), share * direct + (1 - share) * residual)
    decoder.train()  # without the encoder, whose BatchNorm sees a batch otherwise then
    assert torch.equal(model(inputs), torch.stack([direct, residual]))
    one_head = make_model(variant, direct_head=False).train()
    assert one_head(inputs).shape == residual.shape


@pytest.mark.parametrize("variant", VARIANTS)
def test_neither_head_learns_to_compensate_for_the_other(variant: str) -> None:
    model, inputs = make_model(variant).train(), make_inputs()
    target = torch.randn(2, SENSORS, HORIZON)
    batch = Batch(inputs, target, flow=target)
    with torch.no_grad():
        decoder_of(model).direct_head.prediction.bias += 100  # far off, which the gradient of a mean would see

    def gradient() -> Tensor:
        model.zero_grad()
        torch.manual_seed(0)
        mean_loss("mae", model(batch.with_teacher), batch.target, batch.observed).backward()
        gradient: Tensor = decoder_of(model).residual_head.prediction.bias.grad
        return gradient

    far_off = gradient()
    with torch.no_grad():
        decoder_of(model).direct_head.prediction.bias -= 200
    assert torch.equal(gradient(), far_off)
    assert far_off.abs().max() > 0


def reached(model: nn.Module, sensor: int) -> set[int]:
    """Return the sensors whose last hour enters the forecast of a sensor."""
    inputs = make_inputs()
    inputs.series.requires_grad_()
    model(inputs)[:, sensor].sum().backward()
    assert inputs.series.grad is not None
    return set(inputs.series.grad[:, :, -HOUR:].abs().sum(dim=(0, 2)).nonzero().flatten().tolist())


def test_sensors_see_each_other_by_means_and_autoregression_alone_in_the_decoder() -> None:
    assert reached(make_model("residual_mlp", graph_means=False, autoregression=False), 0) == {0}
    # Step by step from neighbour to neighbour, as far as the horizon.
    assert reached(make_model("residual_mlp", graph_means=False), 0) == set(range(HORIZON + 1))
    assert reached(make_model("residual_mlp"), 0) == set(range(SENSORS))
    # By attention on the similarity graph, in its one layer.
    assert reached(make_model("residual", graph_means=False, autoregression=False), 0) == {0, 1, 2}


@torch.no_grad()
@pytest.mark.parametrize("residual", [True, False])
def test_the_encoder_reads_the_residual_of_the_last_hours(residual: bool) -> None:
    model, inputs = make_model("residual", residual=residual), make_inputs()
    assert inputs.profile is not None
    first = SIZES.input_steps - SIZES.hours * HOUR
    assert model.first_step == first
    read = model.encoder_series(inputs)  # (B, N, D h)
    flow = inputs.series[:, :, first:]
    assert torch.equal(read, (flow - inputs.profile[:, :, :-HORIZON]) / RESIDUAL_SIZE if residual else flow)
    # What lies before the last hours does not reach the memory.
    earlier = inputs._replace(series=torch.cat([inputs.series[:, :, :first] + 1, flow], dim=-1))
    assert torch.equal(model.encode(inputs), model.encode(earlier))
    assert not torch.equal(model.encode(inputs), model.encode(inputs._replace(series=inputs.series + 1)))
    positions = model.patch_positions(inputs)  # (B, N, M, patch_len), in steps of the whole input
    assert positions.min() >= first
    assert positions.max() <= SIZES.input_steps - 1


@torch.no_grad()
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("horizon", [1, HOUR, HORIZON])
@pytest.mark.parametrize("days", [0, 1, 3])
def test_it_sees_the_hour_to_forecast_on_past_days_less_its_base(horizon: int, residual: bool, days: int) -> None:
    sizes = replace(SIZES, weeks=0, days=days, hours=6 - days, horizon=horizon)
    inputs = make_inputs()
    series = inputs.series
    assert inputs.profile is not None
    profile = inputs.profile[:, :, : HOUR + horizon]
    model = make_model("residual_mlp", sizes, residual=residual, autoregression=False, graph_means=False)
    read: list[Tensor] = []
    decoder_of(model).residual_head.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0]))
    model(inputs._replace(profile=profile))
    steps = min(HOUR, horizon)
    base = profile[:, :, HOUR : HOUR + steps] if residual else series[:, :, -1:]
    past = [series[:, :, day * HOUR : day * HOUR + steps] - base for day in range(days)]
    others = 2 * HOUR + (horizon if residual else 0)
    assert torch.equal(read[0][:, :, others:], torch.cat([series[:, :, :0], *past], dim=-1) / RESIDUAL_SIZE)


def test_past_days_are_the_weeks_and_days_of_the_input(tmp_path: Path) -> None:
    hours, horizon, points_per_hour = 2, 3, 2
    path = write_dataset(
        tmp_path, tiny_series(20), weeks=1, days=2, hours=hours, horizon=horizon, points_per_hour=points_per_hour
    )
    for switch, days in (("on", 3), ("off", 0)):
        config = load(path, ["Model.variant=residual_mlp", f"Model.past_days={switch}"])
        run = start_run(config, tmp_path / "out", switch)
        assert decoder_of(run.trainer.model).past_days == days
    windows = run.trainer.windows
    start = run.prepared.label_starts["test"][:1]
    series = windows.batch(torch.from_numpy(start)).inputs.series  # (1, N, L)
    back = [7 * DAY, 2 * DAY, DAY]
    expected = torch.cat([windows.scaled[start[0] - steps :][:points_per_hour] for steps in back])
    assert torch.equal(series[0, :, : 3 * points_per_hour], expected.T)


def test_a_mean_is_over_the_others_that_a_mask_allows() -> None:
    mask = torch.tensor([[1, 1, 1], [0, 1, 0], [0, 1, 1]], dtype=torch.bool)
    expected = torch.tensor([[0, 0.5, 0.5], [0, 0, 0], [0, 1, 0]])
    assert torch.equal(MeanOfNeighbours(Neighbours.of(mask))(torch.eye(3)), expected)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("off", [None, *PARTS])
def test_every_weight_is_trained_and_restored_without_any_part(variant: str, off: str | None) -> None:
    changes = {} if off is None else {off: False}
    model, inputs = make_model(variant, **changes).train(), make_inputs()
    model(inputs).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    restored = make_network(variant, make_graphs(), SIZES, **SETTINGS[variant], **changes)
    restored.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(restored.eval()(inputs), model.eval()(inputs))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_means_are_over_all_similar_and_near_sensors(variant: str) -> None:
    means, values = decoder_of(make_model(variant)).means, torch.randn(2, SENSORS, HOUR)
    assert means is not None
    found = means(values)  # (B, N, 3, h)
    for kind, mask in enumerate((chain(SENSORS), chain(2), chain(1))):
        others = mask & ~torch.eye(SENSORS, dtype=torch.bool)
        expected = torch.stack([values[:, others[sensor]].mean(dim=1) for sensor in range(SENSORS)], dim=1)
        torch.testing.assert_close(found[:, :, kind], expected)
    torch.testing.assert_close(MeanOfAll()(values[0]), found[0, :, 0])
    assert decoder_of(make_model(variant, graph_means=False)).means is None


def test_the_sparse_product_is_the_dense_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a whole network: forecasts and gradients; and of a matrix whose rows may be empty."""
    inputs, results = make_inputs(), []
    assert inputs.profile is not None
    inputs = inputs._replace(
        series=inputs.series.double(), start=inputs.start.double(), profile=inputs.profile.double()
    )
    inputs.series.requires_grad_()
    for rows in (10, 0):
        monkeypatch.setattr("model.sparse_product.DENSE_ROWS", rows)
        monkeypatch.setattr("model.neighbour_means.DENSE_ROWS", rows)
        monkeypatch.setattr("model.sparse_product.DENSE_SHARE", 1.0)
        model = make_model("residual_mlp").double()
        assert (decoder_of(model).means.means[2].product.matrix is None) == (rows == 0)  # type: ignore[union-attr,index]
        forecast = model(inputs)
        results.append([forecast, *torch.autograd.grad(forecast.square().sum(), inputs.series)])
    for dense, sparse in zip(*results, strict=True):
        torch.testing.assert_close(sparse, dense, atol=1e-5, rtol=1e-5)
    mask = torch.rand(40, 40) < 0.05
    mask[[0, 7, 39]] = False
    lists, values, x = Neighbours.of(mask), torch.randn(2, int(mask.sum())), torch.randn(80, 3)
    sparse_product = SparseProduct(lists, values)
    assert sparse_product.matrix is None
    expected = sum(lists.dense(values)[k] @ x[40 * k : 40 * (k + 1)] for k in range(2))
    torch.testing.assert_close(sparse_product(x), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_settings_say_whether_there_is_an_autoregression(variant: str) -> None:
    # The graphs of a checkpoint to start from may have coefficients that the settings do not ask for, or lack them.
    assert decoder_of(make_model(variant)).autoregression is not None
    for off in ("autoregression", "residual"):
        assert decoder_of(make_model(variant, **{off: False})).autoregression is None
    with pytest.raises(ValueError, match="without coefficients"):
        make_network(variant, make_graphs()._replace(autoregression=None), SIZES)


@torch.no_grad()
def test_the_time_of_day_is_smooth_and_repeats() -> None:
    embedding = HarmonicEmbedding(sensors=1, steps_per_day=288, channels=4, harmonics=8)
    steps = torch.arange(2 * 288)
    wave = embedding.time_of_day(embedding.waves[steps % 288])  # (2 days, C)
    torch.testing.assert_close(wave[:288], wave[288:])
    # Eight harmonics and a mean: all else of the day's spectrum is empty.
    spectrum = torch.fft.rfft(wave[:288], dim=0).abs()
    assert spectrum[9:].max() < 1e-3 * spectrum.max()
    assert spectrum[1:9].min() > 0


@torch.no_grad()
def test_all_harmonics_tell_every_step_of_a_day_from_all_others() -> None:
    for harmonics in (DAY // 2, DAY):  # there are no more than half of the steps
        embedding = HarmonicEmbedding(sensors=1, steps_per_day=DAY, channels=4, harmonics=harmonics)
        assert torch.linalg.matrix_rank(embedding.waves) == DAY - 1  # any rhythm of a day, but for its mean


@torch.no_grad()
@pytest.mark.parametrize("kind", [partial(HarmonicEmbedding, harmonics=8), TableEmbedding])
def test_sensor_time_and_day_add_up(kind: Callable[..., nn.Module]) -> None:
    midnight, four, next_midnight, next_four = kind(3, DAY, 5)(torch.tensor([0, 4, DAY, DAY + 4]))
    torch.testing.assert_close(next_four - next_midnight, four - midnight)
    torch.testing.assert_close(four[1] - four[0], midnight[1] - midnight[0])


def test_an_ensemble_is_the_mean_of_its_members_and_trains_each() -> None:
    model, given = make_model("residual_mlp", members=3), make_inputs()
    members = [member(given) for member in model.members]
    torch.testing.assert_close(model(given), torch.stack(members).mean(dim=0))
    assert not torch.equal(members[0], members[1])
    model.train()
    forecasts = model(given)
    assert forecasts.shape == (6, *members[0].shape)
    forecasts[0].sum().backward()  # of the first member's direct head alone
    touched = {
        name.split(".")[1]
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    assert touched == {"0"}
