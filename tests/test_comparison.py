"""Runs of any settings side by side: who is grouped with whom, what the tables and figures say, what is refused."""

import csv
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lib.errors import InputError
from lib.files import load_json, save_json
from lib.metrics import ForecastErrors, metrics_content
from lib.report.comparison import check_same_targets, group_folders, group_row, paired_difference, read_runs, spread
from lib.run_folder import RunFolder
from model.variants import VARIANTS
from tests.conftest import Call, DatasetMaker, load

SAMPLES, SENSORS = 60, 5
RunMaker = Callable[..., RunFolder]


@pytest.fixture
def make_run(make_dataset: DatasetMaker, tmp_path: Path) -> RunMaker:
    """Give a function that writes what a finished run leaves of forecasts that are off by about `error`."""
    horizons: dict[int, Path] = {}

    def make_run(
        name: str,
        error: float,
        *changes: str,
        recipe: str | None = None,
        horizon: int = 3,
        epochs: Sequence[tuple[float, float]] = ((60.0, 9.0),),
    ) -> RunFolder:
        if horizon not in horizons:
            horizons[horizon] = make_dataset(name=f"TINY{horizon}", horizon=horizon)
        config, folder = load(horizons[horizon], list(changes), recipe), RunFolder(tmp_path / "runs" / name)
        folder.path.mkdir(parents=True)
        target = np.random.default_rng(0).uniform(50, 90, (SAMPLES, SENSORS, horizon)).astype(np.float32)
        noise = np.random.default_rng(config.training.seed).normal(0, error, target.shape)
        forecast = (target + noise * np.arange(1, horizon + 1)).astype(np.float32)

        def scores(forecast: np.ndarray) -> dict[str, Any]:
            errors = ForecastErrors.zero(horizon)
            errors.update(torch.from_numpy(forecast), torch.from_numpy(target))
            return metrics_content(errors)

        folder.save_start(config, {"hardware": "an abacus", "packages": {"torch": "2.13.0"}})
        folder.save_predictions(forecast, target, np.arange(SAMPLES))
        folder.save_log(
            [{"epoch": number, "seconds": time, "val_mae": mae} for number, (time, mae) in enumerate(epochs, 1)]
        )
        content = {
            **{"dataset": config.data.dataset_name, "variant": config.variant.name, "label": config.variant.label},
            **{"seed": config.training.seed, "parameters": 12345, "epochs": len(epochs)},
            "best_epoch": 1 if epochs else None,
            "best_val_mae": min((mae for _, mae in epochs), default=None),
            "test_set": {"fingerprint": f"of {horizon} steps", "samples": SAMPLES, "horizon": horizon},
            "test": scores(forecast),
            "baselines": {f"off by {shift}": scores(target + np.float32(shift)) for shift in (30, 10, 20)},
        }
        folder.save_metrics(content)
        return folder

    return make_run


def mae_of(folder: RunFolder) -> float:
    return float(folder.read_metrics()["test"]["overall"]["mae"])


def table_of(path: Path) -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in csv.DictReader(path.read_text().splitlines())}


def test_groups_differ_in_more_than_seed_and_what_changes_no_result(make_run: RunMaker) -> None:
    stid = [
        make_run("stid-1", 5, "Model.variant=stid"),
        make_run("stid-2", 5, "Model.variant=stid", "Training.seed=2", "Runtime.threads=1"),
    ]
    full = make_run("full", 5)
    longer = make_run("longer", 5, "Training.epochs=40", "Data.start=")
    found = group_folders([full, *stid, longer, RunFolder(full.path.parent / "." / "stid-1")], VARIANTS)
    assert list(found.items()) == [
        ("paper (Data.start 2018-03-05 00:00:00, Training.epochs 1)", [full]),
        ("stid", stid),
        ("paper (Data.start none, Training.epochs 40)", [longer]),
    ]
    again = make_run("again", 5, "Model.variant=stid", "Runtime.data=host")
    rounded = make_run("rounded", 5, "Model.variant=stid", "Runtime.precision=bf16")
    names = ["stid (Runtime.precision float32)", "stid (Runtime.precision bf16)"]
    assert list(group_folders([*stid, rounded], VARIANTS)) == names
    with pytest.raises(InputError, match=r"again: found settings and seed of .*stid-1, expected each seed once"):
        group_folders([*stid, again], VARIANTS)


