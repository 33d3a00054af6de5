"""Cross-view decoding of Multi30k: every wiring with every fusion, by validation likelihood."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from examples.results.paired import Paired, differences, holm
from examples.results.planned import finished, not_measured, seed_by_seed
from examples.results.report import agree, commands, common, environments, of_seeds, unique
from examples.results.translation.experiments import (
    DATA,
    SIZES,
    SMOOTHED,
    folder_of,
    prepare,
    settings_of,
    training,
    validate,
    warmup,
)
from examples.results.translation.figures import best_bits
from fairseq_ext.modules.cross_view import FUSIONS, STRATEGIES, check_cross_view

DATASET = "multi30k"
BASELINE = ("none", "mean")


def _has_meaning(wiring: str, fusion: str) -> bool:
    try:
        check_cross_view(wiring, fusion)
    except ValueError:
        return False
    return True


CELLS = tuple(cell for cell in product(STRATEGIES, FUSIONS) if _has_meaning(*cell))
"""Wirings and fusions that have a meaning together, the plain Transformer first."""
WHOLE = tuple(wiring for wiring in STRATEGIES if all((wiring, fusion) in CELLS for fusion in FUSIONS))
"""Wirings that have every fusion."""

Bits = dict[tuple[str, str], dict[int, float]]
"""Of each cell the bits of each seed."""

TEXT = """## Cross-view decoding: wirings and fusions

Multi30k German to English, validation bits per token minus those of the Transformer with the same seed (less is
better), with the 95 % interval: {seeds} of size {size} (width {width}, FFN {ffn}, {layers} + {layers} pre-norm
layers, {pieces:,} pieces, dropout {dropout}, {updates:,} updates of at most {tokens:,} tokens, {warmup} of warm-up; our
choice, not tuned). A fusion is left out (–) where it has no meaning: `fma` has more than two views, `ama` and
`ama-static` weigh theirs by themselves. {environment}.

{command}

| wiring | {fusions} |
|---|{rule}
{rows}

{reading}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size",
        choices=("ablation", "trial"),
        default="ablation",
        help="size of the experiment; trial shows only that everything runs",
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 1 on")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--updates", type=int, help="training updates, instead of the size's own")


SELECTS = "size"


