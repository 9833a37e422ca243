"""The paper's tables from fabricated runs: what counts, what is left out, and how it is written."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lib.config import CONFIGURATIONS, Config
from lib.errors import InputError
from lib.files import REPOSITORY_ROOT, save_json
from lib.report.paper_tables import Collection, Row, published_split, read_published, render
from lib.report.paper_tables import collect as collect_with
from lib.run_folder import METRICS_KEYS, RunFolder
from model.variants import VARIANTS
from tests.conftest import Call, DatasetMaker, load

PUBLISHED = REPOSITORY_ROOT / "results" / "published.csv"


def scores(mae: float) -> dict[str, Any]:
    row = {"mae": mae, "rmse": 2 * mae, "mape": 3 * mae, "mae_nonzero": mae + 0.5, "rmse_nonzero": 2 * mae + 0.5}
    return {"overall": row, "by_horizon": [{name: value * step for name, value in row.items()} for step in (1, 2, 3)]}


def fabricate_run(
    root: Path, config: Config, name: str, mae: float, fingerprint: str = "same", measured: float | None = None
) -> None:
    folder = RunFolder(root / config.data.dataset_name / name)
    folder.path.mkdir(parents=True)
    folder.save_start(config, {})
    baselines = {"ridge on the last hour": scores(8.0), "last value": scores(9.0)}
    content = {"test": scores(mae), "baselines": baselines, "test_set": {"fingerprint": fingerprint}}
    if measured is not None:
        for each in (content["test"], *baselines.values()):
            each["measured"] = scores(measured)
    save_json(folder.metrics, {**dict.fromkeys(METRICS_KEYS), **content})


def collect(path: Path, root: Path) -> Collection:
    return collect_with(path, root, VARIANTS)


@pytest.fixture
def experiments(make_dataset: DatasetMaker, tmp_path: Path) -> tuple[Path, Path]:
    path, root = make_dataset(), tmp_path / "experiments"
    for seed, mae in ((1, 5.0), (2, 5.4), (3, 5.2)):
        fabricate_run(root, load(path, [f"Training.seed={seed}", "Runtime.threads=1"]), f"paper-{seed}", mae)
    fabricate_run(root, load(path, ["Model.variant=released"]), "released-0", 6.0)
    fabricate_run(root, load(path, ["Training.batch_size=4", "Graph.similarity=full"]), "other", 1.0)
    fabricate_run(root, load(path, ["Training.seed=9"]), "strange", 1.0, fingerprint="another")
    (root / "TINY" / "unfinished").mkdir()
    return path, root


OTHER = "other: Training.batch_size 4, not as in TINY.conf with recipe paper"


def test_runs_of_the_configuration_are_averaged_and_others_left_out(experiments: tuple[Path, Path]) -> None:
    collection = collect(*experiments)
    rows = {(row.model, row.zeros): row for row in collection.rows}
    paper = rows["DTG-LKNet (paper)", "yes"]
    assert paper.seeds == 3
    assert paper.scores["mae"] == pytest.approx((5.2, np.std([5.0, 5.4, 5.2], ddof=1)))
    assert rows["DTG-LKNet (paper)", "no"].scores["mae"][0] == pytest.approx(5.7)
    assert rows["DTG-LKNet (released code)", "yes"].scores["rmse"] == (12.0, None)
    assert rows["last value", "yes"].scores["mape"] == (27.0, None)
    assert collection.left_out == [OTHER, "strange: tested on other targets than paper-1"]
    names = ["last value", "ridge on the last hour", "DTG-LKNet (paper)", "DTG-LKNet (released code)"]
    assert [(row.model, row.zeros) for row in collection.rows] == [
        *((name, zeros) for zeros in ("yes", "no") for name in names)
    ]
    assert collection.horizon_rows.keys() == {3}
    at_step_3 = {(row.model, row.zeros): row for row in collection.horizon_rows[3]}
    assert at_step_3["DTG-LKNet (released code)", "yes"].scores["mae"] == (18.0, None)


def test_every_recipe_with_runs_has_its_row(experiments: tuple[Path, Path]) -> None:
    path, root = experiments
    for name, recipe, changes, mae in (
        ("mlp-1", "residual_mlp", [], 4.0),
        ("paper-short", "paper_short", [], 5.5),
        ("stid-demo", "stid_demo", [], 4.8),
        ("stid-seed1", "stid", ["Training.seed=1"], 4.5),
        ("stid-seed2", "stid", ["Training.seed=2", "Runtime.threads=2"], 4.7),
        ("stid-seed1-again", "stid", ["Training.seed=1"], 4.5),
        ("stid-large", "stid", ["Training.d_model=64"], 1.0),
        ("stid-of-the-ini", None, ["Model.variant=stid"], 1.0),
        ("stid-rounded", "stid", ["Runtime.precision=bf16"], 1.0),
        ("residual-of-the-ini", None, ["Model.variant=residual"], 1.0),
    ):
        fabricate_run(root, load(path, changes, recipe), name, mae)
    fabricate_run(root, load(path, [], "stid"), "stid-strange", 1.0, fingerprint="another")
    collection = collect(path, root)
    for rows, factor in ((collection.rows, 1), (collection.horizon_rows[3], 3)):
        found = {row.model: (row.seeds, row.scores["mae"][0]) for row in rows if row.zeros == "yes"}
        expected = {
            "last value": (None, 9 * factor),
            "ridge on the last hour": (None, 8 * factor),
            "DTG-LKNet (paper)": (3, pytest.approx(5.2 * factor)),
            "DTG-LKNet (paper), paper_short": (1, pytest.approx(5.5 * factor)),
            "DTG-LKNet (released code)": (1, 6 * factor),
            "STID": (2, pytest.approx(4.6 * factor)),
            "STID, stid_demo": (1, pytest.approx(4.8 * factor)),
            "residual MLP": (1, 4 * factor),
        }
        assert list(found.items()) == list(expected.items())
    folder = root / "TINY"
    assert sorted(collection.left_out) == [
        OTHER,
        "residual-of-the-ini: Model.patch_len 0, not as in TINY.conf with recipe residual_demo",
        "stid-large: Training.d_model 64, not as in TINY.conf with recipe stid",
        "stid-of-the-ini: Training.num_layers 1, not as in TINY.conf with recipe stid_demo",
        "stid-rounded: Runtime.precision bf16, not as in TINY.conf with recipe stid",
        f"stid-seed1-again: found settings and seed of {folder / 'stid-seed1'}, expected each seed once",
        "stid-strange: tested on other targets than mlp-1",
        "strange: tested on other targets than mlp-1",
    ]


def test_a_run_that_does_not_count_leaves_no_other_out(experiments: tuple[Path, Path]) -> None:
    path, root = experiments
    before = collect(path, root)
    config = load(path, ["Data.missing=zero_is_missing"])
    fabricate_run(root, config, "a-first-by-name", 1.0, fingerprint="of observed targets")
    after = collect(path, root)
    assert after.rows == before.rows
    reason = "a-first-by-name: Data.missing interpolate, 0, not as in TINY.conf with recipe paper"
    assert after.left_out == [reason, *before.left_out]


def test_a_recipe_that_the_configuration_rules_out_is_said(experiments: tuple[Path, Path]) -> None:
    path, root = experiments
    before = collect(path, root)
    fabricate_run(root, load(path, [], "stid"), "stid", 1.0)
    path.write_text(path.read_text().replace("start = 2018-03-05\n", ""))
    after = collect(path, root)
    assert [row for row in after.rows if row.seeds] == []  # they were of a series with a start
    reason = next(reason for reason in after.left_out if reason.startswith("stid: "))
    assert reason.startswith(f"stid: recipe stid does not go with TINY.conf: {path} [Data] start: found nothing")
    assert len(after.left_out) > len(before.left_out)


def test_errors_of_measured_targets_have_rows_of_their_own(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    path, root = make_dataset(), tmp_path / "experiments"
    for seed, measured in ((1, 7.0), (2, 8.0)):
        fabricate_run(root, load(path, [f"Training.seed={seed}"]), f"paper-{seed}", 5.0, measured=measured)
    fabricate_run(root, load(path, ["Model.variant=released"]), "a-older", 6.0)  # by a version without them
    rows = {(row.model, row.zeros): row for row in collect(path, root).rows}
    assert rows["DTG-LKNet (paper)", "measured"].scores["mae"] == pytest.approx((7.5, np.std([7, 8], ddof=1)))
    assert rows["DTG-LKNet (paper)", "yes"].scores["mae"][0] == 5.0
    assert rows["last value", "measured"].scores["rmse"] == (16.0, None)
    assert ("DTG-LKNet (released code)", "measured") not in rows
    table = render(rows.values(), ["TINY"], "md")
    assert "| DTG-LKNet (paper) (2 seeds)<sup>d</sup> | **7.50** ± 0.71 |" in table
    assert "<sup>d</sup> measured targets alone" in table


def test_tables_in_three_formats(experiments: tuple[Path, Path]) -> None:
    rows = collect(*experiments).rows
    markdown = render(rows, ["TINY"], "md")
    assert (
        "| DTG-LKNet (paper) (3 seeds)<sup>a</sup> | **5.20** ± 0.20 | **10.40** ± 0.40 | **15.60** ± 0.60 |"
        in markdown
    )
    assert markdown.count("**") == 2 * 6  # three scores, each counted in two ways
    assert "<sup>b</sup> MAE and RMSE leave targets of 0 out" in markdown
    latex = render(rows, ["TINY"], "tex")
    assert r"DTG-LKNet (paper) (3 seeds)$^{a}$ & \textbf{5.20} $\pm$ 0.20" in latex
    assert latex.count(r"\\") == 1 + 8
    entries = list(csv.DictReader(render(rows, ["TINY"], "csv").splitlines()))
    assert len(entries) == 8
    assert entries[2] | {"model": "DTG-LKNet (paper)", "seeds": "3", "mae": "5.2000", "mae_sd": "0.2000"} == entries[2]


def test_what_was_not_measured_stays_empty(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    rows = collect(make_dataset(), tmp_path).rows
    assert all(not row.scores for row in rows)
    assert "| DTG-LKNet (paper)<sup>a</sup> |  |  |  |" in render(rows, ["TINY"], "md")


def test_published_results_keep_their_source() -> None:
    rows = read_published(PUBLISHED, {"PEMS04": "all windows of one hour"})
    assert {row.dataset for row in rows} == {"PEMS04"}
    assert all(row.source and row.seeds is None for row in rows)
    staeformer = next(row for row in rows if row.model == "STAEformer")
    assert (staeformer.scores["mae"], staeformer.zeros) == ((18.14, None), "no")


def test_published_results_stand_beside_ours_on_the_same_targets_alone(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("paper_tables.py", "--dataset", "PEMS08", "--experiments", tmp_path, "--format", "csv")
    found = {}
    for split in ("samples", "windows"):
        assert call(*arguments, "--split", split) == 0
        entries = csv.DictReader(capsys.readouterr().out.splitlines()[1:])
        found[split] = {entry["model"] for entry in entries if entry["dataset"] == "PEMS08" and entry["source"]}
    assert found["samples"] == {"ASTGNN(p)", "CorrSTN(p)"}
    assert "STAEformer" in found["windows"]
    assert not found["samples"] & found["windows"]
    other = load(CONFIGURATIONS / "PEMS08.conf", ["Training.num_of_weeks=0"])
    assert published_split(other) is None  # it starts to test elsewhere


def test_a_run_of_another_split_is_left_out(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    path, root, windows = make_dataset(), tmp_path / "experiments", "Data.split=windows"
    fabricate_run(root, load(path, [windows]), "windows", 5.0)
    assert collect(path, root).left_out == ["windows: Data.split windows, not as in TINY.conf with recipe paper"]
    collection = collect_with(path, root, VARIANTS, [windows])
    assert not collection.left_out
    assert [row.scores["mae"] for row in collection.rows if row.seeds and row.zeros == "yes"] == [(5.0, None)]


def test_a_wrong_published_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "published.csv"
    text = PUBLISHED.read_text()
    path.write_text(text.replace("16.50", "sixteen", 1))
    with pytest.raises(InputError, match=r"published\.csv row 2: found no valid .*sixteen"):
        read_published(path, {})


def test_script(experiments: tuple[Path, Path], call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, root = experiments
    output = tmp_path / "tables.md"
    assert call("paper_tables.py", "--config", path, "--experiments", root, "--output", output) == 0
    assert f"left out TINY/{OTHER}\n" in capsys.readouterr().err
    text = output.read_text()
    assert text.startswith("## all horizons together\n\n| model | TINY MAE |")
    assert "## step 3" in text
    assert call("paper_tables.py", "--dataset", "PEMS4") == 2
    assert "(did you mean 'PEMS04'?)" in capsys.readouterr().err


def test_a_data_set_has_its_columns_once(
    experiments: tuple[Path, Path], call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, root = experiments
    other = tmp_path / "other.conf"  # of the same data set, whose runs would hide those of the first
    other.write_text(path.read_text().replace("batch_size = 16", "batch_size = 8"))
    output = tmp_path / "tables.md"
    assert call("paper_tables.py", "--config", path, other, "--experiments", root, "--output", output) == 2
    assert capsys.readouterr().err == "error: found data set TINY 2 times, expected a column for each once\n"
    assert not output.exists()


def test_a_line_says_how_many_seeds_it_is_of() -> None:
    def line(*seeds: int | None) -> str:
        datasets = [f"SET{number}" for number in range(len(seeds))]
        rows = [
            Row("model", name, "yes", runs, {"mae": (1.0, None)}, "")
            for name, runs in zip(datasets, seeds, strict=True)
        ]
        return render(rows, datasets, "md").splitlines()[2].split("<sup>")[0]

    assert line(None) == "| model"
    assert line(1) == "| model (1 seed)"
    assert line(3, 3) == "| model (3 seeds)"
    assert line(3, 1) == "| model (3, 1 seeds)"


def test_a_published_row_of_a_name_of_ours_keeps_a_line_of_its_own() -> None:
    ours = Row("STID", "SECOND", "no", 3, {"mae": (13.96, 0.02)}, "")
    published = [
        Row("STID", name, "no", None, {"mae": (mae, None)}, "theirs")
        for name, mae in (("FIRST", 18.4), ("SECOND", 14.2))
    ]
    lines = render([*published, ours], ["FIRST", "SECOND"], "md").splitlines()[2:4]
    assert [line.replace("<sup>b</sup>", "") for line in lines] == [
        "| STID, published | **18.40** |  |  | 14.20 |  |  |",
        "| STID (3 seeds) |  |  |  | **13.96** ± 0.02 |  |  |",
    ]
