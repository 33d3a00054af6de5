"""Captions of images: fairseq-ext captions COMMAND."""

from __future__ import annotations

from typing import Any

from fairseq_ext.captions import prepare as preparation
from fairseq_ext.training.program import Program

main = Program("fairseq_ext.captions", __doc__, prog="fairseq-ext captions")


@main.command
def prepare(options: preparation.PrepareOptions) -> dict[str, Any]:
    """Images and captions to a folder that fairseq-train reads."""
    return preparation.prepare(options)


if __name__ == "__main__":
    main()
