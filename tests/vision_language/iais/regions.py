"""Tiny made-up region data sets: every image shows three to six coloured things, and its captions name them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from transformers import BertConfig, BertTokenizer

from vision_language.iais.model import RegionRetriever

THINGS = ("dog", "cat", "tree", "car", "house", "boat", "horse", "lamp")
PLACES = ("left", "middle", "right")
WORDS = ("a", "and", "the", "on", "with", "photo", "of", *THINGS, *PLACES)
SIZE = {"train": 40, "valid": 12, "test": 12}


def write_regions(
    folder: Path, sizes: dict[str, int] = SIZE, captions: int = 2, feature_size: int = 0, seed: int = 0
) -> Path:
    """A folder of the region format; with ``feature_size`` the regions have features instead of class labels."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    if feature_size:
        (folder / "features").mkdir(exist_ok=True)
        prototypes = generator.normal(size=(len(THINGS), feature_size))
    else:
        (folder / "categories.txt").write_text("\n".join(THINGS) + "\n", encoding="utf-8")
    image_id = 0
    for split, size in sizes.items():
        lines = []
        for _ in range(size):
            image_id += 1
            things = generator.choice(len(THINGS), generator.integers(3, 7), replace=False)
            thirds = generator.integers(0, 3, len(things))
            boxes = []
            for thing, third in zip(things.tolist(), thirds.tolist(), strict=True):
                left, top = 100 * third + int(generator.integers(0, 40)), int(generator.integers(0, 100))
                boxes.append(
                    [left, top, left + int(generator.integers(20, 60)), top + int(generator.integers(20, 100))]
                )
                if not feature_size:
                    boxes[-1].append(thing)
            named = [f"the {THINGS[thing]} on the {PLACES[third]}" for thing, third in zip(things, thirds, strict=True)]
            texts = [f"a photo of {' and '.join(generator.permutation(named)[:2])}" for _ in range(captions)]
            lines.append({"image_id": image_id, "width": 300, "height": 200, "boxes": boxes, "captions": texts})
            if feature_size:
                noise = generator.normal(scale=0.1, size=(len(things), feature_size))
                np.save(folder / "features" / f"{image_id}.npy", (prototypes[things] + noise).astype(np.float32))
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def tiny_tokenizer() -> BertTokenizer:
    """Whole words of the captions, lower-cased; everything else is [UNK]."""
    pieces = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
    tokenizer = BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})
    tokenizer.model_max_length = 40
    return tokenizer


def tiny_config(**options) -> BertConfig:
    """Two layers of two heads of eight numbers."""
    sizes = {"vocab_size": 5 + len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertConfig(**{**sizes, "intermediate_size": 32, "max_position_embeddings": 40, **options})


def tiny_model(feature_size: int = 0, **options) -> RegionRetriever:
    """A random retriever for :func:`write_regions` of the same ``feature_size``."""
    labels = None if feature_size else list(THINGS)
    return RegionRetriever.from_encoder(tiny_config(**options), region_feature_size=feature_size, region_labels=labels)
