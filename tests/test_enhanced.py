"""What the enhanced variant adds, each of which can be left out: the usual, identity, means over graphs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lib.config import load_config
from lib.data import Batch
from lib.experiments import start_experiment
from lib.training import mean_loss
from model.build import build_model, restore_model
from model.enhanced import neighbour_weights
from model.graph_autoregression import GraphAutoregression
from model.sensor_time import SensorTimeTable, SensorTimeWaves
from tests.conftest import tiny_series, write_dataset

DAY = 48
WEEK = 7 * DAY
HOUR = DAY // 24
SENSORS, HORIZON = 5, 3
SIZES = {"input_steps": 12, "horizon": HORIZON, "patch_len": 4, "channels": 8, "layers": 1, "heads": 2}
ARGUMENTS = {
    "steps_per_day": DAY,
    "large_kernels": (5,),
    "dropout": 0.0,
    "autoregression_lags": 2,
    "past_days": 2,
    "harmonics": 6,
    **SIZES,
}
OFF: tuple[dict[str, bool | int], ...] = (
    {"deviation": False},
    {"autoregression_lags": 0},
    {"level": False},
    {"identity": False},
    {"graph_means": False},
    {"past_days": 0},
)
VARIANTS = ("enhanced", "perceptron")


def chain(reach: int) -> Tensor:
    place = torch.arange(SENSORS)
    return (place[:, None] - place).abs() <= reach


def make_model(variant: str = "enhanced", **changes: bool | int) -> nn.Module:
    torch.manual_seed(3)
    graphs = (chain(2), chain(1), torch.randn(SENSORS, 3))
    model = build_model(*graphs, variant=variant, **{**ARGUMENTS, **changes})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    for part in model.modules():
        if isinstance(part, GraphAutoregression):
            part.coefficients.copy_(0.3 * torch.randn(2, SENSORS, SENSORS) * chain(1))
    return model.eval()


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return series, the value before each target step, the step of the week, and what is usual."""
    torch.manual_seed(4)
    series = torch.randn(2, SENSORS, 12)
    values = torch.cat([series[:, :, -1:], torch.randn(2, SENSORS, HORIZON - 1)], dim=-1)
    return series, values, torch.tensor([5, WEEK - 1]), torch.randn(2, SENSORS, HOUR + HORIZON)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_target_is_among_its_inputs(variant: str) -> None:
    model, (series, values, step_of_week, usual) = make_model(variant), inputs()
    forecast = model(series, values, step_of_week, usual)
    assert forecast.shape == (2, SENSORS, HORIZON)
    assert torch.equal(forecast, model.rollout(series, values[:, :, 0], step_of_week, usual))
    assert torch.equal(forecast, model(series, values + 1, step_of_week, usual))


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_with_nothing_learnt_it_forecasts_its_base(variant: str) -> None:
    series, values, step_of_week, usual = inputs()

    def untrained(**changes: bool | int) -> tuple[nn.Module, Tensor]:
        model = make_model(variant, level=False, **changes)
        for parameter in model.decoder.change.prediction.parameters():
            nn.init.zeros_(parameter)
        return model, model(series, values, step_of_week, usual)

    last_value = series[:, :, -1:].expand(-1, -1, HORIZON)
    assert torch.equal(untrained(deviation=False)[1], last_value)
    assert torch.equal(untrained(autoregression_lags=0)[1], usual[:, :, HOUR:])
    model, forecast = untrained()
    expected = model.decoder.autoregression(series[:, :, -HOUR:] - usual[:, :, :HOUR])
    assert torch.equal(forecast, usual[:, :, HOUR:] + expected)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_time_matters_where_there_is_identity(variant: str) -> None:
    series, values, step_of_week, usual = inputs()
    for identity in (True, False):
        model = make_model(variant, identity=identity)
        forecast, later = (model(series, values, step_of_week + steps, usual) for steps in (0, 1))
        next_week = model(series, values, step_of_week + WEEK, usual)
        assert torch.equal(forecast, later) != identity
        assert torch.equal(forecast, next_week)
        if variant == "enhanced":
            memory, later = (model.encode(series, step_of_week + steps) for steps in (0, 1))
            assert torch.equal(memory, later) != identity


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("samples", [1, 2])
def test_it_is_the_mean_of_two_forecasts_that_training_scores_each(variant: str, samples: int) -> None:
    model, (series, values, step_of_week, usual) = make_model(variant), (part[:samples] for part in inputs())
    decoder = model.decoder
    memory = model.encode(series, step_of_week) if variant == "enhanced" else None
    level, deviation = decoder.by_level(series, step_of_week), decoder.by_deviation(series, memory, step_of_week, usual)
    assert torch.equal(model(series, values, step_of_week, usual), (level + deviation) / 2)
    decoder.train()  # without the encoder, whose BatchNorm sees a batch otherwise then
    ways = model(series, values, step_of_week, usual)
    assert torch.equal(ways, torch.stack([level, deviation]))
    alone = make_model(variant, level=False).train()
    assert alone(series, values, step_of_week, usual).shape == deviation.shape


