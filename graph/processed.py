"""torch-geometric's processed copies of raw files, made anew where the raw files have changed.

torch-geometric keeps a processed copy beside the raw files of a data set, and never compares the two again.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch_geometric.data import Dataset

from fairseq_ext.training.locks import locked
from fairseq_ext.training.settings import digest

__all__ = ["current"]

RECORD = "raw.sha256"
"""File in the folder of a processed copy, with the digest of the raw files that it was made of."""

Kind = TypeVar("Kind", bound=Dataset)


def current(kind: type[Kind], *arguments: Any, **options: Any) -> Kind:
    """A data set of torch-geometric, made of its raw files as they are now.

    A copy without a record of its raw files, as torch-geometric alone leaves it, is made anew where it can be written.

    Args:
        kind: class of the data set.
        *arguments: arguments of the class.
        **options: keyword arguments of the class.
    """

    class Current(kind):  # type: ignore[misc, valid-type]
        def _process(self) -> None:
            processed, now = Path(self.processed_dir), raw_digest(Path(self.raw_dir))
            with locked(processed) if _is_stale(processed, now) else contextlib.nullcontext():
                if _is_stale(processed, now):  # asked again: another process may have made the copy meanwhile
                    self.force_reload = True
                super()._process()
                with contextlib.suppress(OSError):  # a folder that cannot be written
                    if now:
                        (processed / RECORD).write_text(now)

    made = Current(*arguments, **options)
    made.__class__ = kind
    return made


def raw_digest(raw: Path) -> str:
    """A digest of the names and contents of all files in a folder; an empty string where there are none."""
    files = sorted(path for path in raw.rglob("*") if path.is_file())
    parts = (part for path in files for part in (str(path.relative_to(raw)), np.fromfile(path, np.uint8)))
    return digest(*parts) if files else ""


def _is_stale(processed: Path, now: str) -> bool:
    """Whether the copy was made of other raw files than the present ones; False where there are no raw files."""
    record = processed / RECORD
    if record.exists():
        return bool(now) and record.read_text() != now
    return bool(now) and processed.exists() and os.access(processed, os.W_OK)
