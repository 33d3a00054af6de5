"""Captions of images: fairseq-ext captions COMMAND."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fairseq_ext.captions import generate as generation
from fairseq_ext.captions.extract import extract
from fairseq_ext.captions.page import PageOptions, write_page
from fairseq_ext.captions.prepare import prepare
from fairseq_ext.captions.score import score
from fairseq_ext.regions.synthetic import synthesize
from fairseq_ext.training.program import Program

main = Program("fairseq_ext.captions", __doc__, prog="fairseq-ext captions")

for command in (synthesize, extract, prepare):
    main.command(command)


@main.command
def generate(options: generation.GenerateOptions) -> Iterator[dict[str, Any]] | Iterator[str]:
    """The captions that a model, or several together, write of images; with --json also where it looked."""
    return generation.captions(options)


main.command(score)


@main.command
def page(options: PageOptions) -> str:
    """One HTML file of images, references and captions with their CIDEr-D, and of where the model looked."""
    return str(write_page(options))


if __name__ == "__main__":
    main()
