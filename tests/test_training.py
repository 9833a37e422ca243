"""The engine, end to end on a tiny data set: stages, best weights, resuming, determinism."""

import contextlib
import math
import re
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lib.checkpoints import load_checkpoint, save_checkpoint
from lib.config import Config
from lib.data.preparing import prepared_for
from lib.data.windows import Batch
from lib.diagnostics import largest_activations
from lib.errors import InputError
from lib.interface import Inputs, Sizes
from lib.metrics import ForecastErrors
from lib.run_folder import RunFolder
from lib.runs import TrainingRun, complete_run, finish_run, open_run, resume_run, score_run, start_run
from lib.training import evaluate
from model.variants import VARIANTS
from tests.conftest import REAL_DATA, DatasetMaker, dense_graphs, load, make_network


def run(config: Config, root: Path, name: str = "run") -> RunFolder:
    started = start_run(config, root, name)
    finish_run(started)
    return started.folder


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path)["weights"]


def assert_same_weights(first: RunFolder, second: RunFolder) -> None:
    for one, other in ((first.last, second.last), (first.best, second.best)):
        ones, others = weights_of(one), weights_of(other)
        assert list(ones) == list(others)
        assert all(torch.equal(ones[key], others[key]) for key in ones)


def test_reported_metrics_are_those_of_the_saved_forecasts(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    config = load(make_dataset())
    folder = run(config, tmp_path / "out")
    predictions = folder.read_predictions()
    prepared = prepared_for(config)
    for sample, start in enumerate(predictions["label_starts"]):
        np.testing.assert_array_equal(predictions["target"][sample].T, prepared.flow[start : start + 3])
    errors = ForecastErrors.zero(3)
    errors.update(torch.from_numpy(predictions["forecast"]), torch.from_numpy(predictions["target"]))
    reported = folder.read_metrics()["test"]
    assert reported["overall"] == pytest.approx(errors.overall(), rel=1e-6)
    header, *rows = folder.metrics_table.read_text().splitlines()
    assert header.split(",")[:3] == ["forecast", "horizon", "mae"]
    assert float(rows[3].split(",")[2]) == reported["overall"]["mae"]

    opened = open_run(folder, VARIANTS, "cpu")
    again = evaluate(opened.model, opened.windows, predictions["label_starts"], 7, "", keep_forecast=True)
    np.testing.assert_allclose(again.forecast, predictions["forecast"], atol=1e-3)
    assert again.errors.overall() == pytest.approx(reported["overall"], rel=1e-5)


def test_the_same_seed_gives_the_same_metrics_to_the_bit(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    path = make_dataset(extra="seed = 3\n")
    folders = [run(load(path), tmp_path / "out", name) for name in ("first", "second")]
    assert len({folder.metrics.read_bytes() for folder in folders}) == 1
    assert_same_weights(*folders)
    other = run(load(path, ["Training.seed=4"]), tmp_path / "out", "third")
    assert other.metrics.read_bytes() != folders[0].metrics.read_bytes()


def kill_in_step(run: TrainingRun, last_step: int) -> None:
    """Take the run to its end, or until so many steps of the optimiser are done, like a kill in the next one."""
    step, steps = run.trainer._step, iter(range(last_step))

    def step_until_killed(stage: Any, batch: Any) -> torch.Tensor:
        if next(steps, None) is None:
            raise SystemExit
        return step(stage, batch)

    with pytest.MonkeyPatch.context() as patched, contextlib.suppress(SystemExit):
        patched.setattr(run.trainer, "_step", step_until_killed)
        finish_run(run)


def assert_same_runs(whole: RunFolder, resumed: RunFolder) -> None:
    assert_same_weights(whole, resumed)
    assert whole.metrics.read_bytes() == resumed.metrics.read_bytes()
    timeless = [[{**entry, "seconds": 0} for entry in folder.read_log()] for folder in (whole, resumed)]
    assert timeless[0] == timeless[1]


def test_resuming_equals_not_stopping(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    settings = ["Training.dropout=0.2", "Training.max_batches=2", "Runtime.checkpoint_minutes=1e-9"]
    config = load(make_dataset(epochs=2, fine_tune_epochs=1), settings)
    whole = run(config, tmp_path / "out", "whole")
    for last_step in range(7):  # before the first step, within and between the epochs of both stages, at the end
        killed = start_run(config, tmp_path / "out", f"killed-{last_step}")
        kill_in_step(killed, last_step)
        resumed = resume_run(killed.folder, VARIANTS, None)
        assert resumed.config == config
        finish_run(resumed)
        assert_same_runs(whole, resumed.folder)


def test_a_kill_before_an_epoch_is_reported_loses_no_line_of_the_log(
    make_dataset: DatasetMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(make_dataset(epochs=1, fine_tune_epochs=0), ["Training.max_batches=2"])
    whole = run(config, tmp_path / "out", "whole")
    killed = start_run(config, tmp_path / "out", "killed")
    monkeypatch.setattr(killed.trainer, "report", sys.exit)
    with pytest.raises(SystemExit):
        finish_run(killed)
    resumed = resume_run(killed.folder, VARIANTS, None)
    finish_run(resumed)
    assert_same_runs(whole, resumed.folder)


@pytest.mark.parametrize(
    "settings",
    [
        [],  # checkpoints by epoch
        [
            *("Model.variant=residual", "Training.dropout=0.2", "Training.schedule=cosine"),
            *("Training.weight_decay=0.1", "Runtime.micro_batch=5", "Runtime.gradient_checkpointing=on"),
            *("Runtime.precision=bf16", "Runtime.data=host", "Runtime.checkpoint_minutes=1e-9"),
            *("Training.padded_history=on", "Training.loss=huber"),
        ],
    ],
)
def test_a_run_that_is_killed_again_and_again_ends_the_same(
    make_dataset: DatasetMaker, tmp_path: Path, settings: list[str]
) -> None:
    config = load(make_dataset(epochs=1, fine_tune_epochs=1), ["Training.max_batches=4", *settings])
    whole = run(config, tmp_path / "out", "whole")
    stopped = start_run(config, tmp_path / "out", "killed")
    for last_step in (2, 5, 1, 9):
        kill_in_step(stopped, last_step)
        stopped = resume_run(stopped.folder, VARIANTS, None)
    finish_run(stopped)
    assert_same_runs(whole, stopped.folder)


def test_files_that_a_kill_left_half_written_are_gone_after_resuming(
    make_dataset: DatasetMaker, tmp_path: Path
) -> None:
    folder = start_run(load(make_dataset()), tmp_path / "out", "killed").folder
    half_written = [folder.path / "last.pt.4711.partial", folder.figures / "kernels.png.4711.partial"]
    for path in half_written:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    before = folder.last.read_bytes()
    resume_run(folder, VARIANTS, None)
    assert not any(path.exists() for path in half_written)
    assert folder.last.read_bytes() == before


def test_ctrl_c_saves_and_says_how_to_go_on(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    config = load(make_dataset(epochs=1, fine_tune_epochs=0), ["Training.max_batches=4"])
    whole = run(config, tmp_path / "out", "whole")
    stopped = start_run(config, tmp_path / "out", "interrupted")
    step = stopped.trainer._step

    def interrupted_step(stage: Any, batch: Any) -> torch.Tensor:
        if stopped.trainer.progress.batch == 1:
            signal.raise_signal(signal.SIGINT)
        return step(stage, batch)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stopped.trainer, "_step", interrupted_step)
        with pytest.raises(KeyboardInterrupt, match=r"go on with: .* --resume"):
            finish_run(stopped)
    resumed = resume_run(stopped.folder, VARIANTS, None)
    assert resumed.trainer.progress.batch == 2
    finish_run(resumed)
    assert_same_runs(whole, resumed.folder)


def test_a_run_is_there_whole_or_not(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    config = load(make_dataset())

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lib.runs.save_checkpoint", fail)
        with pytest.raises(InputError, match="cannot be made: No space left on device"):
            start_run(config, tmp_path / "out", "run")
    assert list((tmp_path / "out" / "TINY").iterdir()) == []
    start_run(config, tmp_path / "out", "run")
    with pytest.MonkeyPatch.context() as patched:  # before anything takes time
        patched.setattr("lib.runs.prepared_for", lambda _: pytest.fail("the name is taken"))
        with pytest.raises(InputError, match="found a run in"):
            start_run(config, tmp_path / "out", "run")


def test_the_second_stage_starts_from_the_best_weights_of_the_first(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    config = load(make_dataset(epochs=2, fine_tune_epochs=1))
    trainer = start_run(config, tmp_path / "out", "run").trainer
    losses = iter([0.5, 0.9, 0.7])  # the second epoch is worse, and so is the third
    snapshots: list[dict[str, torch.Tensor]] = []
    step = trainer._step

    def remember(*arguments: Any) -> torch.Tensor:
        snapshots.append({key: value.clone() for key, value in trainer.model.state_dict().items()})
        return step(*arguments)

    evaluation = evaluate(trainer.model, trainer.windows, trainer.label_starts["val"], 16, "")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lib.training.Evaluator.evaluate", lambda *_, **__: evaluation._replace(loss=next(losses)))
        patched.setattr(trainer, "_step", remember)
        trainer.fit()
    batches = len(snapshots) // 3
    best = weights_of(trainer.folder.best)
    assert [entry["best"] for entry in trainer.progress.history] == [True, False, False]
    assert all(torch.equal(best[key], snapshots[batches][key]) for key in best)  # after epoch 1
    assert all(torch.equal(best[key], snapshots[2 * batches][key]) for key in best)  # where stage 2 starts


def test_a_cosine_falls_within_each_stage(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    config = load(make_dataset(epochs=2, fine_tune_epochs=1), ["Training.schedule=cosine"])
    trainer = start_run(config, tmp_path / "out", "run").trainer
    step, rates = trainer._step, []

    def remember(*arguments: Any) -> torch.Tensor:
        loss = step(*arguments)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        return loss

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trainer, "_step", remember)
        trainer.fit()
    batches = len(rates) // 3
    shares = [(1 + np.cos(np.pi * np.arange(steps) / steps)) / 2 for steps in (2 * batches, batches)]
    assert rates == pytest.approx([*(0.003 * shares[0]), *(0.0003 * shares[1])])
    logged = [entry["learning_rate"] for entry in trainer.progress.history]
    assert logged == rates[batches - 1 :: batches]  # of the last step of each epoch


def test_patience_ends_a_stage(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    config = load(make_dataset(epochs=9, fine_tune_epochs=9, extra="patience = 2\n"))
    trainer = start_run(config, tmp_path / "out", "run").trainer
    evaluation = evaluate(trainer.model, trainer.windows, trainer.label_starts["val"], 16, "")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lib.training.Evaluator.evaluate", lambda *_, **__: evaluation)
        trainer.fit()
    assert [entry["stage"] for entry in trainer.progress.history] == ["teacher forcing"] * 3 + ["fine-tuning"] * 2


def test_max_batches_caps_an_epoch_and_clipping_caps_the_gradient(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    settings = ["Training.max_batches=2", "Training.clip_grad_norm=1e-6"]
    config = load(make_dataset(epochs=1, fine_tune_epochs=0), settings)
    trainer = start_run(config, tmp_path / "out", "run").trainer
    norms = []
    step = trainer.optimizer.step

    def measured() -> None:
        norms.append(torch.stack([p.grad.norm() for p in trainer.model.parameters()]).norm().item())
        step()

    trainer.optimizer.step = measured  # type: ignore[method-assign,assignment]
    trainer.fit()
    assert len(norms) == 2
    assert max(norms) <= 1.01e-6


def test_evaluation_does_not_depend_on_the_batch_size(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    trainer = start_run(load(make_dataset()), tmp_path / "out", "run").trainer
    starts = trainer.label_starts["val"]
    evaluations = [evaluate(trainer.model, trainer.windows, starts, size, "") for size in (1, 7, 1000)]
    assert evaluations[1].loss == pytest.approx(evaluations[0].loss, rel=1e-5)
    assert evaluations[2].errors.overall() == pytest.approx(evaluations[0].errors.overall(), rel=1e-5)


def test_a_loss_that_is_not_finite_is_reported_with_its_batch(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    trainer = start_run(load(make_dataset(epochs=3)), tmp_path / "out", "run").trainer
    before = trainer.folder.last.read_bytes()
    step, seen = trainer._step, []

    def poisoned_step(stage: Any, batch: Any) -> torch.Tensor:
        seen.append(batch)
        if len(seen) == 3:
            batch.target[0, 0, 0] = torch.inf
        return step(stage, batch)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trainer, "_step", poisoned_step)
        with pytest.raises(InputError, match=r"epoch 1, batch 3: found a loss or gradient that is not finite") as fault:
            trainer.fit()
    message = str(fault.value)
    assert re.search(
        r"label starts (\d+ ){8}\.\.\.; largest activations with the weights of .*last\.pt: \S+ \d", message
    )
    assert trainer.folder.last.read_bytes() == before


def test_the_largest_activation_is_found_by_module() -> None:
    graphs = dense_graphs(*[torch.eye(3, dtype=torch.bool)] * 2, torch.randn(3, 4))
    sizes = Sizes(steps_per_hour=4, weeks=0, days=0, hours=2, horizon=2, channels=8, layers=1, heads=2)
    model = make_network("paper", graphs, sizes)
    with torch.no_grad():
        model.encoder[0].temporal.value.bias.fill_(1e6)
    inputs = Inputs(torch.randn(2, 3, 8), torch.randn(2, 3), torch.zeros(2))
    batch = Batch(inputs, torch.randn(2, 3, 2), torch.randn(2, 3, 2))
    (name, value), *_ = largest_activations(model.eval(), batch)
    assert name.startswith("encoder.0.temporal")
    assert value > 1e5
    assert not any(module._forward_hooks for module in model.modules())


def test_a_module_that_was_nan_once_stays_nan() -> None:
    twice = nn.Identity()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice = twice

        def forward(self, inputs: Inputs) -> torch.Tensor:
            return twice(twice(inputs.series * torch.nan).nan_to_num(3.0))

    inputs = Inputs(torch.ones(2, 3, 8), torch.ones(2, 3), torch.zeros(2))
    ((_, value),) = largest_activations(Model(), Batch(inputs, torch.ones(2, 3, 2), torch.ones(2, 3, 2)))
    assert math.isnan(value)


def test_a_run_of_another_series_is_refused(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    config = load(make_dataset())
    folder = run(config, tmp_path / "out")
    path = config.data.graph_signal_matrix_filename
    with np.load(path) as archive:
        data = archive["data"]
    np.savez(path, data=data + 1)
    with pytest.raises(InputError, match=r"found another series than .* was trained on"):
        open_run(folder, VARIANTS, "cpu")


@pytest.mark.parametrize("variant", ["stid", "residual_mlp"])
def test_weights_keep_the_scaling_that_they_were_trained_with(
    variant: str, make_dataset: DatasetMaker, tmp_path: Path
) -> None:
    path = make_dataset(fine_tune_epochs=0)
    config = load(path, [f"Model.variant={variant}", "Training.max_batches=3"])
    trained = run(config, tmp_path / "out", "trained")
    series = config.data.graph_signal_matrix_filename
    with np.load(series) as archive:
        data = archive["data"]
    data[60, 2] = 2 * data.max()  # an outlier in training, which no test sample sees but through the scaling
    np.savez(series, data=data)
    config = load(path, [f"Model.variant={variant}", f"Training.weights={trained.best}"])
    started = start_run(config, tmp_path / "out", "tested")
    started.trainer.skip()
    score_run(started)
    tested = started.folder
    scalings = [load_checkpoint(folder.best)["scaling"] for folder in (trained, tested)]
    assert scalings[0] == scalings[1]
    assert scalings[0]["maximum"] < prepared_for(config).scaling.maximum
    before, after = (folder.read_predictions()["forecast"] for folder in (trained, tested))
    if variant == "stid":  # the historical profile is another, as the outlier is part of it
        np.testing.assert_array_equal(before, after)
    reopened = open_run(tested, VARIANTS, "cpu").evaluations()["test"].forecast
    assert reopened is not None
    np.testing.assert_allclose(reopened, after, atol=1e-3)


def test_weights_are_of_the_same_sensors_and_graphs(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    path, ids = make_dataset(), tmp_path / "ids.txt"
    (tmp_path / "TINY" / "TINY.csv").write_text("from,to,cost\n8,9,1\n")
    settings = [f"Data.id_filename={ids}", "Training.max_batches=1", "Model.variant=residual_mlp"]
    ids.write_text("7\n8\n9\n10\n11")
    best = run(load(path, settings), tmp_path / "out", "trained").best
    begun = [*settings, f"Training.weights={best}"]
    with pytest.raises(InputError, match=r"best\.pt: its network has Graph\.hops \d, this one 1: a network keeps its"):
        start_run(load(path, [*begun, "Graph.hops=1"]), tmp_path / "out", "hops")
    ids.write_text("7\n8\n9\n11\n10")
    with pytest.raises(
        InputError, match=r"best\.pt: found sensor '10' at position 3, expected '11', as in this series"
    ):
        start_run(load(path, begun), tmp_path / "out", "names")
    assert [folder.name for folder in (tmp_path / "out" / "TINY").iterdir()] == ["trained"]


def test_a_run_is_not_completed_with_other_first_weights(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    path, first = make_dataset(), tmp_path / "best.pt"
    settings = ["Training.max_batches=1", "Model.variant=stid"]
    first.write_bytes(run(load(path, settings), tmp_path / "out", "one").best.read_bytes())
    config = load(path, [*settings, f"Training.weights={first}"])
    complete_run(config, tmp_path / "out", "begun", VARIANTS)
    complete_run(config, tmp_path / "out", "begun", VARIANTS)
    first.unlink()
    complete_run(config, tmp_path / "out", "begun", VARIANTS)
    first.write_bytes(run(load(path, [*settings, "Training.seed=2"]), tmp_path / "out", "two").best.read_bytes())
    with pytest.raises(InputError, match=r"best\.pt: found other weights than .*begun began with, expected the same"):
        complete_run(config, tmp_path / "out", "begun", VARIANTS)


def test_a_run_is_bound_to_the_links_and_names_that_it_was_trained_on(
    make_dataset: DatasetMaker, tmp_path: Path
) -> None:
    path, ids, links = make_dataset(), tmp_path / "ids.txt", tmp_path / "TINY" / "TINY.csv"

    def write(names: str, rows: str = "7,8\n8,9\n") -> None:
        ids.write_text("\n".join(names.split()))
        links.write_text("from,to,cost\n" + rows.replace("\n", ",1\n"))

    names = "7 8 9 10 11"
    write(names)
    config = load(path, [f"Data.id_filename={ids}", "Training.max_batches=1"])
    folder = run(config, tmp_path / "out")
    ways = (
        (folder.best, lambda: open_run(folder, VARIANTS, "cpu")),
        (folder.last, lambda: resume_run(folder, VARIANTS, None)),
        (folder.best, lambda: complete_run(config, tmp_path / "out", "run", VARIANTS)),
    )
    for changed, message in (
        ((names, "7,8\n8,10\n"), f"{links}: found other links"),
        (("8 7 9 10 11",), f"{links}: found other links"),
        (("7 8 9 11 10",), f"{ids}: found other names of sensors"),  # of which no link speaks
    ):
        write(*changed)
        for checkpoint, opened in ways:
            with pytest.raises(InputError) as error:
                opened()
            assert str(error.value) == f"{message} than {checkpoint} was trained on, expected the same file"
    write(names, "8,7\n8,9\n9,8\n")  # the same links, told otherwise
    for _, opened in ways:
        opened()


def test_a_run_is_bound_to_the_rules_by_which_its_series_was_prepared(
    make_dataset: DatasetMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(make_dataset(), ["Training.max_batches=1"])
    folder = run(config, tmp_path / "out")
    monkeypatch.setattr("lib.data.preparing.PREPARED_VERSION", "next")
    with pytest.raises(InputError, match=r"best\.pt: found a series prepared by version .*, expected next.*: train"):
        open_run(folder, VARIANTS, "cpu")
    checkpoint = load_checkpoint(folder.best)
    checkpoint["data_fingerprint"] = checkpoint.pop("made_from")["series"]  # as earlier versions wrote it
    save_checkpoint(folder.best, checkpoint)
    open_run(folder, VARIANTS, "cpu")


@pytest.mark.parametrize("kept", ["another", "none"])
def test_a_run_with_another_historical_profile_is_refused(
    kept: str, make_dataset: DatasetMaker, tmp_path: Path
) -> None:
    config = load(make_dataset(), ["Model.variant=residual_mlp", "Data.start=2024-03-04"])
    folder = run(config, tmp_path / "out")
    for path in (folder.best, folder.last):
        checkpoint = load_checkpoint(path)
        checkpoint["profile_week"] = checkpoint["profile_week"] * 1.01 if kept == "another" else None
        save_checkpoint(path, checkpoint)
    with pytest.raises(InputError, match=r"best\.pt: found the historical profile of an earlier version"):
        open_run(folder, VARIANTS, "cpu")
    with pytest.raises(InputError, match=r"last\.pt: found the historical profile of an earlier version"):
        resume_run(folder, VARIANTS, None)


def test_broken_checkpoints_are_named(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    with pytest.raises(InputError, match="no such file, expected a checkpoint"):
        load_checkpoint(path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="cannot be read as a checkpoint of tensors and plain values"):
        load_checkpoint(path)
    torch.save({"format": Path("x")}, path)  # an object that only a pickle could bring back
    with pytest.raises(InputError, match="cannot be read as a checkpoint of tensors and plain values"):
        load_checkpoint(path)
    torch.save({"format": 0}, path)
    with pytest.raises(InputError, match="found checkpoint format 0, expected 3"):
        load_checkpoint(path)


@pytest.mark.skipif(not (REAL_DATA / "YINCHUAN").exists(), reason="real data are not part of the repository")
def test_a_short_training_on_real_traffic_beats_the_last_value(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    with np.load(REAL_DATA / "YINCHUAN" / "YINCHUAN.npz", allow_pickle=False) as archive:
        data = archive["data"][:2200]
    path = make_dataset(data, "YINCHUAN", days=3, hours=9, horizon=12, points_per_hour=12, fine_tune_epochs=2)
    links = (REAL_DATA / "YINCHUAN" / "YINCHUAN.csv").read_text()
    (tmp_path / "YINCHUAN" / "YINCHUAN.csv").write_text(links)
    config = load(path, ["Training.d_model=16", "Training.learning_rate=0.01"])
    metrics = run(config, tmp_path / "out").read_metrics()
    assert metrics["test"]["overall"]["mae"] < metrics["baselines"]["last value"]["overall"]["mae"]
