"""A page to look at: images, what people wrote, what a model wrote, and where it looked."""

from __future__ import annotations

import importlib.resources
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from fairseq_ext.captions.attention import Attention, read_attention
from fairseq_ext.captions.drawing import draw_image, embedded, find_images
from fairseq_ext.captions.evaluation import METRICS, Evaluation
from fairseq_ext.captions.generated import SPACE_OF_PIECES
from fairseq_ext.captions.score import GeneratedOptions
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_lines, replacing, writing_to
from fairseq_ext.training.options import option

__all__ = ["PageOptions", "write_page"]

GOLDEN_ANGLE = 137.5
"""Degrees of hue between classes that follow each other: no two of many are alike."""

ORDERS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "worst": lambda scores, seed: np.argsort(scores, kind="stable"),
    "best": lambda scores, seed: np.argsort(-scores, kind="stable"),
    "random": lambda scores, seed: np.random.default_rng(seed).permutation(len(scores)),
}


@dataclass(frozen=True, kw_only=True)
class PageOptions(GeneratedOptions):
    """What is shown of them."""

    out: str = option("page.html", "file to write, complete in itself")
    image_folder: str = option(
        "", "folder of the images; a file is named by the identifier of its image (default: the regions alone)"
    )
    attention: str = option("", "what `captions generate --json` printed (default: --generated where that is .jsonl)")
    order: str = option("worst", "images to show: those of the lowest or highest CIDEr-D, or any", (*ORDERS,))
    count: int = option(24, "number of images", least=1)


def write_page(options: PageOptions) -> Path:
    """Write one HTML file, with the images in it.

    Raises:
        DataError: captions, images or attention that are not of these images.
        OptionError: a file that cannot be written.
    """
    path = options.output("out")
    evaluation = options.evaluate()
    split = evaluation.split
    chosen = ORDERS[options.order](evaluation.cider_d, options.seed)[: options.count].tolist()
    source = options.attention or (options.generated if options.generated.endswith(".jsonl") else "")
    attention = read_attention(source, split, evaluation.captions) if source else {}
    if source and (missing := [place for place in chosen if place not in attention]):
        raise DataError(f"{source}: nothing of image {split.image_ids[missing[0]]}")
    ids = [str(split.image_ids[place]) for place in chosen]
    images = find_images(options.image_folder, ids) if options.image_folder else {}
    names = _class_names(evaluation)
    articles = [
        _article(evaluation, place, rank, names, images.get(image_id), attention.get(place))
        for rank, (place, image_id) in enumerate(zip(chosen, ids, strict=True))
    ]
    template = importlib.resources.files("fairseq_ext.captions").joinpath("page.html").read_text(encoding="utf-8")
    page = string.Template(template).substitute(
        title=escape(f"{Path(options.data).resolve().name}, {split.name}"),
        summary=_summary(evaluation, options, bool(attention)),
        images="\n".join(articles),
    )
    with writing_to(path.parent), replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def _class_names(evaluation: Evaluation) -> list[str]:
    """Of the classes of the boxes; empty without classes."""
    split = evaluation.split
    if split.labels is None:
        return []
    path = split.folder / "categories.txt"
    names = [line for line, _ in read_lines(path)]
    if len(names) != split.preparation.num_classes:
        raise DataError(f"{path}: {len(names)} classes, the data has {split.preparation.num_classes}")
    return names


def _summary(evaluation: Evaluation, options: PageOptions, has_attention: bool) -> str:
    counts = evaluation.counts()
    scores = ", ".join(f"{METRICS[name]} {100 * value:.1f}" for name, value in evaluation.metrics().items())
    chosen = {"worst": "lowest", "best": "highest"}.get(options.order)
    shown = f"of {chosen} CIDEr-D" if chosen else f"drawn with seed {options.seed}"
    lines = [
        f"{escape(options.generated)}: {scores} on all {counts['images']} images, "
        f"{counts['references']:.1f} references each; tokenizer {evaluation.tokenizer}",
        f"Shown: {min(options.count, len(evaluation.split))} images {shown}."
        + (" Point at a word to see where the model looked." if has_attention else ""),
    ]
    return "\n".join(f"<p>{line}</p>" for line in lines)


def _article(
    evaluation: Evaluation,
    place: int,
    rank: int,
    classes: Sequence[str],
    image: Path | None,
    attention: Attention | None,
) -> str:
    split = evaluation.split
    rows = split.rows(place)
    boxes = split.boxes[rows]
    if split.labels is not None:
        labels = split.labels[rows].tolist()
        names, hues = [classes[label] for label in labels], [label * GOLDEN_ANGLE % 360 for label in labels]
    else:
        numbers = range(len(boxes))
        grid = split.preparation.kind == "grid"
        names = ["" if grid else str(number + 1) for number in numbers]
        hues = [number * GOLDEN_ANGLE % 360 for number in numbers]
    width, height = split.sizes[place].tolist()
    drawing = draw_image((width, height), boxes, names, hues, embedded(image) if image else "")
    score = 100 * float(evaluation.cider_d[place])
    references = "".join(f"<li>{escape(reference)}</li>" for reference in split.references[place])
    return (
        f'<article data-order="{rank}" data-score="{score:.4f}">{drawing}'
        f'<p class="hypothesis">{_hypothesis(evaluation.captions[place], attention)}</p>'
        f'<p class="score">image {escape(str(split.image_ids[place]))}, CIDEr-D {score:.1f}</p>'
        f'<ol class="references">{references}</ol></article>'
    )


def _hypothesis(caption: str, attention: Attention | None) -> str:
    if attention is None:
        return escape(caption) or "(empty)"
    words = []
    for token, weights in zip(attention.tokens, attention.weights, strict=True):
        values = " ".join(f"{weight:.4g}" for weight in weights)
        words.append(f'<b tabindex="0" data-attention="{values}">{escape(token.lstrip(SPACE_OF_PIECES))}</b>')
    return " ".join(words) or "(empty)"