@pytest.mark.parametrize("variant", VARIANTS)
def test_neither_forecast_learns_to_mend_the_other(variant: str) -> None:
    model, (series, values, step_of_week, usual) = make_model(variant).train(), inputs()
    target = torch.randn(2, SENSORS, HORIZON)
    batch = Batch(series, values[:, :, 0], target, target, step_of_week, usual=usual)
    with torch.no_grad():
        model.decoder.level.prediction.bias += 100  # far off, which the gradient of a mean would see

    def gradient() -> Tensor:
        model.zero_grad()
        torch.manual_seed(0)
        mean_loss(model(series, values, step_of_week, usual), batch).backward()
        gradient: Tensor = model.decoder.change.prediction.bias.grad
        return gradient

    far_off = gradient()
    with torch.no_grad():
        model.decoder.level.prediction.bias -= 200
    assert torch.equal(gradient(), far_off)
    assert far_off.abs().max() > 0


def reached(model: nn.Module, sensor: int) -> set[int]:
    """Return the sensors whose last hour enters the forecast of a sensor."""
    series, values, step_of_week, usual = inputs()
    series.requires_grad_()
    model(series, values, step_of_week, usual)[:, sensor].sum().backward()
    assert series.grad is not None
    return set(series.grad[:, :, -HOUR:].abs().sum(dim=(0, 2)).nonzero().flatten().tolist())


def test_sensors_see_each_other_by_means_and_autoregression_alone_in_the_decoder() -> None:
    assert reached(make_model("perceptron", graph_means=False, autoregression_lags=0), 0) == {0}
    # Step by step from neighbour to neighbour, as far as the horizon.
    assert reached(make_model("perceptron", graph_means=False), 0) == set(range(HORIZON + 1))
    assert reached(make_model("perceptron"), 0) == set(range(SENSORS))
    # By attention on the similarity graph, in its one layer.
    assert reached(make_model("enhanced", graph_means=False, autoregression_lags=0), 0) == {0, 1, 2}


@torch.no_grad()
@pytest.mark.parametrize("deviation", [True, False])
@pytest.mark.parametrize("horizon", [1, HOUR, HORIZON])
@pytest.mark.parametrize("days", [0, 1, 3])
def test_it_sees_the_hour_to_forecast_on_past_days_less_its_base(horizon: int, deviation: bool, days: int) -> None:
    series, values, step_of_week, usual = inputs()
    own_alone = {"autoregression_lags": 0, "graph_means": False}
    model = make_model("perceptron", past_days=days, horizon=horizon, deviation=deviation, **own_alone)
    read: list[Tensor] = []
    model.decoder.change.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0]))
    model(series, values[:, :, :horizon], step_of_week, usual[:, :, : HOUR + horizon])
    steps = min(HOUR, horizon)
    base = usual[:, :, HOUR : HOUR + steps] if deviation else series[:, :, -1:]
    past = [series[:, :, day * HOUR : day * HOUR + steps] - base for day in range(days)]
    others = HOUR + (HOUR + horizon if deviation else 0)
    assert torch.equal(read[0][:, :, others:], torch.cat([series[:, :, :0], *past], dim=-1))


