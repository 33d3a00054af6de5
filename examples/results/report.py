"""docs/RESULTS.md and its picture from the rows that have been measured."""

from __future__ import annotations

import os
import platform
import statistics
from collections import defaultdict
from pathlib import Path

import fairseq
import matplotlib
import sacrebleu
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from examples.results.translation import ROOT, SIZES, SYSTEMS
from fairseq_ext.files import read_json, write_json

HEAD = """# Measured results

Everything here is written by `python -m examples.results`; nothing is copied from a paper. Finished rows are kept, so
that the command can be stopped and started again.
"""

TEXT = """## Multi30k German to English, test 2016

All systems: the same data ({pieces} joint SentencePiece pieces), size ({size}: width {width}, FFN {ffn}, {heads} heads,
{layers} + {layers} pre-norm layers, shared embeddings), dropout {dropout}, {updates} updates of at most {tokens:,}
tokens, Adam (0.9, 0.98) with learning rate 2e-3 inverse_sqrt, {warmup} warm-up updates, label smoothing 0.1; the
checkpoint with the best validation likelihood; beam 5, length penalty 1. Settings are our choice and were not tuned
for any row. Seeds {seeds}; {hardware}; torch {torch}, fairseq {fairseq}, sacreBLEU {sacrebleu}.

    {command}

| system | BLEU | difference to the Transformer | validation bits per token | training seconds |
|---|---|---|---|---|
{rows}

sacreBLEU signature: `{signature}`, {sentences} of 1,000 sentences scored. {spread}

![Validation curves](results/multi30k.png)
"""

ONE_SEED = """One seed: the spread between seeds was not measured, and differences of a point or less at this size
should not be read as differences between methods. The budget is far from convergence, so the table says how fast a
method learns, not how good it can get."""
MANY_SEEDS = "Means over the seeds, with the standard deviation; differences inside it are no differences."


def write_report(out: Path) -> None:
    """Writes the report of every size and seed found below ``out``."""
    measured: dict[str, list[dict]] = defaultdict(list)
    for file in sorted(out.glob("*-seed*/*/result.json")):
        row = read_json(file)
        measured[row["size"]].append(row)
    if not measured:
        raise SystemExit(f"error: no finished run below {out}")
    (ROOT / "docs" / "results").mkdir(parents=True, exist_ok=True)
    parts = [HEAD]
    for size, rows in measured.items():
        parts.append(_table(size, rows))
        _plot(rows, ROOT / "docs" / "results" / "multi30k.png")
        write_json(ROOT / "docs" / "results" / f"multi30k_{size}.json", rows)
    (ROOT / "docs" / "RESULTS.md").write_text("\n".join(parts), encoding="utf-8")


def _table(size: str, rows: list[dict]) -> str:
    by_system = {name: [row for row in rows if row["system"] == name] for name in SYSTEMS}
    by_system = {name: found for name, found in by_system.items() if found}
    means = {name: statistics.mean(row["sacrebleu"] for row in found) for name, found in by_system.items()}
    baseline = means.get("Transformer")
    lines = []
    for name, found in by_system.items():
        spread = f" ± {statistics.stdev(row['sacrebleu'] for row in found):.2f}" if len(found) > 1 else ""
        delta = "" if baseline is None or name == "Transformer" else f"{means[name] - baseline:+.2f}"
        bits = statistics.mean(min(value for _, value in row["curve"]) for row in found)
        seconds = statistics.mean(row["seconds"] for row in found)
        lines.append(f"| {name} | {means[name]:.2f}{spread} | {delta} | {bits:.3f} | {seconds:.0f} |")
    seeds = sorted({row["seed"] for row in rows})
    updates = rows[0]["updates"]
    hardware = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{os.cpu_count()} CPU cores, {platform.machine()}"
    )
    return TEXT.format(
        pieces="6,000",
        size=size,
        **{**SIZES[size]._asdict(), "updates": f"{updates:,}"},
        warmup=updates // 5,
        seeds=", ".join(map(str, seeds)),
        hardware=hardware,
        torch=torch.__version__,
        fairseq=fairseq.__version__,
        sacrebleu=sacrebleu.__version__,
        command=f"python -m examples.results --size {size} --updates {updates} --seeds {' '.join(map(str, seeds))}",
        rows="\n".join(lines),
        signature=rows[0]["signature"],
        sentences=rows[0]["sentences"],
        spread=MANY_SEEDS if len(seeds) > 1 else ONE_SEED,
    )


def _plot(rows: list[dict], file: Path) -> None:
    figure, axes = plt.subplots(figsize=(9, 5.5))
    colours = plt.get_cmap("tab20")
    for index, name in enumerate(SYSTEMS):
        curves = [row["curve"] for row in rows if row["system"] == name]
        if curves:
            steps = [update for update, _ in curves[0]]
            values = [
                statistics.mean(points) for points in zip(*[[v for _, v in curve] for curve in curves], strict=False)
            ]
            axes.plot(steps[: len(values)], values, label=name, color=colours(index), linewidth=1.6)
    axes.set_xlabel("updates")
    axes.set_ylabel("validation negative log-likelihood (bits per token)")
    axes.set_title("Multi30k German to English, equal budget")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plt.close(figure)
