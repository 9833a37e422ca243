"""The engine: two stages of training, validation through the rollout, checkpoints, and the test of the best weights.

It owns the loop and all of its state. `lib.interface` says what it needs of a network. From the label starts of a batch
on, a step and a forecast are functions of tensors that never wait for the device: a GPU replays them (`lib.captured`).
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple
from warnings import filterwarnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from lib.captured import Captured, Recorder
from lib.checkpoints import load_checkpoint, random_state, restore_random_state, save_checkpoint
from lib.config import TrainingConfig
from lib.data.windows import Batch, Windows
from lib.diagnostics import largest_activations, largest_first
from lib.distributed import ONE_PROCESS, Processes
from lib.errors import InputError
from lib.interface import Inputs
from lib.losses import loss_values, mean_loss
from lib.metrics import ForecastErrors
from lib.numbers import number_text
from lib.run_folder import RunFolder

CHECK_EVERY = 50  # batches between two looks at the loss on a GPU, where each look waits for it
FINE_TUNING_SHARE = 0.1  # of the learning rate, in stage 2


class Stage(NamedTuple):
    """One of the two stages: how many epochs, at which learning rate, and what the decoder is fed."""

    name: str
    epochs: int
    learning_rate: float
    through_rollout: bool


def stages(config: TrainingConfig) -> tuple[Stage, Stage]:
    """Return both stages: teacher forcing, then fine-tuning through the rollout."""
    return (
        Stage("teacher forcing", config.epochs, config.learning_rate, through_rollout=False),
        Stage("fine-tuning", config.fine_tune_epochs, config.learning_rate * FINE_TUNING_SHARE, through_rollout=True),
    )


@dataclass
class Progress:
    """The progress of training. With the weights and the optimiser it is all that resuming needs."""

    stage: int = 0  # index into the stages
    epoch: int = 0  # finished epochs of that stage
    batch: int = 0  # finished batches of the epoch after those
    loss_sum: float = 0.0  # over the samples of these batches, each by the share of its targets that is observed
    seconds: float = 0.0  # that these batches took
    best_loss: float = math.inf
    epochs_without_better: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry an epoch


class Evaluation(NamedTuple):
    """The result of a pass over a split: mean loss on scaled values, errors in raw units, perhaps the forecasts."""

    loss: float
    errors: ForecastErrors
    measured: ForecastErrors | None  # of the measured targets alone, for a series where some are imputed
    forecast: NDArray[np.float32] | None  # (samples, N, P), raw units; in the first process alone it is whole


class Interruption:
    """Lets a first Ctrl-C, or SIGTERM, wait until the step in progress is done; a second one does not wait.

    Use as a context manager; `asked` says whether to stop. Outside the main thread signals are left alone.
    """

    def __init__(self) -> None:
        self.asked = False

    def _note(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __enter__(self) -> "Interruption":
        signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        self.previous = {number: signal.signal(number, self._note) for number in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


class Evaluator:
    """Forecasts samples through the rollout, and scores them.

    Args:
        model: is put into evaluation mode.
        windows: of the series.
        batch_size: has no influence on the result.
        loss: [Training] loss.
        recorder: captures the work of a batch; None: nothing does.
    """

    def __init__(
        self,
        model: nn.Module,
        windows: Windows,
        batch_size: int,
        loss: str = "mae",
        recorder: Recorder | None = None,
    ) -> None:
        self.model, self.windows, self.batch_size, self.loss = model, windows, batch_size, loss
        horizon, device = len(windows.target_offsets), windows.device
        self.errors = ForecastErrors.zero(horizon, device)
        self.measured = None if windows.measured is None else ForecastErrors.zero(horizon, device)
        self.total = torch.zeros_like(self.errors.absolute[0])  # of the loss
        self.captured = Captured(batch_size, recorder)

    @torch.no_grad()
    def _score(self, label_starts: Tensor) -> tuple[Tensor, ...]:
        """Count the errors of a batch, and return its forecast (B, N, P) in raw units."""
        batch = self.windows.batch(label_starts)
        scaled = self.model(batch.inputs)  # (B, N, P)
        self.total += loss_values(self.loss, scaled, batch.target, batch.observed).sum(dtype=self.total.dtype)
        forecast = self.windows.scaling.to_raw(scaled)
        self.errors.update(forecast, batch.flow)
        if self.measured is not None and batch.measured is not None:
            self.measured.update(forecast, batch.measured)
        return (forecast,)

    def evaluate(
        self,
        label_starts: NDArray[np.int64],
        description: str,
        keep_forecast: bool = False,
        processes: Processes = ONE_PROCESS,
    ) -> Evaluation:
        """Forecast and score all samples with these label starts.

        Args:
            label_starts: (samples,).
            description: the name of the progress bar.
            keep_forecast: whether to return the forecasts too.
            processes: which share the samples out.
        """
        self.model.eval()
        self.total.zero_()
        for errors in (self.errors, self.measured):
            if errors is not None:
                errors.clear()
        forecasts = [torch.empty(0, self.windows.prepared.flow.shape[1], len(self.windows.target_offsets))]
        own = processes.share(label_starts)
        with tqdm(total=len(own), desc=description, unit="sample", leave=False, disable=None) as bar:
            for starts in self.windows.parts(own, self.batch_size):
                (forecast,) = self.captured(self._score, starts)
                if keep_forecast:
                    forecasts.append(forecast.float().cpu())
                bar.update(len(starts))
        kept = processes.gathered(torch.cat(forecasts).numpy()) if keep_forecast else None
        observed = self.windows.observed_targets(label_starts)
        measured = None if self.measured is None else self.measured.summed(processes)
        loss = processes.total(self.total).item() / max(1, observed)
        return Evaluation(loss, self.errors.summed(processes), measured, kept)


def evaluate(
    model: nn.Module,
    windows: Windows,
    label_starts: NDArray[np.int64],
    batch_size: int,
    description: str,
    loss: str = "mae",
    keep_forecast: bool = False,
    recorder: Recorder | None = None,
) -> Evaluation:
    """Forecast all samples through the rollout, and score them, once: see `Evaluator`."""
    return Evaluator(model, windows, batch_size, loss, recorder).evaluate(label_starts, description, keep_forecast)


class Trainer:
    """Trains a model in a folder, where it keeps its checkpoints, and goes on from them.

    Args:
        model: on the windows' device.
        windows: of the series.
        label_starts: of each split.
        config: settings of the training.
        folder: of the run, where the checkpoints are kept.
        extra: plain values and tensors that both checkpoints carry along, for whoever loads them.
        report: called after each epoch with the entries of all epochs so far.
        checkpoint_seconds: the longest time between two checkpoints within an epoch.
        micro_batch: samples computed at once; 0 stands for a whole batch.
        front: the first part of a network, where it mixes the samples of a batch (BatchNorm). It is computed for the
            whole batch and the rest by parts, so that `micro_batch` does not change what is learnt. None: there is no
            such part.
        processes: which share every batch out. The first writes; all have the same weights after each step.
        recorder: captures the work of steps and forecasts; None: nothing does.
    """

    def __init__(
        self,
        model: nn.Module,
        windows: Windows,
        label_starts: Mapping[str, NDArray[np.int64]],
        config: TrainingConfig,
        folder: RunFolder,
        extra: Mapping[str, Any],
        report: Callable[[list[dict[str, Any]]], None],
        checkpoint_seconds: float,
        micro_batch: int = 0,
        front: Callable[[Inputs], Tensor] | None = None,
        processes: Processes = ONE_PROCESS,
        recorder: Recorder | None = None,
    ) -> None:
        self.model, self.windows, self.label_starts = model, windows, label_starts
        self.config, self.folder, self.extra, self.report = config, folder, extra, report
        self.checkpoint_seconds = checkpoint_seconds
        own = config.batch_size // processes.size
        self.micro_batch = min(micro_batch or own, own)
        self.front = front if self.micro_batch < own else None
        self.processes, self.recorder = processes, recorder
        self.stages = stages(config)
        self.progress = Progress()
        self.random_state: Mapping[str, Any] | None = None  # to go on from, within an epoch
        self.optimizer = self._new_optimizer()
        self.captured: dict[Stage, Captured] = {}  # the steps of a stage, with its optimiser

    @cached_property
    def evaluator(self) -> Evaluator:
        """What validates and tests the model."""
        return Evaluator(self.model, self.windows, self.micro_batch, self.config.loss, self.recorder)

    @cached_property
    def network(self) -> nn.Module:
        """The model as training calls it, so that processes exchange gradients."""
        if self.processes.size == 1:
            return self.model
        (sample,) = self.windows.batches(self.label_starts["train"][:1], 1)
        return self.processes.parallel(self.model, sample.inputs)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        weights, decay = self.model.parameters(), self.config.weight_decay
        self.learning_rate = self.stages[self.progress.stage].learning_rate  # of the last step
        if self.windows.device.type != "cuda" and self.recorder is None:
            return torch.optim.AdamW(weights, lr=self.learning_rate, weight_decay=decay)
        # The rate is a tensor, for a graph would repeat a number; without graphs too, so that both round alike.
        rate, capturable = torch.tensor(self.learning_rate, device=self.windows.device), self.recorder is not None
        filterwarnings("ignore", "This instance was constructed with capturable=True", UserWarning)  # not all steps are
        return torch.optim.AdamW(weights, lr=rate, weight_decay=decay, fused=True, capturable=capturable)

    def resume(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on from a `last.pt` that was loaded, whose weights the model has.

        Raises:
            InputError: the checkpoint does not fit the model.
        """
        try:
            self.progress = Progress(**checkpoint["progress"])
            self.optimizer = self._new_optimizer()
            # How it computes is this device's, with graphs or without: of the checkpoint are moments and learning rate.
            own, saved = self.optimizer.state_dict()["param_groups"], checkpoint["optimizer"]
            groups = [
                {**group, "params": kept["params"]} for group, kept in zip(own, saved["param_groups"], strict=True)
            ]
            self.optimizer.load_state_dict({**saved, "param_groups": groups})
            self._set_learning_rate(saved["param_groups"][0]["lr"])
            self.random_state = checkpoint["random_state"]
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.folder.last}: does not fit its run: {error}") from None

    def fit(self) -> None:
        """Train both stages from where progress stands, with checkpoints after every epoch and by time within it.

        Stopped at any moment and resumed from the last checkpoint, it ends with the same weights, on a CPU to the bit.

        Raises:
            InputError: the loss of an epoch is not finite.
            KeyboardInterrupt: by Ctrl-C or SIGTERM, after a checkpoint.
        """
        while True:
            stage = self.stages[self.progress.stage]
            patience = self.config.patience
            stalled = bool(patience) and self.progress.epochs_without_better >= patience
            if self.progress.epoch < stage.epochs and not stalled:
                self._run_epoch(stage)
            elif self.progress.stage + 1 < len(self.stages):
                self._start_next_stage()
            else:
                return

    def _start_next_stage(self) -> None:
        """Take the best weights so far into the next stage, with a fresh optimiser."""
        self.progress.stage += 1
        self.progress.epoch = 0
        self.progress.epochs_without_better = 0
        if math.isfinite(self.progress.best_loss):
            self._load_best()
        self.captured.clear()
        self.optimizer = self._new_optimizer()

    def _run_epoch(self, stage: Stage) -> None:
        progress = self.progress
        number = len(progress.history) + 1
        train_loss = self._train_epoch(stage, number)
        self.save_last()
        started = time.perf_counter()
        starts = self.label_starts["val"]
        validated = self.evaluator.evaluate(starts, f"epoch {number} validation", processes=self.processes)
        better = validated.loss < progress.best_loss
        progress.history.append(
            {
                "epoch": number,
                "stage": stage.name,
                "learning_rate": self.learning_rate,
                "train_loss": train_loss,
                "val_loss": validated.loss,
                **{f"val_{name}": value for name, value in validated.errors.overall().items()},
                "val_mae_by_horizon": [step["mae"] for step in validated.errors.by_horizon()],
                **({} if validated.measured is None else {"val_mae_measured": validated.measured.overall()["mae"]}),
                "best": better,
                "seconds": round(progress.seconds + time.perf_counter() - started, 3),
            }
        )
        progress.epoch += 1
        progress.batch, progress.loss_sum, progress.seconds = 0, 0.0, 0.0
        progress.epochs_without_better = 0 if better else progress.epochs_without_better + 1
        if better:
            progress.best_loss = validated.loss
            self.save_best()
        if self.processes.first:
            self.report(progress.history)  # before the checkpoint: a run that goes on from it has reported this epoch
        self.save_last()

    def _train_epoch(self, stage: Stage, number: int) -> float:
        """Train what is left of an epoch and return its mean loss. Its order depends on seed and number alone."""
        progress, batch_size = self.progress, self.config.batch_size
        torch.manual_seed(self.config.seed * 100_003 + number)
        starts = torch.from_numpy(self.label_starts["train"])
        order = starts[torch.randperm(len(starts))]
        if self.config.max_batches:
            order = order[: self.config.max_batches * batch_size]
        if progress.batch and self.random_state is not None:
            restore_random_state(self.random_state)
        self.model.train()
        own = self.config.batch_size // self.processes.size
        captured = self.captured.setdefault(stage, Captured(own, self.recorder))
        # Of the samples of this process.
        self.loss_sum = torch.tensor(progress.loss_sum if self.processes.first else 0.0, device=self.windows.device)
        check_every = 1 if self.windows.device.type == "cpu" else CHECK_EVERY
        done = min(progress.batch * batch_size, len(order))
        name = f"epoch {number} {stage.name}"
        bar = tqdm(total=len(order), initial=done, desc=name, unit="sample", leave=False, disable=None)
        with bar, Interruption() as interruption:
            saved = started = time.perf_counter()
            for label_starts in self.windows.parts(order[done:], batch_size, self.processes):
                self._draw_apart(number)
                self._follow_schedule(stage)
                loss, loss_sum = captured(partial(self._step_from, stage), label_starts)
                self.loss_sum += loss_sum
                progress.batch += 1
                now = time.perf_counter()
                stop, save = self.processes.any(interruption.asked, now - saved > self.checkpoint_seconds)
                save = save or stop
                # Before a checkpoint too: it replaces the last good weights.
                if save or progress.batch % check_every == 0 or progress.batch * batch_size >= len(order):
                    first = max(0, progress.batch - check_every)
                    self._check_finite(number, order[first * batch_size : progress.batch * batch_size])
                    now = time.perf_counter()
                progress.seconds, started = progress.seconds + now - started, now
                if save:
                    self.save_last()
                    saved = now
                if stop:
                    raise KeyboardInterrupt
                bar.update(min(batch_size, len(order) - bar.n))
                if not bar.disable and bar.n == bar.last_print_n:  # only when the bar is drawn: .item() waits
                    bar.set_postfix(loss=number_text(loss.item()), refresh=False)
        observed = max(1, self.windows.observed_targets(order.numpy()))
        return self.processes.total(self.loss_sum).item() / (observed / self.windows.targets_per_sample)

    def _draw_apart(self, epoch: int) -> None:
        """Let dropout draw other values in each of several processes; by the batch, so that there is no state to keep.

        One process goes on from where its generator is.
        """
        if self.processes.size > 1:
            numbers = (self.config.seed, epoch, self.progress.batch, self.processes.rank)
            torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))

    def _step_from(self, stage: Stage, label_starts: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step on the samples with these label starts; return their mean loss, and its sum over them."""
        batch = self.windows.batch(label_starts)
        loss = self._step(stage, batch)
        return loss, loss * batch.weight

    def _step(self, stage: Stage, batch: Batch) -> Tensor:
        """Take one step of the optimiser and return the loss, still on the device.

        Of several processes each gives its share of the batch, and gets the loss of this share.
        """
        network = self.network  # made before anything is computed by its weights
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.windows.device)
        counts_for = self.processes.part_of_mean(batch.weight, self.windows.device)
        *parts, last = batch.split(self.micro_batch)
        tokens = leaf = None
        # In several processes also where there is one part: in others there may be two, and all do the same in turn.
        if self.front is not None and (parts or self.processes.size > 1):
            tokens = self.front(batch.inputs)  # (B, N, M, C)
            leaf = tokens.detach().requires_grad_()
            batch = replace(batch, inputs=batch.inputs._replace(tokens=leaf))
            *parts, last = batch.split(self.micro_batch)
            # The last part carries the gradients of the others through the front, so that one backward pass has all.
            last = replace(last, inputs=last.inputs._replace(tokens=tokens[-len(last) :]))
        for part in parts:
            with self.processes.without_exchange(network):
                part_loss = self._loss(stage, part) * part.share_of(batch)
                part_loss.backward(counts_for)
            loss += part_loss.detach()
        last_loss = self._loss(stage, last) * last.share_of(batch)
        if tokens is None or leaf is None or leaf.grad is None:  # the released code never trains its front
            last_loss.backward(counts_for)
        else:
            torch.autograd.backward([last_loss, tokens], [counts_for, leaf.grad])
        loss += last_loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad_norm or math.inf)
        self.optimizer.step()
        return loss + 0 * norm  # not finite where the gradient is not

    def _loss(self, stage: Stage, batch: Batch) -> Tensor:
        """Return the mean loss of a batch, by the forecast of this stage."""
        inputs = batch.inputs if stage.through_rollout else batch.with_teacher
        return mean_loss(self.config.loss, self.network(inputs), batch.target, batch.observed)

    def _follow_schedule(self, stage: Stage) -> None:
        """Set the learning rate: a function of how far the stage has come, so that there is no state to resume."""
        if self.config.schedule == "cosine":
            batches = -(-len(self.label_starts["train"]) // self.config.batch_size)
            batches = min(batches, self.config.max_batches or batches)
            done = (self.progress.epoch + self.progress.batch / batches) / stage.epochs
            self._set_learning_rate(stage.learning_rate * 0.5 * (1 + math.cos(math.pi * done)))

    def _set_learning_rate(self, rate: float) -> None:
        self.learning_rate = rate
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _check_finite(self, epoch: int, label_starts: Tensor) -> None:
        """Raise when a loss or gradient since the last check was not finite; `label_starts` are those since then."""
        if math.isfinite(self.processes.total(self.loss_sum).item()):
            return
        self.model.load_state_dict(load_checkpoint(self.folder.last)["weights"])  # the last good ones
        batches = self.windows.batches(label_starts, self.micro_batch)
        activations = [item for batch in batches for item in largest_activations(self.model, batch)]
        shown = ", ".join(f"{name} {value:.3g}" for name, value in largest_first(activations))
        starts = " ".join(map(str, label_starts.tolist()[:8]))
        raise InputError(
            f"epoch {epoch}, batch {self.progress.batch}: found a loss or gradient that is not finite, expected finite "
            f"ones: lower learning_rate or set clip_grad_norm; label starts {starts} ...; largest activations with the "
            f"weights of {self.folder.last}: {shown}"
        )

    def skip(self) -> None:
        """Count all epochs as done, for weights that are tested as they are, and write both checkpoints."""
        self.progress.stage = len(self.stages) - 1
        self.progress.epoch = self.stages[-1].epochs
        self.save_best()
        self.save_last()

    def save_best(self) -> None:
        """Write the checkpoint of the best weights."""
        if self.processes.first:
            save_checkpoint(self.folder.best, self._content())

    def save_last(self) -> None:
        """Write the checkpoint that training goes on from."""
        checkpoint = self.checkpoint()
        if self.processes.first:
            save_checkpoint(self.folder.last, checkpoint)

    def checkpoint(self) -> dict[str, Any]:
        """Return all that it takes to go on."""
        if self.progress.batch:
            self.progress.loss_sum = self.processes.total(self.loss_sum).item()
        optimizer = self.optimizer.state_dict()
        groups = [{**group, "lr": self.learning_rate} for group in optimizer["param_groups"]]
        state = {"optimizer": {**optimizer, "param_groups": groups}, "random_state": random_state()}
        how = {"threads": torch.get_num_threads(), "processes": self.processes.size}
        return {**self._content(), **state, **how}

    def _content(self) -> dict[str, Any]:
        return {**self.extra, "weights": self.model.state_dict(), "progress": asdict(self.progress)}

    def test(self, split: str = "test") -> Evaluation:
        """Score the best weights on a split, keeping the forecasts."""
        self._load_best()
        return self.evaluator.evaluate(self.label_starts[split], split, keep_forecast=True, processes=self.processes)

    def _load_best(self) -> None:
        """Give the model the best weights, in all processes those that the first has written."""
        if self.processes.first:
            self.model.load_state_dict(load_checkpoint(self.folder.best)["weights"])
        self.processes.take_weights_of_first(self.model)


def epoch_line(entry: Mapping[str, Any]) -> str:
    """Return what the screen shows of an epoch."""
    mae = entry["val_mae"]
    return (
        f"epoch {entry['epoch']:3d}  {entry['stage']:15s}  train {number_text(entry['train_loss'])}  "
        f"val {number_text(entry['val_loss'])}  val MAE {'-' if mae is None else number_text(mae)}  "
        f"{entry['seconds']:.1f} s{'  best' if entry['best'] else ''}"
    )
