"""Made-up scenes in the region format, for a try without data: things at places, and captions that name some."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.files import replacing, writing_to
from fairseq_ext.training.options import SPLITS, OptionSet, option, seed_option

__all__ = ["THINGS", "SceneOptions", "synthesize"]

THINGS = (
    "dog cat horse cow sheep bird person child car bus train bicycle boat bench tree house table chair sofa lamp "
    "cup plate book clock phone umbrella ball kite apple cake"
).split()
WIDTH, HEIGHT, COLUMNS = 600, 400, 3
SIDES = ("on the left", "in the middle", "on the right")


@dataclass(frozen=True, kw_only=True)
class SceneOptions(OptionSet):
    """The made-up scenes."""

    out: str = option("runs/scenes", "folder to write")
    images: int = option(1000, "images of all splits together", least=30)
    captions_per_image: int = option(3, "captions of an image", least=1)
    seed: int = seed_option(0, "seed of all that is drawn")


def synthesize(options: SceneOptions) -> str:
    """Write made-up scenes with captions, for a try without data.

    The splits hold 80, 10 and 10 in 100; equal options give equal files. An image holds three to eight things, each in
    the left, middle or right third. A caption names two or three of them, one with its place.

    Raises:
        OptionError: a folder that cannot be written, or has another ``train.jsonl`` in it.
    """
    generator = np.random.default_rng(options.seed)
    lines = [_scene(number, options.captions_per_image, generator) for number in range(1, options.images + 1)]
    held_out = options.images // 10
    cuts = (0, options.images - 2 * held_out, options.images - held_out, options.images)
    texts = {"categories.txt": "\n".join(THINGS) + "\n"}
    for split, (begin, end) in zip(SPLITS, pairwise(cuts), strict=True):
        texts[f"{split}.jsonl"] = "".join(lines[begin:end])
    with writing_to(options.out) as out:
        for name, text in texts.items():
            if (out / name).exists() and (out / name).read_bytes() != text.encode():
                raise OptionError(
                    f"--out: {out / name} is of other images or options; remove it or name another folder"
                )
        for name, text in texts.items():
            with replacing(out / name) as partial:
                partial.write_text(text, encoding="utf-8")
    return f"{options.images} images in {options.out}"


def _scene(number: int, captions: int, generator: np.random.Generator) -> str:
    things = generator.choice(len(THINGS), generator.integers(3, 9), replace=False)
    columns = generator.integers(COLUMNS, size=len(things))
    sizes = generator.integers(40, 160, size=(len(things), 2))
    corners = generator.integers(0, (WIDTH // COLUMNS - sizes[:, 0], HEIGHT - sizes[:, 1]), size=(2, len(things))).T
    corners[:, 0] += columns * (WIDTH // COLUMNS)
    boxes = np.column_stack([corners, corners + sizes, things]).tolist()
    texts = []
    for _ in range(captions):
        named = generator.choice(len(things), generator.integers(2, 4), replace=False)
        words = [f"a {THINGS[things[index]]}" for index in named]
        words[0] += f" {SIDES[columns[named[0]]]}"
        texts.append(" and ".join(generator.permutation(words)).capitalize() + ".")
    scene = {"image_id": number, "width": WIDTH, "height": HEIGHT, "boxes": boxes, "captions": texts}
    return json.dumps(scene) + "\n"
