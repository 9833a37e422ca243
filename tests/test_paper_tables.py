"""The paper's tables from fabricated runs: what counts, what is left out, and how it is written."""

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paper_tables
from lib.baselines import PERCEPTRON_SETTINGS
from lib.config import Config, load_config
from lib.errors import InputError, run_script
from lib.files import REPOSITORY_ROOT, save_json
from lib.paper_tables import Row, collect, read_published, render
from tests.conftest import DatasetMaker

PUBLISHED = REPOSITORY_ROOT / "results" / "published.csv"


def scores(mae: float) -> dict[str, Any]:
    row = {"mae": mae, "rmse": 2 * mae, "mape": 3 * mae, "mae_nonzero": mae + 0.5, "rmse_nonzero": 2 * mae + 0.5}
    return {"overall": row, "by_horizon": [{name: value * step for name, value in row.items()} for step in (1, 2, 3)]}


def fabricate_run(root: Path, config: Config, name: str, mae: float, fingerprint: str = "same") -> None:
    folder = root / config.data.dataset_name / name
    folder.mkdir(parents=True)
    (folder / "settings.ini").write_text(config.to_ini())
    baselines = {"ridge on the last hour": scores(8.0), "last value": scores(9.0)}
    content = {"test": scores(mae), "baselines": baselines, "test_set": {"fingerprint": fingerprint}}
    save_json(folder / "metrics.json", content)


@pytest.fixture
def experiments(make_dataset: DatasetMaker, tmp_path: Path) -> tuple[Path, Path]:
    path, root = make_dataset(), tmp_path / "experiments"
    for seed, mae in ((1, 5.0), (2, 5.4), (3, 5.2)):
        fabricate_run(root, load_config(path, [f"Training.seed={seed}", "Runtime.threads=1"]), f"described-{seed}", mae)
    fabricate_run(root, load_config(path, ["Model.variant=released"]), "released-0", 6.0)
    fabricate_run(root, load_config(path, ["Training.batch_size=4", "Graph.similarity=full"]), "other", 1.0)
    fabricate_run(root, load_config(path, ["Training.seed=9"]), "strange", 1.0, fingerprint="another")
    (root / "TINY" / "unfinished").mkdir()
    return path, root


def test_runs_of_the_configuration_are_averaged_and_others_left_out(experiments: tuple[Path, Path]) -> None:
    collection = collect(*experiments)
    rows = {(row.model, row.zeros): row for row in collection.rows}
    described = rows["DTG-LKNet, described", "yes"]
    assert described.seeds == 3
    assert described.scores["mae"] == pytest.approx((5.2, np.std([5.0, 5.4, 5.2], ddof=1)))
    assert rows["DTG-LKNet, described", "no"].scores["mae"][0] == pytest.approx(5.7)
    assert rows["DTG-LKNet, released", "yes"].scores["rmse"] == (12.0, None)
    assert rows["last value", "yes"].scores["mape"] == (27.0, None)
    assert collection.left_out == [
        "other: other settings than TINY.conf (training.batch_size, graph.similarity)",
        "strange: tested on other targets than described-1",
    ]
    names = ["last value", "ridge on the last hour", "DTG-LKNet, released", "DTG-LKNet, described"]
    assert [(row.model, row.zeros) for row in collection.rows] == [
        *((name, zeros) for zeros in ("yes", "no") for name in names)
    ]
    assert collection.horizon_rows.keys() == {3}
    at_step_3 = {(row.model, row.zeros): row for row in collection.horizon_rows[3]}
    assert at_step_3["DTG-LKNet, released", "yes"].scores["mae"] == (18.0, None)