def test_a_run_of_a_recipe_has_its_name_and_any_other_that_of_its_variant(make_run: RunMaker) -> None:
    demo = make_run("demo", 5, recipe="stid_demo")
    assert list(group_folders([demo], VARIANTS)) == ["stid_demo"]
    near = make_run("near", 5, "Training.epochs=30", recipe="stid_demo")
    assert list(group_folders([demo, near], VARIANTS)) == ["stid_demo", "stid"]
    nearer = make_run("nearer", 5, "Training.epochs=31", recipe="stid_demo")
    names = ["stid (Training.epochs 30)", "stid_demo", "stid (Training.epochs 31)"]
    assert list(group_folders([near, demo, nearer], VARIANTS)) == names


def test_a_row_is_what_its_runs_say(make_run: RunMaker) -> None:
    epochs = [[(30.0, 9.0), (60.0, 7.0)], [(90.0, 8.0)]]
    folders = [make_run(f"full-{seed}", 4, f"Training.seed={seed}", epochs=epochs[seed]) for seed in (0, 1)]
    group, reference = read_runs("full", folders), read_runs("other", [make_run("other", 6, "Training.epochs=9")])
    row = group_row(group, reference)
    maes = [mae_of(folder) for folder in folders]
    assert (row["seeds"], row["parameters"], row["minutes"], row["val_mae"]) == (2, 12345, 1.5, 7.5)
    assert (row["mae"], row["mae_sd"]) == pytest.approx((np.mean(maes), np.std(maes, ddof=1)))
    assert row["mae_difference"] == pytest.approx(
        np.mean(maes) - reference.metrics[0]["test"]["overall"]["mae"], rel=1e-5
    )
    assert row["interval_low"] < row["mae_difference"] < row["interval_high"] < 0
    assert row["mae_step_3"] == pytest.approx(group.by_horizon()[:, 2].mean())
    alone = group_row(reference, reference)
    assert [alone[name] for name in ("mae_sd", "rmse_sd", "mae_difference", "interval_low")] == [None] * 4


def test_weights_that_were_only_tested_have_no_time(make_run: RunMaker) -> None:
    group = read_runs("tested", [make_run("tested", 4, epochs=())])
    row = group_row(group, group)
    assert (row["minutes"], row["val_mae"], group.curves()) == (None, None, [])


def test_of_many_steps_some_are_shown(make_run: RunMaker) -> None:
    def steps(horizon: int) -> list[str]:
        group = read_runs("any", [make_run(f"ahead-{horizon}", 4, horizon=horizon)])
        row = group_row(group, group)
        return [name for name in row if name.startswith("mae_step") and not name.endswith("sd")]

    assert steps(12) == [f"mae_step_{step}" for step in range(1, 13)]
    assert steps(20) == [f"mae_step_{step}" for step in (3, 6, 12, 20)]


def test_the_spread_of_one_score_is_none() -> None:
    assert spread([2.0]) == 2.0
    assert spread([1.0, 3.0]) == (2.0, pytest.approx(np.sqrt(2)))
    assert spread([1.0, None]) is None


