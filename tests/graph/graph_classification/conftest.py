"""A small TU data set in the raw format: rings against paths, told apart by the degree of their nodes."""

from __future__ import annotations

from pathlib import Path

import pytest


def write_tu(root: Path, name: str = "RINGS", graphs: int = 40, **files: str) -> Path:
    """Raw files of ``graphs`` rings and paths of 4 to 8 nodes; ``files`` replaces or adds some, ``None`` leaves out."""
    edges, owners, labels, first = [], [], [], 1
    for number in range(graphs):
        size, ring = 4 + number % 5, number % 2
        pairs = [(first + i, first + i + 1) for i in range(size - 1)] + [(first + size - 1, first)] * ring
        edges += [f"{a}, {b}" for pair in pairs for a, b in (pair, pair[::-1])]
        owners += [str(number + 1)] * size
        labels.append(str(ring))
        first += size
    content = {
        "A": "\n".join(edges),
        "graph_indicator": "\n".join(owners),
        "graph_labels": "\n".join(labels),
        **files,
    }
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for kind, text in content.items():
        if text is not None:
            (raw / f"{name}_{kind}.txt").write_text(text + "\n")
    return root


@pytest.fixture
def rings(tmp_path) -> Path:
    return write_tu(tmp_path / "data")
