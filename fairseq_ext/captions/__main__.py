"""Captions of images: fairseq-ext captions COMMAND."""

from __future__ import annotations

from typing import Any

from fairseq_ext.captions import extract as extraction
from fairseq_ext.captions import page as pages
from fairseq_ext.captions import prepare as preparation
from fairseq_ext.captions import score as scoring
from fairseq_ext.training.program import Program

main = Program("fairseq_ext.captions", __doc__, prog="fairseq-ext captions")


@main.command
def extract(options: extraction.ExtractOptions) -> str:
    """Features from pixels, for a folder of pictures with captions and nothing else."""
    return extraction.extract(options)


@main.command
def prepare(options: preparation.PrepareOptions) -> dict[str, Any]:
    """Images and captions to a folder that fairseq-train reads."""
    return preparation.prepare(options)


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
