"""Each row changes what it says and nothing else; the table compares like with like."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ablation
from lib.files import load_json
from lib.interface import Inputs
from lib.runs import TrainingRun, start_run
from model.attention import CrossAttention
from model.deformable_patches import RegularPatches
from model.dtg_lknet import DTGLKNet
from model.variants import VARIANTS
from tests.conftest import Call, DatasetMaker, dense_graphs, load, tiny_series

pytestmark = pytest.mark.usefixtures("no_figures")


def run_of(path: Path, root: Path, row: str) -> TrainingRun:
    return start_run(load(path, ablation.ablations(load(path), "paper")[row]), root, row)


def without_large_kernels(model: DTGLKNet) -> bool:
    return all(block.large is None and block.small is not None for block in model.front_end.blocks)


def without_small_kernels(model: DTGLKNet) -> bool:
    return all(block.small is None and block.large is not None for block in model.front_end.blocks)


def without_laplacian_encoding(model: DTGLKNet) -> bool:
    inputs = Inputs(torch.randn(2, 8, 6), torch.randn(2, 8), torch.zeros(2), teacher=torch.randn(2, 8, 3))
    before = model.eval()(inputs)
    model.laplacian_encoding.copy_(torch.randn_like(model.laplacian_encoding))
    return torch.equal(model(inputs), before)


CHANGED: dict[str, tuple[set[str], Callable[[DTGLKNet], bool]]] = {
    # the state dict's names that differ from those of the full model, by prefix; and what must hold
    "paper-no-deformable-patches": (
        {"front_end.patches"},
        lambda model: isinstance(model.front_end.patches, RegularPatches),
    ),
    "paper-no-large-branch": ({f"front_end.blocks.{i}.large" for i in range(6)}, without_large_kernels),
    "paper-no-small-branch": ({f"front_end.blocks.{i}.small" for i in range(6)}, without_small_kernels),
    "paper-no-similarity-graph": (set(), lambda model: bool(model.similarity_graph.neighbours.density == 1)),
    "paper-no-topology-graph": (set(), lambda model: bool(model.topology_graph.neighbours.density == 1)),
    "paper-no-laplacian-encoding": ({"encoder_embedding.node", "decoder_embedding.node"}, without_laplacian_encoding),
    "paper-no-time-gate": ({"decoder.0.gate"}, lambda model: isinstance(model.decoder[0].gate, CrossAttention)),
}


@pytest.mark.parametrize("row", CHANGED)
@torch.no_grad()
def test_a_row_changes_its_part_of_the_network_alone(row: str, make_dataset: DatasetMaker, tmp_path: Path) -> None:
    path = make_dataset(tiny_series(sensors=8), extra="\n[Graph]\nneighbours = 2\nhops = 2\n")
    full, changed = (run_of(path, tmp_path, name).trainer for name in ("paper", row))
    prefixes, holds = CHANGED[row]
    names = full.model.state_dict().keys() ^ changed.model.state_dict().keys()
    assert {prefix for prefix in prefixes if not any(found.startswith(prefix) for found in names)} == set()
    assert all(found.startswith(tuple(prefixes)) for found in names)
    graphs, other_graphs = full.extra["graphs"], changed.extra["graphs"]
    different = [
        name
        for name in ("similarity", "topology")
        if not torch.equal(graphs[name]["sensors"], other_graphs[name]["sensors"])
    ]
    expected = {"paper-no-similarity-graph": ["similarity"], "paper-no-topology-graph": ["topology"]}
    assert different == expected.get(row, [])
    assert holds(changed.model)
    if row in ("paper-no-similarity-graph", "paper-no-topology-graph", "paper-no-laplacian-encoding"):
        assert not holds(full.model)  # there is something to leave out


@pytest.mark.parametrize("part", ["deformable_patches", "large_branch", "laplacian_encoding", "time_gate"])
@torch.no_grad()
def test_the_rollout_of_an_ablated_model_equals_decoding_anew(part: str, make_dataset: DatasetMaker) -> None:
    config = load(make_dataset(), [f"Model.{part}=off"])
    graphs = dense_graphs(torch.eye(5).bool(), torch.eye(5).bool(), torch.randn(5, 8))
    model: nn.Module = config.variant.network(graphs, config.sizes, config.model).eval()
    inputs = Inputs(torch.randn(2, 5, 6), torch.randn(2, 5), torch.zeros(2))
    start = inputs.start.unsqueeze(-1)
    values, readings = start, model.read(model.encode(inputs))
    for _ in range(3):
        values = torch.cat([start, model.decode(values, readings)], dim=-1)
    torch.testing.assert_close(model(inputs), values[:, :, 1:], atol=1e-5, rtol=0)
    model.merge()
    torch.testing.assert_close(model(inputs), values[:, :, 1:], atol=1e-5, rtol=0)


def test_each_row_of_each_variant_changes_one_setting(make_dataset: DatasetMaker) -> None:
    path = make_dataset()
    rows = {}
    on = ["Training.padded_history=on", "Training.bias_correction=on"]
    for name in VARIANTS:
        base = load(path, [f"Model.variant={name}", *on])
        found = ablation.ablations(base, name)
        rows[name] = [row.removeprefix(f"{name}-") for row in found]
        for row, changes in found.items():
            changed = load(path, [f"Model.variant={name}", *on, *changes])
            keys = [text.split()[0] for text in changed.differences(base)]
            if row in VARIANTS:  # with its own rules for graphs
                assert (changed.variant.name, changed.training) == (row, base.training)
            else:
                assert keys == [change.split("=")[0] for change in changes]
    of_encoder = [f"no-{part}" for part in ("deformable-patches", "large-branch", "small-branch", "laplacian-encoding")]
    of_mlp = ["residual", "autoregression", "direct-head", "identity", "graph-means", "past-days"]
    of_mlp += ["copy-imputed", "mute-imputed"]
    of_mlp = [*(f"no-{part}" for part in of_mlp), "8-harmonics"]
    of_graphs = ["no-similarity-graph", "no-topology-graph", "gaussian-similarity", "released-similarity"]
    of_training = ["no-fine-tuning", "no-padded-history", "no-bias-correction"]
    paper = [*of_encoder, "no-time-gate", *of_graphs, "dtw-of-all-days", *of_training]
    assert rows["paper"] == ["paper", *paper, "released"]
    as_it_is = ("released-similarity", "dtw-of-all-days")  # of the released code anyway
    assert rows["released"] == ["released", *(row for row in paper if row not in as_it_is), "paper"]
    assert rows["stid"] == ["stid", *of_training]
    assert sorted(rows["residual_mlp"]) == sorted(
        ["residual_mlp", *of_mlp, *of_graphs, "dtw-of-all-days", *of_training]
    )
    assert sorted(rows["residual"]) == sorted(
        ["residual", *of_mlp, *of_encoder, *of_graphs, "dtw-of-all-days", *of_training]
    )


def test_one_word_selects_all_rules_of_the_released_code(make_dataset: DatasetMaker) -> None:
    graph = load(make_dataset(), ["Model.variant=released"]).graph
    assert (graph.similarity, graph.laplacian, graph.dtw_rows) == ("released", "released", "all")
    kept = load(make_dataset(name="TWO"), ["Model.variant=released", "Graph.similarity=nearest"]).graph
    assert (kept.similarity, kept.laplacian, kept.dtw_rows) == ("nearest", "released", "all")


def test_the_table_is_made_and_made_again_without_training(
    make_dataset: DatasetMaker, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_dataset(fine_tune_epochs=0)
    command = ["ablation.py", "--config", config, "--seeds", 2, "--only", "paper", "paper-no-deformable-patches"]
    command += ["--output", tmp_path / "runs", "--results", tmp_path / "results", "--set", "Training.max_batches=2"]
    assert call(*command) == 0
    table = tmp_path / "results" / "TINY"
    first, second = csv.DictReader((table / "ablation_paper.csv").read_text().splitlines())
    assert (first["name"], first["changed"], first["seeds"], first["mae_difference"]) == ("paper", "nothing", "2", "")
    runs = sorted(tmp_path.glob("runs/TINY/ablation-paper-no-deformable-patches-seed*/metrics.json"))
    maes = [load_json(path)["test"]["overall"]["mae"] for path in runs]
    assert len(maes) == 2
    assert float(second["mae"]) == pytest.approx(np.mean(maes), abs=1e-4)
    assert float(second["mae_sd"]) == pytest.approx(np.std(maes, ddof=1), abs=1e-4)
    assert float(second["mae_difference"]) == pytest.approx(float(second["mae"]) - float(first["mae"]), abs=2e-4)
    assert float(second["interval_low"]) <= float(second["mae_difference"]) <= float(second["interval_high"])
    markdown = (table / "ablation_paper.md").read_text()
    assert markdown.startswith("# Ablation on TINY\n\n`python ablation.py --config ")
    assert "| paper-no-deformable-patches | Model.deformable_patches=off |     2 |" in markdown

    capsys.readouterr()
    before = (table / "ablation_paper.csv").read_bytes()
    assert call(*command) == 0
    assert "epoch" not in capsys.readouterr().out
    assert (table / "ablation_paper.csv").read_bytes() == before

    assert call(*command, "--set", "Training.learning_rate=0.1") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / 'runs' / 'TINY' / 'ablation-paper-seed1' / 'settings.ini'}: found ")
    assert "found Training.learning_rate 0.003, expected the settings asked for" in said
