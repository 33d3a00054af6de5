"""The loop of every training: resume, early stopping, validation, checkpoints, progress, TensorBoard.

A trainer writes the body of the loop::

    training = Training(options.epochs, unit="epoch", select="accuracy", folder=folder, settings=settings, parts=parts)
    for epoch in training:  # 1, 2, ..., or on from where a killed training stood
        training.log(loss=train_epoch())
        if training.validates and training.improved(validate()):
            model.save_pretrained(folder / "model")
    return training.record()
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fairseq_ext.training.board import Board
from fairseq_ext.training.checkpoint import CHECKPOINT, Checkpoint
from fairseq_ext.training.errors import CheckpointError, OptionError
from fairseq_ext.training.files import output_folder
from fairseq_ext.training.progress import Parts, progress

__all__ = ["Training", "finite", "seed_of"]

LOG_EVERY = 20
REPEATED, REPEATED_SECONDS = 0.01, 5.0
"""What a killed training may have to repeat: this part of its steps, if they have not taken longer than these seconds.

A checkpoint holds the whole history: with one for each of many short steps, saving would take longer than training.
"""


def seed_of(*numbers: int) -> int:
    """A seed for every tuple of numbers, such as the seed of a run, its step and the rank of the process."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def finite(scores: Tensor, advice: str = "lower --lr") -> Tensor:
    """``scores``, if all are finite: the loss before a step does not tell whether the scores after it are.

    Raises:
        OptionError: some scores are not finite; the message ends with ``advice``.
    """
    if not scores.isfinite().all():
        raise OptionError(f"the training has diverged, as the model's scores are not finite; {advice}")
    return scores


