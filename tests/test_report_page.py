"""report.html holds a whole run, loads nothing, runs no text that came from data, and draws the sensor picked."""

import json
import shutil
import subprocess
from base64 import b64decode
from dataclasses import replace
from datetime import datetime, timedelta
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lib.data.positions import plane
from lib.data.preparing import calendar_for, prepared_of
from lib.data.profile import historical_profile
from lib.errors import InputError
from lib.files import save_json
from lib.numbers import number_text
from lib.report.page import forecasts_embedded, make_report, map_layers, page_of
from lib.report.results import Results, load_results
from lib.run_folder import RunFolder
from model.variants import VARIANTS
from tests.conftest import Call, DatasetMaker
from tests.test_figures import write_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
POISON = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"


class Elements(HTMLParser):
    """All elements of a page with their attributes, and the texts of its scripts and of its body."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside if tag != self.inside else ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = write_run(tmp_path_factory.mktemp("page"))
    save_json(folder.environment, {"command": ["run.py", "--x"], "packages": {"torch": "2"}, "seed": 0})
    make_report(folder, folder.read_config(VARIANTS))
    return folder


@pytest.fixture
def results(run: RunFolder) -> Results:
    return load_results(run, run.read_config(VARIANTS))


@pytest.fixture
def page(run: RunFolder) -> str:
    return run.page.read_text()


def test_the_page_needs_nothing_else(page: str) -> None:
    parsed = Elements(page)
    for tag, attributes in parsed.elements:
        for name in {"src", "href", "data", "action", "srcset"} & set(attributes):
            assert str(attributes[name]).startswith(("data:image/png;base64,", "#")), tag
        assert not {"style", "onclick", "onload", "onerror"} & set(attributes), tag
    assert "url(" not in page
    assert "@import" not in page
    policy = next(item["content"] for item in parsed.named("meta") if "http-equiv" in item)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; ")


def test_the_page_can_be_read_by_all(page: str, run: RunFolder) -> None:
    parsed = Elements(page)
    assert parsed.named("html") == [{"lang": "en"}]
    assert "<title>DTG-LKNet (paper) on TINY: run</title>" in page
    identifiers = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert {str(link["href"])[1:] for link in parsed.named("a")} <= set(identifiers)
    images = parsed.named("img")
    assert len(images) == len(list(run.figures.glob("*.png")))
    assert all(image["alt"] for image in images)
    assert parsed.named("noscript")
    assert "hidden" in next(item for item in parsed.named("div") if item.get("id") == "explorer")
    controls = [*parsed.named("select"), *parsed.named("input")]
    assert page.count("<label>") == len(controls) == 1 + 3 + 1 + 1  # sensor, series, interval, time


def test_settings_environment_and_results_are_on_the_page(page: str, results: Results) -> None:
    text = Elements(page).text
    assert results.config.to_ini() in text
    assert "run.py --x" in text
    for scores in (results.metrics["test"]["overall"], *results.metrics["test"]["by_horizon"]):
        for value in scores.values():
            assert f"{value:.3f}" in text
    for entry in results.history:
        assert number_text(entry["train_loss"]) in text


def test_text_from_data_stays_text(results: Results, placed: Results, run: RunFolder) -> None:
    poisoned = replace(
        results,
        folder=RunFolder(run.path.parent / "named <b> & 'x'"),
        config=replace(results.config, data=replace(results.config.data, adj_filename=Path(f"/{POISON}"))),
        metrics={
            **results.metrics,
            "dataset": POISON,
            "variant": POISON,
            "label": POISON,
            "baselines": {POISON: results.metrics["test"]},
        },
        history=[{**entry, "stage": POISON} for entry in results.history],
        checkpoint={**results.checkpoint, "sensor_ids": [POISON] * 5},
    )
    poisoned.folder.path.mkdir(exist_ok=True)
    save_json(poisoned.folder.environment, {POISON: POISON, "packages": {POISON: POISON}, "list": [POISON]})
    figure = poisoned.folder.figures / "<i>.png"
    figure.parent.mkdir(exist_ok=True)
    figure.write_bytes((run.figures / "kernels.png").read_bytes())
    poisoned = replace(poisoned, checkpoint={**poisoned.checkpoint, "map": placed.checkpoint["map"]})
    page = page_of(poisoned, [figure], 1, 0)
    parsed = Elements(page)
    harmless = Elements(page_of(placed, [run.figures / "kernels.png"], 1, 0))
    kinds = [{tag for tag, _ in of.elements} for of in (parsed, harmless)]
    assert kinds[0] == kinds[1]
    assert len(parsed.scripts) == len(harmless.scripts) == 3
    assert len(parsed.named("img")) == 1
    assert POISON in json.loads(parsed.scripts[1])["names"][0]
    assert POISON not in page
    assert page.count(escape(POISON)) > 10


def test_a_figure_that_is_no_png_is_left_out(
    results: Results, run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "erf_x.png"
    damaged.write_bytes(b"")
    parsed = Elements(page_of(results, [damaged, run.figures / "kernels.png"], 1, 0))
    assert len(parsed.named("img")) == 1
    assert capsys.readouterr().out == "figure erf_x left out: found a damaged file, expected PNG\n"


def test_no_text_ends_the_embedded_data(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.report.results.flow_unit", lambda _: "</script><script>alert(1)//")
    parsed = Elements(page_of(results, [], 1, 0))
    assert len(parsed.scripts) == 2
    assert json.loads(parsed.scripts[0])["unit"] == "flow (</script><script>alert(1)//)"


def unpacked(data: dict[str, Any]) -> list[list[list[int | None]]]:
    """Return the numbers of each sensor and series as the page's script reads them."""
    found = []
    for text in data["packed"]:
        codes, code, shift = [], 0, 0
        for byte in b64decode(text):
            code, shift = code + ((byte & 127) << shift), shift + 7
            if byte < 128:
                codes.append(code)
                code, shift = 0, 0
        series: list[list[int | None]] = []
        for length in data["lengths"]:
            steps = [code // 2 if code % 2 else -(code // 2) for code in codes[:length]]
            sums = np.cumsum(steps).tolist()
            series.append([total if code else None for code, total in zip(codes, sums, strict=False)][:length])
            codes = codes[length:]
        assert not codes
        found.append(series)
    return found


def test_the_embedded_forecasts_are_the_saved_ones(page: str, results: Results) -> None:
    data = json.loads(Elements(page).scripts[0])
    assert [entry["name"] for entry in data["series"]] == ["truth", "30 min ahead", "180 min ahead"]
    assert data["sensors"] == [0, 1, 2, 3, 4]
    width = results.half_width(0.8, slice(0, data["steps"]))
    assert width is not None
    tolerance = 0.5 / data["scale"] + 1e-4
    assert tolerance < 0.06
    samples = data["steps"]
    assert samples == min(2 * 48, len(results.label_starts))
    for sensor, values in enumerate(unpacked(data)):
        truth = np.array(values[0]) / data["scale"]
        np.testing.assert_allclose(truth, results.target[:samples, sensor, 0], atol=tolerance)
        for series, horizon in ((1, 1), (2, 6)):
            ahead, offset = np.array(values[series]) / data["scale"], data["series"][series]["offset"]
            of_samples = slice(0, len(ahead))
            band = np.array(values[data["series"][series]["band"]]) / data["scale"]
            np.testing.assert_allclose(band, width[of_samples, sensor, horizon - 1], atol=tolerance)
            np.testing.assert_allclose(ahead, results.forecast[of_samples, sensor, horizon - 1], atol=tolerance)
            # It is drawn against the truth of the step that it is of.
            np.testing.assert_allclose(truth[offset:], results.target[of_samples, sensor, horizon - 1], atol=tolerance)
    minutes = np.datetime64("2018-03-05T06:30") + np.timedelta64(30 * int(results.label_starts[0]), "m")
    assert np.datetime64(int(data["first_minute"]), "m") == minutes


@pytest.mark.parametrize(("values", "sensors"), [(10**6, [0, 1, 2, 3, 4]), (96 * 5 * 3, [0, 2, 4]), (1, [0])])
def test_a_page_of_many_sensors_stays_small(
    values: int, sensors: list[int], results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib.report.page.VALUES_EMBEDDED", values)
    results = replace(results, forecast=np.tile(results.forecast, (2, 1, 1)), target=np.tile(results.target, (2, 1, 1)))
    results = replace(results, label_starts=np.arange(len(results.target)))
    content = forecasts_embedded(results, 2, 0)
    assert content["sensors"] == sensors
    assert len(content["values"]) == len(sensors)
    np.testing.assert_allclose(
        np.array(content["values"][-1][0]) / content["scale"], results.target[:96, sensors[-1], 0], atol=0.06
    )
    said = f"{len(sensors)} of 5 sensors" in Elements(page_of(results, [], 2, 0)).text
    assert said == (len(sensors) < 5)


@pytest.mark.parametrize("factor", [0.0, 1e-3, 1.0, 1e5])
def test_four_digits_are_kept_whatever_the_unit(factor: float, results: Results) -> None:
    scaled = replace(results, forecast=factor * results.forecast, target=factor * results.target, intervals=None)
    content = forecasts_embedded(scaled, 1, 0)
    whole = np.concatenate([np.ravel(series) for values in content["values"] for series in values])
    assert np.abs(whole).max() <= 9999
    truth = np.array([values[0] for values in content["values"]]).T / content["scale"]
    np.testing.assert_allclose(truth, scaled.target[: len(truth), :, 0], atol=1e-3 * factor * results.target.max())


def test_the_page_is_rebuilt_identically_from_the_files(
    run: RunFolder, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    run.page.unlink()
    shutil.rmtree(run.figures)
    assert call("report.py", "--run", run) == 0
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    assert str(run.page) in capsys.readouterr().out


def test_a_run_killed_before_its_page_gets_it_from_the_same_command(
    make_dataset: DatasetMaker,
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = make_dataset(fine_tune_epochs=0, extra="max_batches = 1\n")
    command = ("run.py", "--config", config, "--output", tmp_path / "out", "--seed", 1, 2)
    first, second = (RunFolder(tmp_path / "out" / "TINY" / f"paper-seed{seed}") for seed in (1, 2))
    half_written = first.figures / "kernels.png.4711.partial"

    def killed_while_drawing(*_: object) -> None:
        half_written.parent.mkdir()
        half_written.write_bytes(b"half")
        raise SystemExit(9)

    with monkeypatch.context() as patched:
        patched.setattr("lib.report.page.make_figures", killed_while_drawing)
        assert call(*command) == 9
    assert first.is_finished()
    assert not first.page.exists()
    assert not second.exists()
    before = first.metrics.read_bytes()
    capsys.readouterr()

    assert call(*command) == 0
    assert capsys.readouterr().out.count("epoch   1") == 1  # of the second seed
    for folder in (first, second):
        assert Elements(folder.page.read_text()).named("img")
    assert first.metrics.read_bytes() == before
    assert not list(first.path.rglob("*.partial"))


def test_the_script_tells_what_is_wrong(run: RunFolder, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (("--run", run.path.with_name("none")), "none: found no run here (settings.ini is missing)"),
        (("--run", run, "--sensors", "7"), "--sensors: found 7, expected positions 0..4"),
        (("--run", run, "--first-day", "30"), "--first-day: found 30, expected 0..1"),
    ):
        assert call("report.py", *arguments) == 2
        shown = capsys.readouterr().err
        assert message in shown
        assert shown.count("\n") == 1
    with pytest.raises(InputError, match=r"environment\.json: no such file"):
        page_of(replace(load_results(run, run.read_config(VARIANTS)), folder=RunFolder(run.figures)), [], 1, 0)


@pytest.fixture
def placed(results: Results) -> Results:
    """Give the run with positions of its sensors, but for the last."""
    positions = torch.tensor([[34.0, -118.0], [34.1, -118.1], [34.0, -118.2], [34.2, -118.0], [np.nan, np.nan]])
    links = torch.tensor([[0, 1], [1, 2], [3, 4]])
    return replace(results, checkpoint={**results.checkpoint, "map": {"positions": positions, "links": links}})


def test_the_map_has_what_the_run_holds(placed: Results, page: str) -> None:
    assert "map-data" not in page
    parsed = Elements(page_of(placed, [], 2, 0))
    data = json.loads(parsed.scripts[1])
    assert data["names"] == [placed.sensor_name(sensor) for sensor in range(5)]
    assert data["links"] == [[0, 1], [1, 2], [3, 4]]
    assert (data["x"][4], data["y"][4]) == (None, None)
    assert data["x"][0] - data["x"][2] == pytest.approx(0.2 * 111.195 * np.cos(np.radians(34.1)), rel=1e-3)
    assert data["y"][3] - data["y"][0] == pytest.approx(0.2 * 111.195, rel=1e-3)
    assert "1 of 5 sensors have no position" in parsed.text

    whole, error, forecast, difference = data["layers"]
    assert [len(layer["frames"]) for layer in data["layers"]] == [1, 34, 34, 34]  # every hour of 68 samples
    np.testing.assert_allclose(whole["frames"][0]["values"], placed.sensor_errors(), rtol=1e-3)
    sample = 2 * 7
    time = datetime(2018, 3, 5, 6, 30) + int(placed.label_starts[sample]) * timedelta(minutes=30)
    assert forecast["frames"][7]["name"] == f"{time:%a %d %b %Y %H:%M}"
    of_hour = placed.forecast[sample].mean(axis=1)
    np.testing.assert_allclose(forecast["frames"][7]["values"], of_hour, rtol=1e-3)
    missed = np.abs(placed.forecast[sample] - placed.target[sample]).mean(axis=1)
    np.testing.assert_allclose(error["frames"][7]["values"], missed, rtol=1e-3)
    week = prepared_of(placed.config)
    profile = historical_profile(
        week.observed, week.training_rows, calendar_for(placed.config), week.scaling.middle
    ).series[placed.label_starts[sample] :][:6]
    usual = profile.mean(axis=0)
    np.testing.assert_allclose(difference["frames"][7]["values"], of_hour - usual, atol=0.02)
    assert difference["low"] == -difference["high"]
    for layer in data["layers"]:
        values = np.array([frame["values"] for frame in layer["frames"]])
        assert np.mean((values >= layer["low"]) & (values <= layer["high"])) >= 0.95
        assert layer["above"] == bool((values > layer["high"]).any())
        assert (layer["unit"], len(layer["colours"])) == (placed.unit, 48)


def test_a_map_of_many_sensors_has_fewer_hours(placed: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.report.map.VALUES_EMBEDDED", 5 * 13)
    assert [len(layer.times) for layer in map_layers(placed, 2, 0)] == [1, 9, 9, 9]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_draws_the_map(placed: Results, tmp_path: Path) -> None:
    path = tmp_path / "map.html"
    path.write_text(page_of(placed, [], 1, 0))
    parsed = Elements(opened_in_browser(path, tmp_path / "profile"))
    assert parsed.named("html") == [{"lang": "en", "data-explorer": "drawn", "data-map": "drawn"}]
    dots = [(float(str(dot["cx"])), float(str(dot["cy"]))) for dot in parsed.named("circle")]
    assert len(dots) == 4  # of the known positions
    places = plane(placed.checkpoint["map"]["positions"].numpy())[:4]
    scale = (dots[0][0] - dots[2][0]) / (places[0, 0] - places[2, 0])
    np.testing.assert_allclose(np.array(dots) - dots[0], (places - places[0]) * (scale, -scale), atol=0.2)
    assert len({str(dot["fill"]) for dot in parsed.named("circle")}) > 1


def opened_in_browser(path: Path, profile: Path) -> str:
    """Return the page as it is when its script has run."""
    offline = "--disable-background-networking --disable-component-update --disable-sync --disable-quic --no-first-run"
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", *offline.split()]
    command += [f"--user-data-dir={profile}", "--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def drawn_curves(dom: str) -> tuple[str | None, list[np.ndarray]]:
    """Return the sensor drawn, and its curves (points, 2) from the lower left corner of the drawing."""
    parsed = Elements(dom)
    drawing = next(item for item in parsed.named("svg") if item.get("id") == "drawing")
    lines = [path for path in parsed.named("path") if "band" not in str(path["class"])]
    curves = [str(path["d"])[1:].split("L") for path in lines]
    points = [np.array([point.split() for point in curve], dtype=float) for curve in curves]
    return drawing.get("data-sensor"), [np.array([0, 350]) + curve * (1, -1) for curve in points]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_draws_the_sensor_that_is_picked(run: RunFolder, page: str, results: Results, tmp_path: Path) -> None:
    dom = opened_in_browser(run.page, tmp_path / "profile")
    assert Elements(dom).named("html") == [{"lang": "en", "data-explorer": "drawn"}]
    first = drawn_curves(dom)

    # The page lets no other script run, so this one stands in a copy without its policy.
    meta = page[page.index("<meta http-equiv") :].split("\n")[0]
    pick = """<script>
      const box = document.querySelectorAll("#explorer input[name=curve]")[1];
      band.checked = false;
      box.checked = false;
      picker.value = "3";
      picker.dispatchEvent(new Event("input"));
      time.value = "7";
      time.dispatchEvent(new Event("input"));
    </script>"""
    picked = tmp_path / "picked.html"
    picked.write_text(page.replace(meta, "").replace("</body>", f"{pick}</body>"))
    dom = opened_in_browser(picked, tmp_path / "profile")
    second = drawn_curves(dom)

    steps = min(2 * 48, len(results.label_starts))
    for (sensor, curves), expected, horizons in ((first, 0, (1, 6)), (second, 3, (6,))):
        assert sensor == str(expected)
        series = [results.target[:steps, expected, 0]]
        series += [results.forecast[: steps - horizon + 1, expected, horizon - 1] for horizon in horizons]
        times = [np.arange(horizon - 1, steps) for horizon in (1, *horizons)]
        assert len(curves) == len(series)
        for place, numbers in ((0, times), (1, series)):
            drawn, values = np.concatenate(curves)[:, place], np.concatenate(numbers)
            slope, intercept = np.polyfit(values, drawn, 1)
            assert slope > 0
            np.testing.assert_allclose(drawn, slope * values + intercept, atol=0.2)  # one scale for all curves
    assert f"truth {results.target[7, 3, 0]:.1f}, 180 min ahead {results.forecast[2, 3, 5]:.1f}" in Elements(dom).text
