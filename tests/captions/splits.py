"""A prepared split of a few images, without the training captions that need fairseq."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np

from fairseq_ext.captions.checksums import write_checksums
from fairseq_ext.captions.store import Preparation

REFERENCES = {
    "11": ["A dog runs.", "The dog is running (fast)!", "A dog, running."],
    "22": ["Two cats on a mat.", "There are two cats."],
    "33": ["A man's red car.", "A red car", "the car is red", "Red car of a man"],
    "44": ["A boat near a house & a tree."],
}
CLASSES = ("dog", "cat", "a <b> & c")


def write_split(folder: Path, references: dict[str, list[str]] = REFERENCES, name: str = "test", **preparation) -> Path:
    """Image i has i + 1 boxes of 120 by 80 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"kind": "classes", "num_classes": len(CLASSES), "max_regions": len(references)} | preparation
    Preparation(**settings).save(folder)
    (folder / "categories.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    sizes = np.arange(1, len(references) + 1)
    rows = sizes.sum()
    corners = np.random.default_rng(0).integers(0, 40, (rows, 2))
    np.savez(
        folder / f"{name}.images.npz",
        image_ids=np.array(list(references)),
        sizes=np.tile(np.float32([120, 80]), (len(references), 1)),
        boxes=np.concatenate([corners, corners + 30], 1).astype(np.float32),
        labels=np.arange(rows) % len(CLASSES),
        offsets=np.concatenate([[0], sizes.cumsum()]),
        caption_offsets=np.arange(len(references) + 1),
    )
    lines = [json.dumps({"image_id": image_id, "captions": captions}) for image_id, captions in references.items()]
    with gzip.open(folder / f"{name}.references.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))
    write_checksums(folder)
    return folder


def write_generated(path: Path, captions: list[str], split: str = "test") -> Path:
    """What fairseq-generate prints for a caption an image, in the order of its batches."""
    lines = [f"D-{image}\t-0.5\t{caption}" for image, caption in enumerate(captions)][::-1]
    path.write_text("\n".join(["T-0\ta dog", *lines, f"Generate {split} with beam=3: BLEU4 = 9.13"]) + "\n")
    return path
