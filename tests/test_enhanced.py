"""What the enhanced variant adds: it knows sensor and time, decodes at once, and each addition can be left out."""

import pytest
import torch
from torch import Tensor, nn

from model.build import build_model, restore_model
from model.enhanced import SensorTimeEmbedding
from model.stid import SensorTimeTable

DAY = 24
WEEK = 7 * DAY


def make_model(sensors: int = 4, horizon: int = 3, **switches: bool) -> nn.Module:
    torch.manual_seed(3)
    graphs = (*[torch.ones(sensors, sensors, dtype=torch.bool)] * 2, torch.randn(sensors, 3))
    sizes = {"input_steps": 12, "horizon": horizon, "patch_len": 4, "channels": 8, "layers": 1, "heads": 2}
    model = build_model(*graphs, variant="enhanced", steps_per_day=DAY, large_kernels=(5,), **sizes, **switches)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def inputs(sensors: int = 4, horizon: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(4)
    return torch.randn(2, sensors, 12), torch.randn(2, sensors, horizon), torch.tensor([5, WEEK - 1])


@torch.no_grad()
def test_it_forecasts_from_the_start_value_alone() -> None:
    model, (series, values, step_of_week) = make_model(), inputs()
    forecast = model(series, values, step_of_week)
    assert torch.equal(forecast, model.rollout(series, values[:, :, 0], step_of_week))
    assert torch.equal(forecast, model(series, torch.cat([values[:, :, :1], values[:, :, 1:] + 1], -1), step_of_week))
    assert not torch.equal(forecast, model(series, values + 1, step_of_week))


@torch.no_grad()
def test_time_matters_where_there_is_identity() -> None:
    series, values, step_of_week = inputs()
    for identity in (True, False):
        model = make_model(identity=identity)
        forecast, later = (model(series, values, step_of_week + hours) for hours in (0, 1))
        next_week = model(series, values, step_of_week + WEEK)
        assert torch.equal(forecast, later) != identity
        assert torch.equal(forecast, next_week)


@torch.no_grad()
def test_the_residual_adds_the_start_value() -> None:
    series, values, step_of_week = inputs()
    change, whole = (make_model(residual=residual)(series, values, step_of_week) for residual in (False, True))
    torch.testing.assert_close(whole, change + values[:, :, :1])


@torch.no_grad()
def test_the_readout_reaches_every_token_from_every_step() -> None:
    model, (series, values, step_of_week) = make_model(), inputs()
    nn.init.zeros_(model.prediction.weight)  # what is left is the readout
    memory = model.encode(series, step_of_week)
    expected = memory.flatten(2) @ model.readout.weight.T + model.readout.bias + model.prediction.bias
    torch.testing.assert_close(model(series, values, step_of_week), expected + values[:, :, :1])


@pytest.mark.parametrize("switch", ["identity", "readout", "residual"])
def test_every_weight_is_trained_and_restored_without_any_addition(switch: str) -> None:
    model, (series, values, step_of_week) = make_model(**{switch: False}).train(), inputs()
    model(series, values, step_of_week).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    arguments = {
        "variant": "enhanced", "steps_per_day": DAY, "large_kernels": (5,), "input_steps": 12, "horizon": 3,
        "patch_len": 4, "channels": 8, "layers": 1, "heads": 2, switch: False,
    }  # fmt: skip
    restored = restore_model(arguments, model.state_dict()).eval()
    with torch.no_grad():
        expected = model.eval()(series, values, step_of_week)
        assert torch.equal(restored(series, values, step_of_week), expected)


@torch.no_grad()
def test_the_time_of_day_is_smooth_and_repeats() -> None:
    embedding = SensorTimeEmbedding(sensors=1, steps_per_day=288, channels=4, harmonics=8)
    steps = torch.arange(2 * 288)
    wave = embedding.time_of_day(embedding.waves[steps % 288])  # (2 days, C)
    torch.testing.assert_close(wave[:288], wave[288:])
    # Eight harmonics and a mean: all else of the day's spectrum is empty.
    spectrum = torch.fft.rfft(wave[:288], dim=0).abs()
    assert spectrum[9:].max() < 1e-3 * spectrum.max()
    assert spectrum[1:9].min() > 0


@torch.no_grad()
@pytest.mark.parametrize("kind", [SensorTimeEmbedding, SensorTimeTable])
def test_sensor_time_and_day_add_up(kind: type[nn.Module]) -> None:
    embedding = kind(3, DAY, 5)
    at = (
        embedding(torch.tensor([[0], [4], [DAY], [DAY + 4]]))
        if kind is SensorTimeEmbedding
        else embedding(torch.tensor([0, 4, DAY, DAY + 4]))
    )
    midnight, four, next_midnight, next_four = at.reshape(4, 3, 5)
    torch.testing.assert_close(next_four - next_midnight, four - midnight)
    torch.testing.assert_close(four[1] - four[0], midnight[1] - midnight[0])