def test_the_script_writes_tables_and_figures(
    make_run: RunMaker, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [make_run(f"full-{seed}", 4, f"Training.seed={seed}") for seed in (0, 1)]
    stid = make_run("stid", 2, "Model.variant=stid")
    stem = tmp_path / "results" / "compared.v2"
    assert call("compare.py", "--runs", *folders, stid, "--reference", "stid", "--output", stem) == 0
    endings = [".csv", ".md", "_against_time.pdf", "_against_time.png", "_by_horizon.pdf", "_by_horizon.png"]
    assert sorted(path.name for path in stem.parent.iterdir()) == [f"compared.v2{ending}" for ending in endings]

    table = table_of(Path(f"{stem}.csv"))
    assert list(table) == ["off by 30", "off by 10", "off by 20", "paper", "stid"]
    assert (table["off by 10"]["mae"], table["off by 10"]["seeds"], table["off by 10"]["mae_sd"]) == ("10.0000", "", "")
    assert float(table["paper"]["mae"]) == pytest.approx(np.mean([mae_of(folder) for folder in folders]), abs=1e-4)
    assert (table["stid"]["mae_difference"], table["stid"]["seeds"]) == ("", "1")

    markdown, shown = Path(f"{stem}.md").read_text(), capsys.readouterr().out
    assert markdown.startswith(f"# Comparison on TINY3\n\n`python compare.py --runs {folders[0]} ")
    assert "Runs made on an abacus, PyTorch 2.13.0." in markdown
    assert "the difference of the MAE to stid" in markdown
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(tables) == 2 * (2 + 5)
    assert all(line in shown for line in tables)
    assert len({line.count("|") for line in tables[:7]}) == len({line.count("|") for line in tables[7:]}) == 1
    assert "30 min |" in tables[7]
    assert "90 min |" in tables[7]
    paper = table["paper"]
    assert f" {float(paper['mae']):.3f} ± {float(paper['mae_sd']):.3f} |" in tables[5]
    assert f"{float(paper['mae_difference']):+.3f} (" in tables[5]


@pytest.mark.parametrize("measured", ["old", "new"])
def test_a_run_of_a_version_that_did_not_score_measured_targets_compares(
    measured: str, make_run: RunMaker, call: Call, tmp_path: Path
) -> None:
    runs = {"old": make_run("old", 4), "new": make_run("new", 2, "Model.variant=stid")}
    metrics = load_json(runs[measured].metrics)
    for scores in (metrics["test"], *metrics["baselines"].values()):
        scores["measured"] = dict(scores)
    save_json(runs[measured].metrics, metrics)
    stem = tmp_path / "compared"
    assert call("compare.py", "--runs", *(run.path for run in runs.values()), "--output", stem) == 0
    found = {name: row["mae_measured"] == row["mae"] for name, row in table_of(Path(f"{stem}.csv")).items()}
    assert [found.pop(name) for name in ("paper", "stid")] == [measured == name for name in runs]
    assert len(found) == 3  # the baselines, whichever run scored them
    assert all(found.values())
    assert "MAE (measured)" in Path(f"{stem}.md").read_text()


def test_without_logs_there_is_no_figure_of_time(
    make_run: RunMaker, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("compare.py", "--runs", make_run("tested", 4, epochs=()), "--output", tmp_path / "tested") == 0
    assert "against_time" not in capsys.readouterr().out
    assert not (tmp_path / "tested_against_time.png").exists()


def remove_metrics(runs: Path) -> None:
    (runs / "stid" / "metrics.json").unlink()


def cut_forecasts(runs: Path) -> None:
    samples = np.ones((SAMPLES - 1, SENSORS, 3), np.float32)
    RunFolder(runs / "stid").save_predictions(samples, samples, np.arange(SAMPLES - 1))


def change_targets(runs: Path) -> None:
    path = runs / "stid" / "metrics.json"
    content = load_json(path)
    save_json(path, {**content, "test_set": {**content["test_set"], "fingerprint": "another"}})


def longer_series(runs: Path) -> None:
    """Write the next seed of a run, trained after the file of the series had grown."""
    copy_run(runs)
    again, more = RunFolder(runs / "again"), SAMPLES + 9
    again.settings.write_text(again.settings.read_text().replace("seed = 0", "seed = 1"))
    content = load_json(again.metrics)
    save_json(again.metrics, {**content, "test_set": {**content["test_set"], "fingerprint": "longer", "samples": more}})
    samples = np.ones((more, SENSORS, 3), np.float32)
    again.save_predictions(samples, samples, np.arange(more))


def forget_machine(runs: Path) -> None:
    save_json(runs / "stid" / "environment.json", {"packages": {}})


def copy_run(runs: Path) -> None:
    shutil.copytree(runs / "full", runs / "again")


BOTH = "compare.py --output out --runs runs/full runs/stid"


@pytest.mark.parametrize(
    ("spoil", "command", "expected"),
    [
        (remove_metrics, BOTH, "runs/stid: found no metrics.json, expected a finished run"),
        (cut_forecasts, BOTH, "runs/stid/predictions.npz: found shapes (59, 5, 3) of forecast and (59, 5, 3) of "),
        (change_targets, BOTH, "runs/full and runs/stid: found runs tested on different targets, expected the same "),
        (longer_series, f"{BOTH} runs/again", "runs/full and runs/again: found runs tested on different targets, "),
        (forget_machine, BOTH, "runs/stid/environment.json: found no hardware or packages, expected what run.py "),
        (copy_run, f"{BOTH} runs/again", "runs/again: found settings and seed of runs/full, expected each seed once"),
        (None, f"{BOTH} runs/fuul", "runs/fuul: found no metrics.json, expected a finished run (did you mean 'full'?)"),
        (
            *(None, f"{BOTH} --reference papr"),
            "--reference: found 'papr', expected one of 'paper', 'stid' (did you mean 'paper'?)",
        ),
        (None, f"{BOTH} --output TINY3.conf/out", "--output: found TINY3.conf/out.csv, which cannot be written"),
        (None, f"{BOTH} --output runs/stid/metrics", "--output: found runs/stid/metrics.csv, which is in use"),
    ],
)
def test_wrong_input_is_told_in_one_line_and_nothing_is_written(
    spoil: Callable[[Path], None] | None,
    command: str,
    expected: str,
    make_run: RunMaker,
    call: Call,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_run("full", 4)
    make_run("stid", 4, "Model.variant=stid")
    if spoil:
        spoil(tmp_path / "runs")
    before = sorted(tmp_path.rglob("*"))
    code = call(*command.split())
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith(f"error: {expected}")
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_runs_on_different_targets_are_not_compared(make_run: RunMaker) -> None:
    one, two, other = make_run("one", 4), make_run("two", 4), make_run("other", 4, horizon=2)
    check_same_targets([one, two])
    with pytest.raises(InputError, match=r"runs/one and .*runs/other: found runs tested on different targets"):
        check_same_targets([one, two, other])


def test_paired_difference_finds_a_shift_within_its_interval() -> None:
    draw = np.random.default_rng(2)
    shared = draw.gamma(2, 2, 600)
    reference = shared + draw.normal(0, 0.1, (3, 600))
    mean, low, high = paired_difference(shared + 0.3 + draw.normal(0, 0.1, (3, 600)), reference, block=12)
    assert low < 0.3 < high
    assert high - low < 0.1  # far less than the spread of the samples, 2.8
    assert mean == pytest.approx(0.3, abs=0.02)
    assert paired_difference(reference[:1], reference[:1], block=12) == (0, 0, 0)
    assert paired_difference(reference, reference - 1, block=61) == (pytest.approx(1), None, None)  # under ten blocks


def test_the_spread_over_seeds_widens_the_interval() -> None:
    """Three runs a side that differ by nothing but their seeds: 95 % of the intervals hold 0, here of 100."""
    draw = np.random.default_rng(3)
    shared, inside, width = draw.gamma(2, 2, 600), 0, []
    for _ in range(100):
        sides = [shared + draw.normal(0, 0.1, (3, 1)) + draw.normal(0, 0.1, (3, 600)) for _ in range(2)]
        _, low, high = paired_difference(*sides, block=12)
        assert low is not None
        assert high is not None
        inside += low < 0 < high
        width.append(high - low)
    assert inside >= 90
    assert np.mean(width) == pytest.approx(2 * 2.776 * 0.1 * (2 / 3) ** 0.5, rel=0.15)  # t of 4 degrees of freedom


def test_correlated_neighbours_widen_the_interval() -> None:
    steps = np.repeat(np.random.default_rng(1).normal(0, 1, 50), 12)[None]
    zero = np.zeros_like(steps)
    alone, together = (paired_difference(steps, zero, block=block) for block in (1, 12))
    assert None not in (*alone, *together)
    assert np.ptp(together[1:]) > 2 * np.ptp(alone[1:])