def reads(options: argparse.Namespace) -> dict[str, list[Path]]:
    return {f"cross_view_{options.size}": [options.data / DATA[DATASET].folder]}


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every cell with every seed; what is complete, after each of them, seed by seed."""
    data_bin = prepare(DATASET, options.data, options.out, SIZES[options.size].pieces)
    updates = options.updates or SIZES[options.size].updates

    def run(seed: int, cell: tuple[str, str]) -> dict[str, Any]:
        wiring, fusion = cell
        added = [] if cell == BASELINE else ["--cross-view", wiring, "--cross-view-fusion", fusion]
        recipe = training([*added, *SMOOTHED], options.size, seed, updates)
        folder = folder_of("-".join(cell), options.size, seed, recipe, data_bin, options.out / "cross_view")
        cell_of = {"wiring": wiring, "fusion": fusion, "seed": seed, "updates": updates}
        row = finished(folder, options.out, lambda: cell_of | validate(recipe, data_bin, folder))
        print(f"{wiring}, {fusion}, seed {seed}: {best_bits(row):.3f} bits", flush=True)
        return row

    rows: list[dict[str, Any]] = []
    for row, missing in seed_by_seed(range(1, options.seeds + 1), CELLS, run, options.jobs, ", ".join):
        rows.append(row)
        yield {
            "name": f"cross_view_{options.size}",
            "size": options.size,
            "settings": settings_of(options.size),
            "environments": unique(row["environment"] for row in rows),
            "rows": rows,
            "missing": missing,
        }


def section(contents: list[dict[str, Any]]) -> str:
    """A table for each size."""
    return "\n".join(map(_table, contents))


def _table(content: dict[str, Any]) -> str:
    agree(f"{content['name']}.json", content.get("settings", {}), settings_of(content["size"]))
    bits = _bits(content["rows"])
    gains = _gains(bits)
    lines = []
    for wiring in STRATEGIES[1:]:
        cells = ["–" if (wiring, fusion) not in CELLS else _cell(gains.get((wiring, fusion))) for fusion in FUSIONS]
        lines.append(f"| {wiring} | {' | '.join(cells)} |")
    updates = common(content["rows"], "updates")
    return TEXT.format(
        **SIZES[content["size"]]._asdict() | {"updates": updates, "warmup": warmup(content["size"], updates)},
        size=content["size"],
        seeds=of_seeds({" ".join(cell): of_cell for cell, of_cell in bits.items() if of_cell}),
        environment=environments(content),
        command=commands([content]),
        fusions=" | ".join(FUSIONS),
        rule="---|" * len(FUSIONS),
        rows="\n".join(lines),
        reading=_reading(gains) + _choices(bits) + _sizes(content["rows"]) + f" {not_measured(content)}".rstrip(),
    )


def _bits(rows: list[dict[str, Any]]) -> Bits:
    bits: Bits = {cell: {} for cell in CELLS}
    for row in rows:
        bits[row["wiring"], row["fusion"]][row["seed"]] = best_bits(row)
    return bits


def _gains(bits: Bits) -> dict[tuple[str, str], Paired]:
    """The difference of each cell to the Transformer, where it has one of the same seed."""
    pairs = {cell: differences(bits[cell], bits[BASELINE]) for cell in CELLS[1:]}
    return {cell: Paired.of(of_seeds) for cell, of_seeds in pairs.items() if of_seeds}


def _choices(bits: Bits) -> str:
    """Each fusion against `mean` and each wiring against `gca`, of which each seed is one pair: its mean over cells."""
    fusions = {other: [((wiring, other), (wiring, "mean")) for wiring in WHOLE] for other in FUSIONS if other != "mean"}
    wirings = {other: [((other, fusion), ("gca", fusion)) for fusion in FUSIONS] for other in WHOLE if other != "gca"}
    told = []
    for against, cells in (("`mean`, over the wirings that have all fusions", fusions), ("`gca`", wirings)):
        gains = {name: gain for name, pairs in cells.items() if (gain := _pooled(bits, pairs))}
        if gains:
            listed = ", ".join(f"`{name}` {_cell(gain)}" for name, gain in gains.items())
            told.append(f" Against {against}: {listed}.")
    return "".join(told)


def _pooled(bits: Bits, pairs: list[tuple[tuple[str, str], tuple[str, str]]]) -> Paired | None:
    """Of the seeds that all cells have, the mean over the pairs of cells of what the first has more than the second."""
    seeds = set.intersection(*(set(bits[cell]) for pair in pairs for cell in pair))
    of_seeds = [fmean(bits[one][seed] - bits[other][seed] for one, other in pairs) for seed in sorted(seeds)]
    return Paired.of(of_seeds) if of_seeds else None


def _sizes(rows: list[dict[str, Any]]) -> str:
    """What has more parameters than the others."""
    sizes = {(row["wiring"], row["fusion"]): row["parameters"] for row in rows}
    parts: dict[bool, list[int]] = {True: [], False: []}
    for (_, fusion), parameters in sizes.items():
        parts[fusion == "separate"].append(parameters)
    if not all(parts.values()):
        return ""
    more, others = (f"{min(part):,} to {max(part):,}" for part in (parts[True], parts[False]))
    return f" `separate` has {more} parameters, all others {others}."


def _cell(gain: Paired | None) -> str:
    return gain.text(3) if gain else ""


def _reading(gains: dict[tuple[str, str], Paired]) -> str:
    """The best cell, and what is left of the differences when all are taken together."""
    tested = [gain for gain in gains.values() if gain.p is not None]
    if not tested:
        return "One seed, or none beside the Transformer: no interval."
    held = [gain for gain, holds in zip(tested, holm([gain.p or 0.0 for gain in tested]), strict=True) if holds]
    best = min(gains, key=lambda cell: gains[cell].mean)
    better = sum(gain.high is not None and gain.high < 0 for gain in tested)
    worse = sum(gain.low is not None and gain.low > 0 for gain in tested)
    return (
        f"Fewest bits: `{best[0]}` with `{best[1]}`. Of {len(tested)} cells {better} have fewer bits than the "
        f"Transformer and {worse} more, by their intervals; with Holm's correction "
        f"{sum(gain.mean < 0 for gain in held)} and {sum(gain.mean > 0 for gain in held)}."
    )