def test_past_days_are_the_weeks_and_days_of_the_input(tmp_path: Path) -> None:
    hours, horizon, points_per_hour = 2, 3, 2
    path = write_dataset(
        tmp_path, tiny_series(20), weeks=1, days=2, hours=hours, horizon=horizon, points_per_hour=points_per_hour
    )
    for switch, days in (("on", 3), ("off", 0)):
        config = load_config(path, ["Model.variant=perceptron", f"Model.past_days={switch}"])
        experiment = start_experiment(config, tmp_path / "out", switch, build_model)
        assert experiment.trainer.model.decoder.past_days == days  # type: ignore[union-attr]
    windows = experiment.trainer.windows
    start = experiment.prepared.label_starts["test"][:1]
    series = windows.batch(torch.from_numpy(start)).series  # (1, N, L)
    back = [7 * DAY, 2 * DAY, DAY]
    expected = torch.cat([windows.scaled[start[0] - steps :][:points_per_hour] for steps in back])
    assert torch.equal(series[0, :, : 3 * points_per_hour], expected.T)


def test_a_mean_is_over_the_others_that_a_mask_allows() -> None:
    mask = torch.tensor([[1, 1, 1], [0, 1, 0], [0, 1, 1]], dtype=torch.bool)
    expected = torch.tensor([[0, 0.5, 0.5], [0, 0, 0], [0, 1, 0]])
    assert torch.equal(neighbour_weights(mask), expected)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("off", [{}, *OFF])
def test_every_weight_is_trained_and_restored_without_any_addition(variant: str, off: dict[str, bool | int]) -> None:
    model, (series, values, step_of_week, usual) = make_model(variant, **off).train(), inputs()
    model(series, values, step_of_week, usual).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    restored = restore_model({"variant": variant, **ARGUMENTS, **off}, model.state_dict()).eval()
    with torch.no_grad():
        expected = model.eval()(series, values, step_of_week, usual)
        assert torch.equal(restored(series, values, step_of_week, usual), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_means_follow_the_masks_of_the_weights_that_are_loaded(variant: str) -> None:
    other = build_model(chain(4), chain(4), torch.randn(SENSORS, 3), variant=variant, **ARGUMENTS)
    model = make_model(variant)
    assert not torch.equal(other.decoder.neighbour_weights, model.decoder.neighbour_weights)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.decoder.neighbour_weights, model.decoder.neighbour_weights)


@torch.no_grad()
def test_the_time_of_day_is_smooth_and_repeats() -> None:
    embedding = SensorTimeWaves(sensors=1, steps_per_day=288, channels=4, harmonics=8)
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
        embedding = SensorTimeWaves(sensors=1, steps_per_day=DAY, channels=4, harmonics=harmonics)
        assert torch.linalg.matrix_rank(embedding.waves) == DAY - 1  # any rhythm of a day, but for its mean


@torch.no_grad()
@pytest.mark.parametrize("kind", [partial(SensorTimeWaves, harmonics=8), SensorTimeTable])
def test_sensor_time_and_day_add_up(kind: Callable[..., nn.Module]) -> None:
    midnight, four, next_midnight, next_four = kind(3, DAY, 5)(torch.tensor([0, 4, DAY, DAY + 4]))
    torch.testing.assert_close(next_four - next_midnight, four - midnight)
    torch.testing.assert_close(four[1] - four[0], midnight[1] - midnight[0])