class Training:
    """An iterable over the steps, or epochs, of one training.

    Nothing is read, written or waited for before the iteration begins. With a ``folder`` the training is then resumed
    from ``checkpoint.pt``, or proves that it can write one; after each validation, and each ``save_every`` steps, the
    checkpoint is replaced, unless the last one is less than 1 % of the steps and 5 seconds old. It always is after the
    last step, and after a better validation with ``best``. A resumed training ends as an uninterrupted one, bit for bit
    on a CPU, if the body draws its random numbers from ``seed`` or from a
    :class:`~fairseq_ext.training.checkpoint.RandomState` among the parts.

    Args:
        total: number of steps, at most.
        unit: what a step is called, ``"step"`` or ``"epoch"``. Default: ``"step"``.
        select: the metric of the validation that picks the best step.
        lower_is_better: whether that metric is a loss. Default: False.
        tie: a loss of the validation that decides between steps of equal ``select``. Default: none; the first of them
            is then the best.
        validate_every: steps between validations; the last step always has one. 0: no validation, and no best step.
            Default: 1.
        validate_from: first step that may have a validation. Default: 1.
        patience: steps without a better validation after which the training ends; 0: it does not. Default: 0.
        least: the step before which ``patience`` does not end the training. Default: 0.
        until: tells from the history whether the training ends; asked after each validation. Default: it does not.
        save_every: steps between checkpoints, beside the ones after validations; 0: none. Default: 0.
        seed: if given, torch's generators are seeded anew before each step, from the seed, the step and the process.
        folder: folder of ``checkpoint.pt``, and of ``tensorboard`` if the training is no run of an experiment. None
            keeps nothing. Default: None.
        settings: a checkpoint with other settings is refused. See :class:`~fairseq_ext.training.settings.Settings`.
        parts: parts of a checkpoint beside the progress, see :class:`~fairseq_ext.training.checkpoint.Checkpoint`.
        best: where the body keeps the best model: a training that is resumed must find it there.
        accelerator: devices and processes, of which the first writes. Default: a single process.
        name: name shown beside the progress bar.
        advice: what to do about a loss that is not finite. Default: ``"lower --lr"``.

    Raises:
        OptionError: while iterating: a checkpoint with other settings, or a loss that is not finite.
        CheckpointError: while iterating: a checkpoint that is damaged or cannot be written.
    """

    def __init__(
        self,
        total: int,
        *,
        select: str,
        unit: str = "step",
        lower_is_better: bool = False,
        tie: str = "",
        validate_every: int = 1,
        validate_from: int = 1,
        patience: int = 0,
        least: int = 0,
        until: Callable[[Sequence[Mapping[str, Any]]], bool] | None = None,
        save_every: int = 0,
        seed: int | None = None,
        folder: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
        parts: Mapping[str, Any] | None = None,
        best: Path | None = None,
        accelerator: Any | None = None,
        name: str = "",
        advice: str = "lower --lr",
    ) -> None:
        self.total, self.unit, self.select, self.sign = total, unit, select, -1 if lower_is_better else 1
        self.tie = tie
        self.validate_every, self.validate_from, self.save_every = validate_every, validate_from, save_every
        self.patience, self.least, self.until, self.seed = patience, least, until, seed
        self.folder, self.best, self.accelerator, self.name, self.advice = folder, best, accelerator, name, advice
        self.main = accelerator is None or accelerator.is_main_process
        self.progress: dict[str, Any] = {"step": 0, "seconds": 0.0, "best": None, "best_step": 0, "history": []}
        self.progress["logged"] = {}  # sums since the last entry of the history, and their steps
        self.checkpoint = None
        if folder is not None:
            self.checkpoint = Checkpoint(Path(folder) / CHECKPOINT, settings or {}, self.progress, **(parts or {}))
        self._recent: list[dict[str, Any]] = []
        self._shown: dict[str, float] = {}
        self._best_entry: dict[str, Any] = {}
        """The validation at the best step; empty before there is one."""

    @property
    def step(self) -> int:
        """The step that was done last, or is under way: 1, 2, ..."""
        return self.progress["step"]

    @property
    def best_step(self) -> int:
        """The best step so far; 0 before a validation."""
        return self.progress["best_step"]

    @property
    def validates(self) -> bool:
        """Whether this step ends with a validation."""
        if not self.validate_every or not self.step:
            return False
        due = self.step % self.validate_every == 0 and self.step >= self.validate_from
        return due or self.step == self.total

    @property
    def _saves(self) -> bool:
        return self.validates or (self.save_every > 0 and self.step % self.save_every == 0)

    @property
    def _ends_early(self) -> bool:
        if not self.validates:
            return False
        waited = self.step - self.progress["best_step"]
        out_of_patience = bool(self.patience) and self.step >= self.least and waited >= self.patience
        return out_of_patience or (self.until is not None and self.until(self.progress["history"]))

    def __iter__(self) -> Iterator[int]:
        if self.checkpoint and self.checkpoint.restore():
            history, best_step = self.progress["history"], self.progress["best_step"]
            self._best_entry = next((entry for entry in history if entry[self.unit] == best_step), {})
            if best_step and self.best and not self.best.exists():
                raise CheckpointError(f"{self.best}: the best model is not there; delete {self.checkpoint.path} too")
        elif self.checkpoint and self.main:
            output_folder(self.checkpoint.path.parent)
            self.checkpoint.prove()
        if self.accelerator:
            self.accelerator.wait_for_everyone()  # nobody replaces the checkpoint before all have read it
        runs = Parts.around()
        if runs:
            runs.resume(self.step / self.total)
        self._saved_step, self._saved_at = self.step, time.monotonic()
        bar = progress(total=self.total, initial=self.step, unit=self.unit, desc=self.name, leave=None)
        self._board = Board(self.folder, self.step)
        with bar, contextlib.closing(self._board):
            while self.step < self.total and not self._ends_early:
                self.progress["step"] += 1
                if self.seed is not None:
                    rank = self.accelerator.process_index if self.accelerator else 0
                    torch.manual_seed(seed_of(self.seed, self.step - 1, rank))
                self._start = time.perf_counter()
                yield self.step
                self._end_step(bar)
                if runs:
                    runs.move(self.step / self.total)
        if self.accelerator:
            self.accelerator.wait_for_everyone()  # the others read next what the first process has written

    def log(self, **values: Tensor | float) -> None:
        """Log the values of a step, each a mean over this process's share. The step's timing ends here."""
        self._recent.append({name: v.detach() if isinstance(v, Tensor) else v for name, v in values.items()})
        full = self.unit == "epoch" or len(self._recent) == LOG_EVERY or self.step == self.total
        flushed = full or self._saves  # a loss that is not finite must not be validated or saved
        if flushed:
            self._wait()
        self.progress["seconds"] += time.perf_counter() - self._start
        if flushed:
            self._flush()

    def improved(self, metrics: Mapping[str, Any]) -> bool:
        """Record a validation; returns whether it is the best so far."""
        entry = {**self._entry(), **metrics}
        self.progress["history"].append(entry)
        self._board.write("valid", metrics, self.step)
        value = self.sign * metrics[self.select]
        if not math.isfinite(value):
            raise OptionError(f"{self.unit} {self.step}: the validation's {self.select} is {value}; {self.advice}")
        better = self.progress["best"] is None or self._rank(metrics) > self._rank(self._best_entry)
        if better:
            self._best_entry = entry
            self.progress |= {"best": value, "best_step": self.step}
        return better

    def record(self) -> dict[str, Any]:
        """The record of the training: its best step with the validation there, steps, seconds and history."""
        progress, best = self.progress, self._best_entry
        at_best = {f"valid_{self.select}": best[self.select], f"best_{self.unit}": best[self.unit]} if best else {}
        return {
            **at_best,
            f"{self.unit}s": progress["step"],
            f"seconds_per_{self.unit}": progress["seconds"] / max(progress["step"], 1),
            "history": progress["history"],
        }

    def _rank(self, metrics: Mapping[str, Any]) -> tuple[float, float]:
        """The key by which validations are compared."""
        return self.sign * metrics[self.select], -metrics[self.tie] if self.tie else 0.0

    def _end_step(self, bar: tqdm) -> None:
        if self.unit == "epoch" and not self.validates:
            self.progress["history"].append(self._entry())
        if self.progress["best"] is not None:
            self._shown[f"best {self.select}"] = self.sign * self.progress["best"]
        bar.set_postfix({name: f"{value:.4g}" for name, value in self._shown.items()}, refresh=False)
        bar.update()
        if self._saves and self.checkpoint and self.main and self._save_pays():
            self._board.flush()
            self.checkpoint.save()
            self._saved_step, self._saved_at = self.step, time.monotonic()

    def _save_pays(self) -> bool:
        """Whether the last checkpoint is too old; the body's best model on disk is never newer than the checkpoint."""
        return (
            self.step - self._saved_step >= REPEATED * self.step
            or time.monotonic() - self._saved_at >= REPEATED_SECONDS
            or (self.best is not None and self.step == self.best_step)
            or self.step == self.total
            or self._ends_early
        )

    def _wait(self) -> None:
        """Wait for a GPU, which lags behind the commands it was given, so that its steps are timed in full."""
        devices = {value.device for value in self._recent[-1].values() if isinstance(value, Tensor)}
        for device in devices | ({self.accelerator.device} if self.accelerator else set()):
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    def _flush(self) -> None:
        """Average the values logged since the last call, over all processes, for the next entry."""
        names = list(self._recent[0])
        rows = torch.stack(
            [
                torch.stack([torch.as_tensor(row[name], dtype=torch.float64, device="cpu") for name in names])
                for row in self._recent
            ]
        )
        means = rows.mean(0)
        if self.accelerator and self.accelerator.num_processes > 1:
            means = self.accelerator.reduce(means.to(self.accelerator.device), "mean").cpu()
        logged = dict(zip(names, means.tolist(), strict=True))
        for name, value in logged.items():
            if not math.isfinite(value):
                raise OptionError(f"{self.unit} {self.step}: the {name} is {value}; {self.advice}")
            total, count = self.progress["logged"].get(name, (0.0, 0))
            self.progress["logged"][name] = (total + value * len(self._recent), count + len(self._recent))
        self._board.write("train", logged, self.step)
        self._shown |= logged
        self._recent = []

    def _entry(self) -> dict[str, Any]:
        """This step with the means of the values logged since the last entry."""
        means = {name: total / count for name, (total, count) in self.progress["logged"].items()}
        self.progress["logged"] = {}
        return {self.unit: self.step, **means}
