"""A variant that a user adds, as a file and a line, goes through every script and stands in every table."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lib.ini import CountOrZero, Switch
from lib.interface import Graphs, Inputs, Sizes, Variant
from lib.run_folder import RunFolder
from model.variants import VARIANTS
from tests.conftest import Call, DatasetMaker

# ------------------------------------------------------------------------------------------------ the user's file


@dataclass(frozen=True, kw_only=True)
class LinearSettings:
    """The settings of the linear map."""

    read_steps: Annotated[CountOrZero, "input steps that are read; 0: all"] = 0
    from_last_value: Annotated[Switch, "forecast the change from the last value"] = True

    def faults(self, sizes: Sizes) -> dict[str, str]:
        """Return what is wrong with these settings, by key."""
        few = self.read_steps <= sizes.input_steps
        return {} if few else {"read_steps": f"found {self.read_steps}, expected at most {sizes.input_steps}"}


class Linear(nn.Module):
    """A linear map of the input to the forecast, the same for all sensors; in training two heads."""

    def __init__(self, graphs: Graphs, sizes: Sizes, settings: LinearSettings) -> None:
        super().__init__()
        self.steps, self.settings = settings.read_steps or sizes.input_steps, settings
        self.sensor = nn.Parameter(torch.zeros(len(graphs.topology), 1))
        self.heads = nn.ModuleList(nn.Linear(self.steps, sizes.horizon) for _ in range(2))

    def forward(self, inputs: Inputs) -> Tensor:
        """Forecast (B, N, P); in training (2, B, N, P)."""
        base = inputs.start.unsqueeze(-1) if self.settings.from_last_value else 0
        heads = torch.stack([head(inputs.series[:, :, -self.steps :]) for head in self.heads])
        heads = heads + base + self.sensor
        return heads if self.training else heads.mean(dim=0)


LINEAR = Variant(
    name="linear", label="a linear map", network=Linear, settings=LinearSettings, faults=LinearSettings.faults
)

# ------------------------------------------------------------------------------------------------------ the tests


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in csv.DictReader(path.read_text().splitlines())}


def maes_of(folders: list[Path]) -> list[float]:
    metrics: list[Mapping[str, Any]] = [RunFolder(folder).read_metrics() for folder in folders]
    assert {(run["variant"], run["label"]) for run in metrics} == {("linear", "a linear map")}
    return [run["test"]["overall"]["mae"] for run in metrics]


def test_a_new_variant_is_a_file_and_a_line(
    make_dataset: DatasetMaker,
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_figures: None,
) -> None:
    del no_figures
    monkeypatch.setattr("lib.report.figures.save_figure", lambda *_: None)
    monkeypatch.setitem(VARIANTS, "linear", LINEAR)  # type: ignore[misc]  # the line
    path, root, results = make_dataset(), tmp_path / "experiments", tmp_path / "results"
    chosen = ["--config", path, "--output", root, "--set", "Model.variant=linear"]

    assert call("run.py", "--settings") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "read_steps" in line]
    assert "input steps that are read; 0: all" in line
    assert call("run.py", *chosen, "--set", "Model.read_steps=7") == 2
    fault = "error: --set Model.read_steps=7: found 7, expected at most 6\n"
    assert capsys.readouterr().err == fault

    assert call("run.py", *chosen, "--seed", 1, 2, 3) == 0
    shown = capsys.readouterr().out
    assert shown.count("a linear map on the test split, by horizon") == 3
    assert shown.count("| a linear map           |") == 3
    folders = [root / "TINY" / f"linear-seed{seed}" for seed in (1, 2, 3)]
    maes = maes_of(folders)
    assert len(set(maes)) == 3

    rows = ["linear", "linear-no-from-last-value", "linear-no-topology-graph"]
    assert call("ablation.py", *chosen, "--results", results, "--seeds", 2, "--only", *rows) == 0
    table = rows_of(results / "TINY" / "ablation_linear.csv")
    assert list(table) == rows
    assert table["linear"]["mae"] == f"{np.mean(maes[:2]):.4f}"  # the same seeds
    assert table["linear-no-topology-graph"]["mae"] == table["linear"]["mae"]  # it looks at no graph
    assert table["linear-no-from-last-value"]["changed"] == "Model.from_last_value=off"
    assert float(table["linear-no-from-last-value"]["mae_difference"]) != 0

    assert call("run.py", "--config", path, "--output", root, "--set", "Model.variant=stid", "--name", "stid") == 0
    runs = ["--runs", *folders, root / "TINY" / "stid"]
    assert call("compare.py", *runs, "--output", results / "compared") == 0
    table = rows_of(results / "compared.csv")
    assert list(table)[-2:] == ["linear", "stid"]
    assert (table["linear"]["seeds"], table["linear"]["mae"]) == ("3", f"{np.mean(maes):.4f}")
    assert int(table["linear"]["parameters"]) == 2 * (6 * 3 + 3) + 5

    capsys.readouterr()
    assert call("paper_tables.py", "--config", path, "--experiments", root, "--format", "csv") == 0
    shown = capsys.readouterr()
    lines = [line for line in shown.out.splitlines() if line.startswith("TINY,a linear map,3,")]
    assert len(lines) == 2 * 2  # with targets of 0 and without, in all and at step 3
    assert lines[0].startswith(f"TINY,a linear map,3,{np.mean(maes):.4f},")
    reasons = dict(line.removeprefix("left out TINY/").split(": ", 1) for line in shown.err.splitlines())
    assert (
        reasons.keys()
        == {
            *("linear-seed1", "linear-seed2"),  # those of the ablation are the same
            *(f"ablation-{row}-seed{seed}" for row in rows[1:] for seed in (1, 2)),
            "stid",
        }
    )
    other = "Model.from_last_value off, not as in TINY.conf with recipe linear"
    assert reasons["ablation-linear-no-from-last-value-seed1"] == other
