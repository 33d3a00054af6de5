"""Image-text retrieval with aligned self-attentions: python -m vision_language.iais COMMAND."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fairseq_ext.regions.synthetic import synthesize
from fairseq_ext.training.accelerator import make_accelerator
from fairseq_ext.training.compare import compare
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.flags import Runs
from fairseq_ext.training.options import option, seed_option
from fairseq_ext.training.program import Program
from fairseq_ext.training.runs import torch_device
from vision_language.iais import convert as conversion
from vision_language.iais.encoder import ScoringOptions
from vision_language.iais.evaluate import RECALLS, first_images, metrics
from vision_language.iais.options import Options
from vision_language.iais.pair_plots import PlotOptions, draw_pair
from vision_language.iais.search import SearchOptions, region_names
from vision_language.iais.search import search as best_images
from vision_language.iais.train import run

main = Program("vision_language.iais", __doc__)


@dataclass(frozen=True, kw_only=True)
class RetrievalRuns(Runs):
    """Runs of the experiment; finished ones are not run again."""

    out: str = option("runs/iais", "folder of results and models")
    seed: int = seed_option(1, "first seed; the others count on (paper's code: 42)")


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(ScoringOptions):
    """The trained model, and what it is evaluated on."""

    limit: int = option(0, "images to evaluate on, the first; 0: all", least=0, aliases=("images",))
    released: bool = option(False, "print also image recall as the released code counts it")


@main.shared_command
def train(options: Options, runs: RetrievalRuns) -> str:
    """Train with one or more seeds, choose the step by validation, score on test."""
    return run(options, runs).report(*RECALLS, "rsum", "isd")


@main.shared_command
def evaluate(options: EvaluationOptions) -> dict[str, Any]:
    """Recall both ways, mean ranks and ISD of a trained model, as JSON."""
    accelerator = make_accelerator(device=options.device)
    model, collator, split = options.load(accelerator.device)
    split = first_images(split, options.limit)
    if not len(split):
        raise OptionError(f"--data: no caption in {options.data}")
    figures = metrics(model, split, collator, options.eval_batch_size, accelerator, options.released)
    return {**figures, "captions": len(split), "images": len(split.images)}


@main.command
def search(options: SearchOptions) -> str:
    """The images that fit a text best: rank, score, image id, caption or classes."""
    model, collator, split = options.load(torch_device(options.device))
    images = best_images(model, split, collator, options.query, options.top, options.eval_batch_size)
    return "\n".join(
        f"{rank}\t{score:.3f}\t{image.image_id}\t{', '.join(image.captions[:1] or region_names(split, image))}"
        for rank, (score, image) in enumerate(images, 1)
    )


main.command(compare)


@main.command
def plot(options: PlotOptions) -> str:
    """Figures: words by regions, self-attention beside its mirror, recall and ISD over the training."""
    return "\n".join(map(str, draw_pair(options)))


@main.command
def convert(options: conversion.ConvertOptions) -> str:
    """COCO, Flickr30k or bottom-up-attention files to the region format."""
    counts = conversion.convert(options)
    return f"{options.out}: {', '.join(f'{name} {count}' for name, count in counts.items())}"


main.command(synthesize)


if __name__ == "__main__":
    main()
