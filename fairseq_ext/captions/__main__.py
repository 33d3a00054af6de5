"""Captions of images: fairseq-ext captions COMMAND."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fairseq_ext.captions import extract as extraction
from fairseq_ext.captions import generate as generation
from fairseq_ext.captions import page as pages
from fairseq_ext.captions import prepare as preparation
from fairseq_ext.captions import score as scoring
from fairseq_ext.regions.synthetic import SceneOptions
from fairseq_ext.regions.synthetic import synthesize as write_scenes
from fairseq_ext.training.program import Program

main = Program("fairseq_ext.captions", __doc__, prog="fairseq-ext captions")


@main.command
def synthesize(options: SceneOptions) -> str:
    """Write made-up scenes with captions, for a try without data."""
    write_scenes(options)
    return f"{options.images} images in {options.out}"


@main.command
def extract(options: extraction.ExtractOptions) -> str:
    """Features from pixels, for a folder of pictures with captions and nothing else."""
    return extraction.extract(options)


@main.command
def prepare(options: preparation.PrepareOptions) -> dict[str, Any]:
    """Images and captions to a folder that fairseq-train reads."""
    return preparation.prepare(options)


@main.command
def generate(options: generation.GenerateOptions) -> Iterator[dict[str, Any]] | str:
    """The captions that a model, or several together, write of images; with --json also where it looked."""
    return generation.captions(options)


@main.command
def score(options: scoring.ScoreOptions) -> str:
    """BLEU-1 to 4, ROUGE-L and CIDEr-D of generated captions, with 95 % intervals over the images.

    All references of an image count. fairseq-generate's own BLEU line is of one reference, in the model's words.
    """
    return scoring.score(options)


@main.command
def page(options: pages.PageOptions) -> str:
    """One HTML file of images, references and captions with their CIDEr-D, and of where the model looked."""
    return str(pages.write_page(options))


if __name__ == "__main__":
    main()
