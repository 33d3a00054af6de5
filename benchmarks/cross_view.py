"""Claim: cross-view decoding (GCA, mean) trains nearly as fast as the Transformer."""

from __future__ import annotations

from benchmarks.models import build, train_step_row
from benchmarks.timing import Row


def run(quick: bool) -> list[Row]:
    models = build(quick, cross_view="gca", cross_view_fusion="mean"), build(quick)
    return [train_step_row("--cross-view gca, mean / none", *models, quick, target=1.25)]
