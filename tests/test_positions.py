"""Where sensors stand: what the file says, in kilometres on a plane, and one line for each fault."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.data.positions import plane, read_positions
from lib.errors import InputError
from lib.files import REPOSITORY_ROOT
from lib.runs import start_run
from tests.conftest import Call, DatasetMaker, load

SENSORS = ("716328", "716331", "N 5")
HEADER = "sensor,latitude,longitude\n"
GOOD = "716331,34.07,-118.25\n716328,34.05,-118.24\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "places.csv"
    path.write_text(text)
    return path


def test_rows_may_be_in_any_order_of_other_sensors_and_without_a_position(tmp_path: Path) -> None:
    path = written(tmp_path, f'{HEADER}{GOOD}\n"N 5",,\n999,0,180\n')
    positions, others = read_positions(path, SENSORS)
    np.testing.assert_array_equal(positions, [[34.05, -118.24], [34.07, -118.25], [np.nan, np.nan]])
    assert others == 1


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", " row 1: found an empty file, expected the header sensor,latitude,longitude"),
        ("id,lat,lon\n", " row 1: found 'id,lat,lon', expected the header sensor,latitude,longitude"),
        (f"{HEADER}{GOOD}716328,34,-118\n", " row 4: found sensor '716328' again (first in row 3), expected it once"),
        (f"{HEADER}{GOOD}N 5,34\n", " row 4: found 2 columns, expected 3"),
        (f"{HEADER}{GOOD}N 5,34,\n", " row 4: column 'longitude': found '', expected degrees from -180 to 180"),
        (f"{HEADER}{GOOD}N 5,nan,1\n", " row 4: column 'latitude': found 'nan', expected degrees from -90 to 90"),
        (
            f"{HEADER}716331,-118.25,34.07\n716328,-118.24,34.05\n",
            " row 2: column 'latitude': found '-118.25', expected degrees from -90 to 90: in every row latitude and "
            "longitude are swapped",
        ),
        (
            f"{HEADER}716329,34.05,-118.24\n",
            ": found the position of none of the 3 sensors in 1 rows, expected those of '716328' .. 'N 5' (did you "
            "mean '716329'?)",
        ),
    ],
)
def test_each_fault_has_its_line(text: str, fault: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError) as raised:
        read_positions(path, SENSORS)
    assert str(raised.value) == f"{path}{fault}"


@given(
    st.floats(-70, 70), st.floats(-180, 180), st.floats(0, 360), st.floats(0.1, 50), st.integers(0, 3), st.booleans()
)
def test_places_on_the_plane_are_as_far_as_on_the_earth(
    latitude: float, longitude: float, bearing: float, kilometres: float, others: int, unknown: bool
) -> None:
    """Against the haversine formula, on both sides of the date line too."""
    north, east = kilometres * np.cos(np.radians(bearing)), kilometres * np.sin(np.radians(bearing))
    other = (latitude + north / 111.195, longitude + east / 111.195 / np.cos(np.radians(latitude)))
    other = (other[0], (other[1] + 180) % 360 - 180)
    degrees = np.array([(latitude, longitude), other, *[(latitude, longitude)] * others, *[(np.nan, np.nan)] * unknown])
    places = plane(degrees)
    assert np.isnan(places[len(degrees) - unknown :]).all()

    one, two = np.radians(degrees[:2])
    half = np.sin((two - one) / 2) ** 2
    haversine = 2 * 6371 * np.arcsin(np.sqrt(half[0] + np.cos(one[0]) * np.cos(two[0]) * half[1]))
    assert np.hypot(*(places[1] - places[0])) == pytest.approx(haversine, rel=0.02)
    assert np.sign(np.round(places[1] - places[0], 6)).tolist() == np.sign(np.round([east, north], 6)).tolist()


def test_positions_travel_with_the_run_and_make_no_other_experiment(
    make_dataset: DatasetMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_dataset()
    places = written(tmp_path, HEADER + "".join(f"{sensor},34.{sensor},-118\n" for sensor in (4, 2, 0, 7)))
    config = load(path, [f"Data.positions_filename={places}"])
    assert config.experiment == load(path).experiment
    run = start_run(config, tmp_path / "out", "one")
    assert f"{places}: 3 of 5 sensors have a position; 1 rows are of other sensors" in capsys.readouterr().out
    kept = run.trainer.extra["map"]
    assert kept["positions"][:, 0].nan_to_num(-1).tolist() == [34.0, -1, 34.2, -1, 34.4]
    assert kept["links"].tolist() == [[0, 1], [1, 2], [2, 3], [3, 4]]
    assert start_run(load(path), tmp_path / "out", "two").trainer.extra["map"] is None


def test_a_wrong_file_stops_before_anything_is_made(
    make_dataset: DatasetMaker, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, places = make_dataset(), written(tmp_path, f"{HEADER}0,34\n")
    before = set(tmp_path.rglob("*"))
    for script in ("PrepareData.py", "run.py"):
        assert call(script, "--config", path, "--set", f"Data.positions_filename={places}") == 2
        assert capsys.readouterr().err == f"error: {places} row 2: found 2 columns, expected 3\n"
        assert set(tmp_path.rglob("*")) == before


def test_the_demo_has_a_position_for_every_sensor() -> None:
    positions, others = read_positions(REPOSITORY_ROOT / "data/DEMO/DEMO_positions.csv", [str(i) for i in range(32)])
    assert not np.isnan(positions).any()
    assert others == 0
