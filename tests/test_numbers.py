"""Numbers as text: no unit of the flow is too small for tables and files, and usual ones keep their decimals."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.inference import History, save_forecast
from lib.numbers import number_text
from lib.report.comparison import SCORES, write_tables
from lib.report.paper_tables import Row, render
from lib.report.text_tables import score_text, table
from tests.conftest import load, write_dataset

SMALL = 1e-5  # of the unit of the second flow, in that of the first


@given(st.floats(-1e6, 1e6), st.integers(1, 5))
def test_a_number_has_its_significant_digits(value: float, least: int) -> None:
    text = number_text(value, least)
    tolerance = 0.501 * 10.0**-least  # of the last digit of a number from 1 to 10
    assert float(text) == pytest.approx(value, abs=0 if 0 < abs(value) < 1 else tolerance, rel=tolerance)
    if not 0 < abs(value) < 1:
        assert text == f"{value:.{least}f}"


def test_scores_in_tables() -> None:
    assert [score_text(value) for value in (13.4861, 5.0, (13.4861, 0.0114), None)] == [
        *("13.486", "5.000", "13.486 ± 0.011", "-")
    ]
    assert [score_text(value) for value in (0.00134861, (0.00134861, 0.0000114))] == [
        *("0.001349", "0.001349 ± 0.000011")
    ]
    assert "| 0.002500 |" in table({"all": {"mae": 0.0025}}, "horizon")


@pytest.mark.parametrize("unit", [1, SMALL])
def test_no_table_rounds_errors_of_a_small_flow_away(unit: float, tmp_path: Path) -> None:
    scores = {name: (unit * (13.4861 + place), unit * 0.2114) for place, name in enumerate(SCORES)}
    paper = [Row("ours", "TINY", "yes", 3, scores, "")]
    (entry,) = csv.DictReader(render(paper, ["TINY"], "csv").splitlines())
    row = {"name": "ours", "seeds": 3, "parameters": 9, "minutes": 2.5, "val_mae": unit * 12.3}
    for name, (mean, deviation) in scores.items():
        row |= {name: mean, f"{name}_sd": deviation}
    row |= {"mae_difference": unit * -0.5, "interval_low": unit * -1.5, "interval_high": unit * 0.5}
    row |= {"mae_step_1": unit * 7.5, "mae_step_1_sd": unit * 0.3}
    data = load(write_dataset(tmp_path)).data
    markdown = write_tables(tmp_path / "out", "Comparison", [row], [], type("Group", (), {"name": "ours"}), data)
    (written,) = csv.DictReader((tmp_path / "out.csv").read_text().splitlines())
    for name, value in row.items():
        if isinstance(value, float):
            assert float(written[name]) == pytest.approx(value, rel=2e-3)
    for name in SCORES:
        found = float(entry[name]), float(entry[f"{name}_sd"])
        assert found == pytest.approx(scores[name], rel=3e-3)
    if unit == 1:
        assert " 12.300 | 13.486 ± 0.211 |" in markdown
        assert "| -0.500 (-1.500 .. +0.500) |" in markdown
        assert "**13.49** ± 0.21" in render(paper, ["TINY"], "md")
    else:
        assert " 0.0001230 | 0.0001349 ± 0.0000021 |" in markdown
        assert "| -0.0000050 (-0.0000150 .. +0.0000050) |" in markdown
        assert "**0.000135** ± 0.000002" in render(paper, ["TINY"], "md")


def test_a_forecast_comes_through_its_file_in_any_unit(tmp_path: Path) -> None:
    forecast = np.geomspace(1e-9, 1e5, 12, dtype=np.float32).reshape(4, 3)
    history = History(tmp_path, np.zeros((2, 4)), tuple("abcd"), 5, None, False, 12)
    save_forecast(tmp_path / "out.csv", history, forecast, {})
    with (tmp_path / "out.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["time"] for row in rows[::4]] == ["7", "8", "9"]
    np.testing.assert_allclose([float(row["forecast"]) for row in rows], forecast.T.ravel(), rtol=5.01e-4)
