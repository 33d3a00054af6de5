"""Claim: fused MUSE decodes faster than a Transformer with as many parameters."""

from __future__ import annotations

from typing import Any

from benchmarks.models import build, decode, equal_size_options, prepare_for_generation, train_step_row
from benchmarks.timing import Row, rate_row

BEAM = 5


def _decoding_rows(name: str, options: dict[str, Any], quick: bool) -> list[Row]:
    fused = prepare_for_generation(build(quick, **options), BEAM)
    unfused = prepare_for_generation(build(quick, **options, muse_no_fuse=True), BEAM)
    transformer = prepare_for_generation(build(quick), BEAM)
    rows = []
    for sentences in (1,) if quick else (1, 64):
        comparisons = (
            (f"{name} fused / Transformer", fused, transformer, 1.3 if sentences == 1 else None),
            (f"{name} unfused / Transformer", unfused, transformer, None),
            (f"{name} fused / unfused", fused, unfused, None),
        )
        for case, model, other, target in comparisons:
            ours, tokens = decode(model, quick, sentences, BEAM)
            reference, _ = decode(other, quick, sentences, BEAM)
            case = f"decoding, {case}, beam {BEAM}, batch {sentences}"
            pairs = 1 if quick else 9 if sentences == 1 else 3
            rows.append(rate_row(case, ours, reference, items=tokens, unit="tokens/s", pairs=pairs, target=target))
    return rows


def run(quick: bool) -> list[Row]:
    sizes = {
        "MUSE-simple": {"block": "muse-simple"},  # as wide as the Transformer, and equal in parameters
        "MUSE": equal_size_options(quick, block="muse", muse_kernels="3,15"),
    }
    rows = []
    for name, options in sizes.items():
        case = f"{name} (d={options.get('encoder_embed_dim', 'same')}) / Transformer"
        rows.append(train_step_row(case, build(quick, **options), build(quick), quick))
        rows += _decoding_rows(name, options, quick)
    return rows
