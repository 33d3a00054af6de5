"""Tiny made-up images with captions, of each kind that is prepared: things, and captions that name them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fairseq_ext.captions.prepare import PrepareOptions, prepare

THINGS = ("dog", "cat", "tree", "car", "house", "boat")
WIDTH, HEIGHT, SIZE, ROWS, COLUMNS = 120, 80, 6, 2, 3


def write_captioned(folder: Path, kind: str, images: int = 12, seed: int = 0) -> Path:
    """A source with ``images`` for training, and a third as many for validation and for test."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    prototypes = generator.normal(size=(len(THINGS), SIZE))
    if kind == "classes":
        (folder / "categories.txt").write_text("\n".join(THINGS) + "\n")
    if kind == "regions":
        (folder / "features").mkdir(exist_ok=True)
    grids, names, number = [], [], 0
    for split, count in (("train", images), ("valid", max(2, images // 3)), ("test", max(2, images // 3))):
        lines = []
        for _ in range(count):
            number += 1
            things = generator.choice(len(THINGS), generator.integers(1, 4), replace=False)
            listed = " and ".join(f"a {THINGS[thing]}" for thing in things)
            captions = [f"There is {listed}.", f"{listed}, seen twice!".capitalize()]
            line = {"image_id": number, "width": WIDTH, "height": HEIGHT, "captions": captions}
            corners = np.stack([generator.integers(0, (60, 40), 2) for _ in things])
            boxes = np.concatenate([corners, corners + generator.integers(10, 40, (len(things), 2))], 1).tolist()
            vectors = (prototypes[things] + generator.normal(scale=0.1, size=(len(things), SIZE))).astype(np.float32)
            if kind == "classes":
                line["boxes"] = [[*box, int(thing)] for box, thing in zip(boxes, things, strict=True)]
            elif kind == "regions":
                line["boxes"] = boxes
                np.save(folder / "features" / f"{number}.npy", vectors)
            else:
                grid = generator.normal(scale=0.1, size=(ROWS * COLUMNS, SIZE))
                grid[: len(things)] += vectors
                grids.append(grid.astype(np.float16))
                names.append(f"{number}.jpg")
                line["image"] = f"images/{number}.jpg"
            lines.append(line)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if kind == "grid":
        np.savez(folder / "grid_features.npz", features=np.stack(grids), names=np.array(names))
    return folder


def prepared(folder: Path, kind: str, images: int = 0, **options) -> Path:
    """A prepared folder of :func:`write_captioned` with seed ``images``; ``options`` of :class:`PrepareOptions`."""
    source = write_captioned(folder / "source", kind, seed=images)
    grid = {"grid": (ROWS, COLUMNS)} if kind == "grid" else {}
    prepare(PrepareOptions(**{"source": (str(source),), "data": str(folder / "data"), "min_count": 1} | grid | options))
    return folder / "data"