def test_every_variant_with_runs_has_its_row(experiments: tuple[Path, Path]) -> None:
    path, root = experiments
    for name, changes, mae in (
        ("enhanced-1", ["Model.variant=enhanced"], 4.0),
        ("stid-seed1", [*PERCEPTRON_SETTINGS, "Training.seed=1"], 4.5),
        ("stid-seed2", [*PERCEPTRON_SETTINGS, "Training.seed=2"], 4.7),
        ("stid-large", [*PERCEPTRON_SETTINGS, "Training.d_model=64"], 1.0),
        ("stid-of-the-ini", ["Model.variant=stid"], 1.0),
    ):
        fabricate_run(root, load_config(path, changes), name, mae)
    fabricate_run(root, load_config(path, PERCEPTRON_SETTINGS), "stid-strange", 1.0, fingerprint="another")
    collection = collect(path, root)
    for rows, factor in ((collection.rows, 1), (collection.horizon_rows[3], 3)):
        found = {row.model: (row.seeds, row.scores["mae"][0]) for row in rows if row.zeros == "yes"}
        expected = {
            "last value": (None, 9 * factor),
            "ridge on the last hour": (None, 8 * factor),
            "STID-style MLP": (2, pytest.approx(4.6 * factor)),
            "DTG-LKNet, released": (1, 6 * factor),
            "DTG-LKNet, described": (3, pytest.approx(5.2 * factor)),
            "DTG-LKNet, enhanced": (1, 4 * factor),
        }
        assert list(found.items()) == list(expected.items())
    left_out = [reason for reason in collection.left_out if reason.startswith("stid")]
    assert left_out[0] == "stid-large: other settings than TINY.conf (training.d_model)"
    assert left_out[1].startswith("stid-of-the-ini: other settings than TINY.conf (training.batch_size, ")
    assert left_out[2:] == ["stid-strange: tested on other targets than described-1"]


def test_a_run_that_does_not_count_leaves_no_other_out(experiments: tuple[Path, Path]) -> None:
    path, root = experiments
    before = collect(path, root)
    config = load_config(path, ["Data.missing=zero_is_missing"])
    fabricate_run(root, config, "a-first-by-name", 1.0, fingerprint="of known targets")
    after = collect(path, root)
    assert after.rows == before.rows
    reason = "a-first-by-name: other settings than TINY.conf (data.missing)"
    assert after.left_out == [reason, *before.left_out]


def test_tables_in_three_formats(experiments: tuple[Path, Path]) -> None:
    rows = collect(*experiments).rows
    markdown = render(rows, ["TINY"], "md")
    assert (
        "| DTG-LKNet, described (3 seeds)<sup>a</sup> | **5.20** ± 0.20 | **10.40** ± 0.40 | **15.60** ± 0.60 |"
        in markdown
    )
    assert markdown.count("**") == 2 * 6  # three scores, each counted in two ways
    assert "<sup>b</sup> MAE and RMSE leave targets of 0 out" in markdown
    latex = render(rows, ["TINY"], "tex")
    assert r"DTG-LKNet, described (3 seeds)$^{a}$ & \textbf{5.20} $\pm$ 0.20" in latex
    assert latex.count(r"\\") == 1 + 8
    entries = list(csv.DictReader(render(rows, ["TINY"], "csv").splitlines()))
    assert len(entries) == 8
    assert (
        entries[3] | {"model": "DTG-LKNet, described", "seeds": "3", "mae": "5.2000", "mae_sd": "0.2000"} == entries[3]
    )


def test_what_was_not_measured_stays_empty(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    rows = collect(make_dataset(), tmp_path).rows
    assert all(not row.scores for row in rows)
    assert "| DTG-LKNet, described<sup>a</sup> |  |  |  |" in render(rows, ["TINY"], "md")


def test_published_results_keep_their_source() -> None:
    rows = read_published(PUBLISHED, ["PEMS04"])
    assert {row.dataset for row in rows} == {"PEMS04"}
    assert all(row.source and row.seeds is None for row in rows)
    staeformer = next(row for row in rows if row.model == "STAEformer")
    assert (staeformer.scores["mae"], staeformer.zeros) == ((18.14, None), "no")


def test_a_wrong_published_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "published.csv"
    text = PUBLISHED.read_text()
    path.write_text(text.replace("16.50", "sixteen", 1))
    with pytest.raises(InputError, match=r"published\.csv row 2: found no valid .*sixteen"):
        read_published(path, ["PEMS03"])


def test_script(
    experiments: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, root = experiments
    output = tmp_path / "tables.md"
    arguments = ["--config", str(path), "--experiments", str(root), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["paper_tables.py", *arguments])
    run_script(paper_tables.main)
    assert "left out TINY/other: other settings" in capsys.readouterr().err
    text = output.read_text()
    assert text.startswith("## all horizons together\n\n| model | TINY MAE |")
    assert "## step 3" in text
    monkeypatch.setattr(sys, "argv", ["paper_tables.py", "--dataset", "PEMS4"])
    with pytest.raises(SystemExit) as ended:
        run_script(paper_tables.main)
    assert ended.value.code == 2
    assert "(did you mean 'PEMS04'?)" in capsys.readouterr().err


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
