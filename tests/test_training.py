"""The engine, end to end on a tiny data set: stages, best weights, resuming, determinism."""

import contextlib
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lib.checkpoints import BEST, LAST, load_checkpoint, save_checkpoint
from lib.config import Config, load_config
from lib.data import Batch
from lib.diagnostics import largest_activations
from lib.errors import InputError
from lib.experiments import Experiment, finish_experiment, open_run, resume_experiment, start_experiment
from lib.files import load_json
from lib.metrics import ForecastErrors
from lib.preparation import prepared_for
from lib.reporting import read_log
from lib.training import Trainer, evaluate
from model.build import build_model, restore_model
from tests.conftest import REAL_DATA, DatasetMaker

pytestmark = pytest.mark.usefixtures("no_figures")


def start(config: Config, root: Path, name: str = "run") -> Experiment:
    return start_experiment(config, root, name, build_model)


def run(config: Config, root: Path, name: str = "run") -> Path:
    experiment = start(config, root, name)
    finish_experiment(experiment)
    return experiment.folder


def weights_of(folder: Path, name: str = LAST) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / name)["weights"]


def assert_same_weights(first: Path, second: Path) -> None:
    for name in (LAST, BEST):
        ones, others = weights_of(first, name), weights_of(second, name)
        assert all(torch.equal(ones[key], others[key]) for key in ones)


