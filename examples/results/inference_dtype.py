"""Decoding Multi30k on a CPU with each --inference-dtype: BLEU, equal translations, speed."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from examples.results.fairseq_programs import train
from examples.results.report import common, environments, unique
from examples.results.translation.experiments import (
    DATA,
    DECODING,
    SIZES,
    SYSTEMS,
    prepare,
    training,
    translate_and_score,
)
from examples.translation.outputs import read_outputs
from fairseq_ext.modules.packed_linear import INFERENCE_DTYPES
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_json, write_json
from fairseq_ext.training.runs import environment
from fairseq_ext.training.settings import digest

DATASET = "multi30k"
AS_TRAINED = "as trained"
DTYPES = (AS_TRAINED, *INFERENCE_DTYPES)
BATCHES = (100, 1)

TEXT = """## Decoding on a CPU with --inference-dtype

Multi30k German to English, test 2016: one training of each system ({size}, {updates:,} updates, as in the table of
translations), translated with beam 5, length penalty 1. *Equal* is the share of the translations that are those of the
model as it was trained, letter for letter. Tokens a second are those that fairseq-generate prints, measured once;
[benchmarks](../benchmarks/README.md) compare speeds side by side. {environment}.

    python -m examples.results {command}

| system | weights | BLEU | difference | equal | {speeds} |
|---|---|---|---|---|{rule}
{rows}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", choices=sorted(SIZES), default="small", help="size of the trained model")
    parser.add_argument(
        "--systems", nargs="+", choices=sorted(SYSTEMS), default=["Transformer", "MUSE"], help="models to measure"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the training")
    parser.add_argument("--updates", type=int, help="training updates, instead of the size's own")


SELECTS = "size"


def reads(options: argparse.Namespace) -> dict[str, list[Path]]:
    return {f"inference_dtype_{options.size}": [options.data / DATA[DATASET].folder]}


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Trains each system once, translates in every dtype at every batch size; what is finished stays."""
    data_bin = prepare(DATASET, options.data, options.out)
    updates = options.updates or SIZES[options.size].updates
    rows = []
    for name in options.systems:
        recipe = training(SYSTEMS[name], options.size, options.seed, updates)
        folder = options.out / f"inference_dtype-{digest(recipe, DECODING, data_bin.name)[:8]}"
        checkpoint = folder / "checkpoint_best.pt"
        if not (folder / "trained").exists():
            checkpoint = train(recipe, data_bin, folder)
            (folder / "trained").touch()
        for batch in BATCHES:
            for dtype in DTYPES:
                row = {"system": name, "updates": updates, "dtype": dtype, "batch": batch}
                rows.append(row | decode(checkpoint, dtype, batch, data_bin, folder))
                print(f"{name}, {dtype}, batch {batch}: BLEU {rows[-1]['sacrebleu']:.2f}", flush=True)
    yield {
        "name": f"inference_dtype_{options.size}",
        "size": options.size,
        "environments": unique(row["environment"] for row in rows),
        "rows": rows,
    }


def decode(checkpoint: Path, dtype: str, batch: int, data_bin: Path, trained: Path) -> dict[str, Any]:
    """Scores, speed and the share of translations equal to those of the model as it was trained."""
    folder = trained / f"{dtype}-batch{batch}".replace(" ", "_")
    result = folder / "result.json"
    if result.exists():
        return read_json(result)
    folder.mkdir(exist_ok=True)
    given = [] if dtype == AS_TRAINED else ["--inference-dtype", dtype]
    decoding = ["--cpu", *DECODING, "--batch-size", str(batch), *given]
    target = DATA[DATASET].target
    scores = translate_and_score(checkpoint, decoding, data_bin, folder, target)
    plain = trained / f"{AS_TRAINED}-batch{batch}".replace(" ", "_")
    texts, wanted = (
        read_outputs(where / "generate.txt", data_bin / "text" / f"test.{target}", "H").hypotheses
        for where in (folder, plain)
    )
    row = {
        **scores,
        "tokens_per_second": speed(folder / "generate.txt"),
        "equal": sum(map(str.__eq__, texts, wanted)) / len(wanted),
        "environment": environment("ve-fairseq", "sacrebleu", "sentencepiece", device="cpu"),
    }
    write_json(result, row)
    return row


def speed(log: Path) -> float:
    """Tokens a second, from the last line but one that fairseq-generate writes."""
    match = re.search(r"Translated .* ([\d,.]+) tokens/s\)", log.read_text(encoding="utf-8"))
    if match is None:
        raise DataError(f"{log}: has no number of tokens a second")
    return float(match[1].replace(",", ""))


def section(contents: list[dict[str, Any]]) -> str:
    """A table for each size."""
    return "\n".join(map(_table, contents))


def _table(content: dict[str, Any]) -> str:
    cells = {(row["system"], row["dtype"], row["batch"]): row for row in content["rows"]}
    lines = []
    for system in unique(row["system"] for row in content["rows"]):
        plain = cells[system, AS_TRAINED, BATCHES[0]]["sacrebleu"]
        for dtype in DTYPES:
            of_batch = [cells[system, dtype, batch] for batch in BATCHES]
            bleu, equal = of_batch[0]["sacrebleu"], of_batch[0]["equal"]
            difference = "" if dtype == AS_TRAINED else f"{bleu - plain:+.2f} | {100 * equal:.1f} %"
            speeds = " | ".join(f"{row['tokens_per_second']:,.0f}" for row in of_batch)
            lines.append(f"| {system} | {dtype} | {bleu:.2f} | {difference or ' | '} | {speeds} |")
    return TEXT.format(
        size=content["size"],
        updates=common(content["rows"], "updates"),
        environment=environments(content),
        command=content["command"],
        speeds=" | ".join(f"tokens/s, batch {batch}" for batch in BATCHES),
        rule="---|" * len(BATCHES),
        rows="\n".join(lines),
    )
