"""Claim: ``transformer_ext`` with its options off costs what fairseq's ``transformer`` costs."""

from __future__ import annotations

from benchmarks.models import build, build_stock, train_step_row
from benchmarks.timing import Row


def run(quick: bool) -> list[Row]:
    return [train_step_row("transformer_ext / fairseq's transformer", build(quick), build_stock(quick), quick)]