def test_reported_metrics_are_those_of_the_saved_forecasts(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    config = load_config(make_dataset())
    folder = run(config, tmp_path / "out")
    with np.load(folder / "predictions.npz", allow_pickle=False) as archive:
        predictions = {name: archive[name] for name in archive.files}
    prepared = prepared_for(config)
    for sample, start in enumerate(predictions["label_starts"]):
        np.testing.assert_array_equal(predictions["target"][sample].T, prepared.flow[start : start + 3])
    errors = ForecastErrors.zero(3)
    errors.update(torch.from_numpy(predictions["forecast"]), torch.from_numpy(predictions["target"]))
    reported = load_json(folder / "metrics.json")["test"]
    assert reported["overall"] == pytest.approx(errors.overall(), rel=1e-6)
    header, *rows = (folder / "metrics.csv").read_text().splitlines()
    assert header.split(",")[:3] == ["forecast", "horizon", "mae"]
    assert float(rows[3].split(",")[2]) == reported["overall"]["mae"]

    opened = open_run(folder, restore_model, "cpu")
    again = evaluate(opened.model, opened.windows, predictions["label_starts"], 7, "", keep_forecast=True)
    np.testing.assert_allclose(again.forecast, predictions["forecast"], atol=1e-3)
    assert again.errors.overall() == pytest.approx(reported["overall"], rel=1e-5)


def test_the_same_seed_gives_the_same_metrics_to_the_bit(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    path = make_dataset(extra="seed = 3\n")
    folders = [run(load_config(path), tmp_path / "out", name) for name in ("first", "second")]
    assert len({(folder / "metrics.json").read_bytes() for folder in folders}) == 1
    assert_same_weights(*folders)
    other = run(load_config(path, ["Training.seed=4"]), tmp_path / "out", "third")
    assert (other / "metrics.json").read_bytes() != (folders[0] / "metrics.json").read_bytes()


def kill_in_step(experiment: Experiment, last_step: int) -> None:
    """Run the experiment to its end, or until so many steps of the optimiser are done, like a kill in the next one."""
    step, steps = experiment.trainer._step, iter(range(last_step))

    def step_until_killed(stage: Any, batch: Any) -> torch.Tensor:
        if next(steps, None) is None:
            raise SystemExit
        return step(stage, batch)

    with pytest.MonkeyPatch.context() as patched, contextlib.suppress(SystemExit):
        patched.setattr(experiment.trainer, "_step", step_until_killed)
        finish_experiment(experiment)


def assert_same_runs(whole: Path, resumed: Path) -> None:
    assert_same_weights(whole, resumed)
    assert (whole / "metrics.json").read_bytes() == (resumed / "metrics.json").read_bytes()
    timeless = [[{**entry, "seconds": 0} for entry in read_log(path)] for path in (whole, resumed)]
    assert timeless[0] == timeless[1]


def test_resuming_equals_not_stopping(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    settings = ["Training.dropout=0.2", "Training.max_batches=3", "Runtime.checkpoint_minutes=1e-9"]
    config = load_config(make_dataset(epochs=2, fine_tune_epochs=1), settings)
    whole = run(config, tmp_path / "out", "whole")
    for last_step in range(10):  # before the first step, within and between the epochs of both stages, at the end
        killed = start(config, tmp_path / "out", f"killed-{last_step}")
        kill_in_step(killed, last_step)
        resumed = resume_experiment(killed.folder, restore_model, None)
        assert resumed.config == config
        finish_experiment(resumed)
        assert_same_runs(whole, resumed.folder)


@pytest.mark.parametrize(
    "settings",
    [
        [],  # checkpoints by epoch
        [
            *("Model.variant=enhanced", "Training.dropout=0.2", "Training.schedule=cosine"),
            *("Training.weight_decay=0.1", "Runtime.micro_batch=5", "Runtime.gradient_checkpointing=on"),
            *("Runtime.precision=bf16", "Runtime.data=host", "Runtime.checkpoint_minutes=1e-9"),
            "Training.early_samples=on",
        ],
    ],
)
def test_a_run_that_is_killed_again_and_again_ends_the_same(
    make_dataset: DatasetMaker, tmp_path: Path, settings: list[str]
) -> None:
    config = load_config(make_dataset(epochs=1, fine_tune_epochs=1), ["Training.max_batches=4", *settings])
    whole = run(config, tmp_path / "out", "whole")
    experiment = start(config, tmp_path / "out", "killed")
    for last_step in (2, 5, 1, 9):
        kill_in_step(experiment, last_step)
        experiment = resume_experiment(experiment.folder, restore_model, None)
    finish_experiment(experiment)
    assert_same_runs(whole, experiment.folder)


def test_ctrl_c_saves_and_says_how_to_go_on(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    config = load_config(make_dataset(epochs=1, fine_tune_epochs=0), ["Training.max_batches=4"])
    whole = run(config, tmp_path / "out", "whole")
    experiment = start(config, tmp_path / "out", "interrupted")
    step = experiment.trainer._step

    def interrupted_step(stage: Any, batch: Any) -> torch.Tensor:
        if experiment.trainer.progress.batch == 1:
            signal.raise_signal(signal.SIGINT)
        return step(stage, batch)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(experiment.trainer, "_step", interrupted_step)
        with pytest.raises(KeyboardInterrupt, match=r"go on with: .* --resume"):
            finish_experiment(experiment)
    resumed = resume_experiment(experiment.folder, restore_model, None)
    assert resumed.trainer.progress.batch == 2
    finish_experiment(resumed)
    assert_same_runs(whole, resumed.folder)


def test_a_run_is_there_whole_or_not(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    config = load_config(make_dataset())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(InputError, match="cannot be made: No space left on device"):
            start(config, tmp_path / "out")
    assert list((tmp_path / "out" / "TINY").iterdir()) == []
    start(config, tmp_path / "out")
    with pytest.MonkeyPatch.context() as patched:  # before anything takes time
        patched.setattr("lib.experiments.prepared_for", lambda _: pytest.fail("the name is taken"))
        with pytest.raises(InputError, match="found a run in"):
            start(config, tmp_path / "out")


def test_the_second_stage_starts_from_the_best_weights_of_the_first(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    config = load_config(make_dataset(epochs=2, fine_tune_epochs=1))
    experiment = start(config, tmp_path / "out")
    trainer, folder = experiment.trainer, experiment.folder
    losses = iter([0.5, 0.9, 0.7])  # the second epoch is worse, and so is the third
    snapshots: list[dict[str, torch.Tensor]] = []
    step = trainer._step

    def remember(*arguments: Any) -> torch.Tensor:
        snapshots.append({key: value.clone() for key, value in trainer.model.state_dict().items()})
        return step(*arguments)

    evaluation = evaluate(trainer.model, trainer.windows, trainer.label_starts["val"], 16, "")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lib.training.evaluate", lambda *_: evaluation._replace(loss=next(losses)))
        patched.setattr(trainer, "_step", remember)
        trainer.fit()
    batches = len(snapshots) // 3
    best = weights_of(folder, BEST)
    assert [entry["best"] for entry in trainer.progress.history] == [True, False, False]
    assert all(torch.equal(best[key], snapshots[batches][key]) for key in best)  # after epoch 1
    assert all(torch.equal(best[key], snapshots[2 * batches][key]) for key in best)  # where stage 2 starts


def test_a_cosine_falls_within_each_stage(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    config = load_config(make_dataset(epochs=2, fine_tune_epochs=1), ["Training.schedule=cosine"])
    trainer = start(config, tmp_path / "out").trainer
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
    config = load_config(make_dataset(epochs=9, fine_tune_epochs=9, extra="patience = 2\n"))
    trainer = start(config, tmp_path / "out").trainer
    evaluation = evaluate(trainer.model, trainer.windows, trainer.label_starts["val"], 16, "")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lib.training.evaluate", lambda *_: evaluation)
        trainer.fit()
    assert [entry["stage"] for entry in trainer.progress.history] == ["teacher forcing"] * 3 + ["fine-tuning"] * 2


def test_max_batches_caps_an_epoch_and_clipping_caps_the_gradient(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    settings = ["Training.max_batches=2", "Training.clip_grad_norm=1e-6"]
    config = load_config(make_dataset(epochs=1, fine_tune_epochs=0), settings)
    trainer = start(config, tmp_path / "out").trainer
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
    trainer = start(load_config(make_dataset()), tmp_path / "out").trainer
    starts = trainer.label_starts["val"]
    evaluations = [evaluate(trainer.model, trainer.windows, starts, size, "") for size in (1, 7, 1000)]
    assert evaluations[1].loss == pytest.approx(evaluations[0].loss, rel=1e-5)
    assert evaluations[2].errors.overall() == pytest.approx(evaluations[0].errors.overall(), rel=1e-5)


def test_a_loss_that_is_not_finite_is_reported_with_its_batch(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    trainer = start(load_config(make_dataset(epochs=3)), tmp_path / "out").trainer
    before = (trainer.folder / LAST).read_bytes()
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
    assert (trainer.folder / LAST).read_bytes() == before


def test_the_largest_activation_is_found_by_module() -> None:
    model = build_model(
        *[torch.eye(3, dtype=torch.bool)] * 2, torch.randn(3, 4), variant="described",
        input_steps=8, horizon=2, patch_len=4, channels=8, layers=1, heads=2,
    )  # fmt: skip
    with torch.no_grad():
        model.encoder[0].temporal.value.bias.fill_(1e6)
    batch = Batch(torch.randn(2, 3, 8), torch.randn(2, 3), torch.randn(2, 3, 2), torch.randn(2, 3, 2), torch.zeros(2))
    (name, value), *_ = largest_activations(model.eval(), batch)
    assert name.startswith("encoder.0.temporal")
    assert value > 1e5
    assert not any(module._forward_hooks for module in model.modules())


def test_a_run_of_another_series_is_refused(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    config = load_config(make_dataset())
    folder = run(config, tmp_path / "out")
    path = config.data.graph_signal_matrix_filename
    with np.load(path) as archive:
        data = archive["data"]
    np.savez(path, data=data + 1)
    with pytest.raises(InputError, match=r"found another series than .* was trained on"):
        open_run(folder, restore_model, "cpu")


@pytest.mark.parametrize("known", ["another", "none"])
def test_a_run_of_another_rule_of_the_usual_is_refused(known: str, make_dataset: DatasetMaker, tmp_path: Path) -> None:
    config = load_config(make_dataset(), ["Model.variant=perceptron", "Data.start=2024-03-04"])
    folder = run(config, tmp_path / "out")
    for name in ("best.pt", "last.pt"):
        checkpoint = load_checkpoint(folder / name)
        checkpoint["usual_week"] = checkpoint["usual_week"] * 1.01 if known == "another" else None
        save_checkpoint(folder / name, checkpoint)
    with pytest.raises(InputError, match=r"best\.pt: found another rule of what is usual"):
        open_run(folder, restore_model, "cpu")
    with pytest.raises(InputError, match=r"last\.pt: found another rule of what is usual"):
        resume_experiment(folder, restore_model, None)


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
    with pytest.raises(InputError, match="found checkpoint format 0, expected 1"):
        load_checkpoint(path)


@pytest.mark.skipif(not (REAL_DATA / "YINCHUAN").exists(), reason="real data are not part of the repository")
def test_a_short_training_on_real_traffic_beats_the_last_value(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    with np.load(REAL_DATA / "YINCHUAN" / "YINCHUAN.npz", allow_pickle=False) as archive:
        data = archive["data"][:2200]
    path = make_dataset(data, "YINCHUAN", days=3, hours=9, horizon=12, points_per_hour=12, fine_tune_epochs=2)
    links = (REAL_DATA / "YINCHUAN" / "YINCHUAN.csv").read_text()
    (tmp_path / "YINCHUAN" / "YINCHUAN.csv").write_text(links)
    config = load_config(path, ["Training.d_model=16", "Training.learning_rate=0.01"])
    metrics = load_json(run(config, tmp_path / "out") / "metrics.json")
    assert metrics["test"]["overall"]["mae"] < metrics["baselines"]["last value"]["overall"]["mae"]
