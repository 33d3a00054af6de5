"""Shared by the tests: golden fixtures and where the optional data sets live."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
DATA = Path(os.environ.get("FAIRSEQ_EXT_DATA", ROOT.parent / "shared" / "data"))


def golden_names(method: str, prefix: str = "") -> list[str]:
    """The fixtures of ``method`` whose name starts with ``prefix``; never empty, so that a typo cannot skip a test."""
    names = sorted(path.stem for path in (GOLDEN / method).glob(f"{prefix}*.npz"))
    assert names, f"no fixture matches tests/golden/{method}/{prefix}*.npz"
    return names


def load_golden(method: str, name: str) -> dict[str, np.ndarray]:
    """Every array of one fixture (``allow_pickle`` stays off)."""
    with np.load(GOLDEN / method / f"{name}.npz") as archive:
        return {key: archive[key] for key in archive.files}


def require_data(name: str) -> Path:
    """The folder of a real data set, or skip the test where it is not on this machine."""
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"data set {name} is not at {folder} (set FAIRSEQ_EXT_DATA)")
    return folder
