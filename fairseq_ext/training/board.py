"""The TensorBoard curves of every training.

The curves of a run are in ``OUT/tensorboard/RUN``, so that ``tensorboard --logdir OUT/tensorboard`` shows the runs side
by side: ``train/NAME`` for the values of its steps, ``valid/METRIC``, and ``test/METRIC`` at the step that validation
picked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from fairseq_ext.training.json_values import is_number
from fairseq_ext.training.progress import is_first_process

__all__ = ["Board", "board_of_run", "log_test"]

FOLDER = "tensorboard"
TESTED = ".test"
"""Ending of the file of test metrics, which is replaced where a run is tested again."""

_folder: ContextVar[Path | None] = ContextVar("folder", default=None)


@contextlib.contextmanager
def board_of_run(out: Path, name: str) -> Iterator[None]:
    """A context within which a training writes its curves to the folder of the run ``name``."""
    token = _folder.set(out / FOLDER / name)
    try:
        yield
    finally:
        _folder.reset(token)


class Board:
    """The curves of one training, written by the first process.

    Args:
        folder: folder for ``tensorboard`` if the training is no run of an experiment; with None it then keeps no
            curves.
        step: the last completed step; TensorBoard drops the values that were written after it before a kill.
    """

    def __init__(self, folder: str | Path | None, step: int) -> None:
        own = _folder.get() or (Path(folder) / FOLDER if folder is not None else None)
        self._writer = None
        if own and is_first_process():
            # File names hold only the second, within which a training of a few steps can be killed and resumed.
            self._writer = SummaryWriter(str(own), purge_step=step + 1, filename_suffix=f".{step + 1}")

    def write(self, part: str, values: Mapping[str, Any], step: int) -> None:
        """Write the numbers among ``values``, as ``PART/NAME``."""
        if self._writer:
            _write(self._writer, part, values, step)

    def flush(self) -> None:
        """Write everything to disk, so that a checkpoint never has steps that the curves lack."""
        if self._writer:
            self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        if self._writer:
            self._writer.close()


def log_test(metrics: Mapping[str, Any], step: int) -> None:
    """Write ``test/METRIC`` of the run under way, where there is one.

    Args:
        metrics: the metrics; their names may begin with ``test_``.
        step: the step whose model was tested.
    """
    folder = _folder.get()
    if folder is None or not is_first_process():
        return
    for old in folder.glob(f"*{TESTED}"):
        old.unlink()
    with SummaryWriter(str(folder), filename_suffix=TESTED) as writer:
        _write(writer, "test", metrics, step)


def _write(writer: SummaryWriter, part: str, values: Mapping[str, Any], step: int) -> None:
    """Write every number that is a metric, and not a count of where the training stands."""
    for name, value in values.items():
        if name != "epoch" and is_number(value):
            writer.add_scalar(f"{part}/{name.removeprefix(f'{part}_')}", value, step)
