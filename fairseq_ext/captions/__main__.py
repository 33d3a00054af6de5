"""Captions of images: fairseq-ext captions COMMAND."""

from __future__ import annotations

from fairseq_ext.training.program import Program

main = Program("fairseq_ext.captions", __doc__, prog="fairseq-ext captions")


if __name__ == "__main__":
    main()
