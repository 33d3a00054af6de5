"""Multi30k German-English: every method with the same size, data, budget and tuning."""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from examples.results.report import RESULTS, ROOT, describe
from fairseq_ext.errors import DataError
from fairseq_ext.experiments import environment
from fairseq_ext.files import read_json, write_json

SMOOTHED = ["--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1"]


def _encouraging(log_end: str) -> list[str]:
    return ["--criterion", "label_smoothed_encouraging_loss", "--label-smoothing", "0.1", "--log-end", log_end]


# What each row adds to the plain Transformer; MUSE runs with the initial weights its authors call essential.
SYSTEMS: dict[str, list[str]] = {
    "Transformer": SMOOTHED,
    "top-k (k = 8)": ["--attention-topk", "8", *SMOOTHED],
    "AdaNorm": ["--norm", "adanorm", *SMOOTHED],
    "LayerNorm-simple": ["--norm", "layernorm-simple", *SMOOTHED],
    "MUSE-simple": ["--block", "muse-simple", "--init", "km", *SMOOTHED],
    "MUSE": ["--block", "muse", "--init", "km", *SMOOTHED],
    "GCA, mean": ["--cross-view", "gca", *SMOOTHED],
    "GCA, gate": ["--cross-view", "gca", "--cross-view-fusion", "gate", *SMOOTHED],
    "GCA, concat": ["--cross-view", "gca", "--cross-view-fusion", "concat", *SMOOTHED],
    "GCA, sequential": ["--cross-view", "gca", "--cross-view-fusion", "sequential", *SMOOTHED],
    "encouraging loss, log_end 0.5": _encouraging("0.5"),
    "encouraging loss, log_end 0.75": _encouraging("0.75"),
    "all combined": [
        *("--block", "muse", "--init", "km", "--attention-topk", "8", "--norm", "adanorm", "--cross-view", "gca"),
        *_encouraging("0.75"),
    ],
}


class Size(NamedTuple):
    """A model size and its training budget; layers count one side."""

    width: int
    ffn: int
    heads: int
    layers: int
    dropout: float
    updates: int
    tokens: int


PIECES = 6000
SIZES = {
    "small": Size(width=128, ffn=256, heads=4, layers=3, dropout=0.1, updates=1800, tokens=2048),
    "iwslt": Size(width=512, ffn=1024, heads=4, layers=6, dropout=0.3, updates=12000, tokens=4096),
}


def _run(command: list[str], log: Path) -> None:
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"error: {command[0]} ended with code {done.returncode}; its output is in {log}")


def prepare(text: Path, out: Path) -> Path:
    """SentencePiece and fairseq-preprocess, once: joint pieces learned on the training text."""
    data_bin = out / "data-bin"
    if not data_bin.is_dir():
        prefixes = {"--train": "train", "--valid": "val", "--test": "test_2016_flickr"}
        files = [part for option, prefix in prefixes.items() for part in (option, str(text / prefix))]
        options = ["--source", "de", "--target", "en", "--out", str(data_bin), "--joined-dictionary"]
        _run(
            ["examples.translation.prepare", *files, *options, "--bpe", "sentencepiece", "--vocab-size", str(PIECES)],
            out / "prepare.log",
        )
    return data_bin


def train_and_score(name: str, size: str, seed: int, data_bin: Path, out: Path, updates: int | None = None) -> dict:
    """One row: trains (resuming a killed training), translates test 2016 with the best checkpoint, scores.

    Returns the row, also kept in ``result.json`` so that a finished row is not run again.
    """
    slug = "".join(letter if letter.isalnum() else "_" for letter in name)
    folder = out / f"{size}-seed{seed}" / slug
    result = folder / "result.json"
    if result.exists():
        return read_json(result)
    folder.mkdir(parents=True, exist_ok=True)
    model = SIZES[size]
    updates = updates or model.updates
    device = ["--fp16"] if torch.cuda.is_available() else ["--cpu"]
    plugin = ["--user-dir", str(ROOT / "fairseq_ext"), "--seed", str(seed), *device]
    shape = " ".join(
        f"--{side}-embed-dim {model.width} --{side}-ffn-embed-dim {model.ffn} --{side}-layers {model.layers} "
        f"--{side}-attention-heads {model.heads} --{side}-normalize-before"
        for side in ("encoder", "decoder")
    )
    optimisation = (
        f"--max-tokens {model.tokens} --max-update {updates} --optimizer adam --weight-decay 1e-4 --lr 2e-3 "
        f"--lr-scheduler inverse_sqrt --warmup-updates {updates // 5} --warmup-init-lr 1e-7 "
        f"--share-all-embeddings --dropout {model.dropout}"
    )
    logging = "--no-epoch-checkpoints --best-checkpoint-metric nll_loss --log-format json --log-interval 100"
    options = [*f"{shape} {optimisation} {logging}".split(), "--adam-betas", "(0.9, 0.98)", *SYSTEMS[name]]
    start = time.perf_counter()
    _run(
        ["fairseq_cli.train", str(data_bin), *plugin, "--arch", "transformer_ext", "--save-dir", str(folder), *options],
        folder / "train.log",
    )
    seconds = time.perf_counter() - start
    decoding = "--beam 5 --remove-bpe sentencepiece --batch-size 100".split()
    _run(
        ["fairseq_cli.generate", str(data_bin), *plugin, "--path", str(folder / "checkpoint_best.pt"), *decoding],
        folder / "generate.txt",
    )
    reference, scores = str(data_bin / "text" / "test.en"), str(folder / "score.json")
    _run(
        ["examples.translation.score", str(folder / "generate.txt"), "--reference", reference, "--json", scores],
        folder / "score.log",
    )
    score = read_json(scores)
    row = {"system": name, "size": size, "seed": seed, "updates": updates, "seconds": round(seconds), **score}
    row |= {"parameters": parameters(folder / "train.log"), "curve": validation_curve(folder / "train.log")}
    write_json(result, row)
    for checkpoint in folder.glob("checkpoint_*.pt"):
        checkpoint.unlink()
    return row


def parameters(log: Path) -> int:
    """The size of the model, from fairseq's log."""
    found = re.search(r"num\. shared model params: ([\d,]+)", log.read_text(encoding="utf-8"))
    return int(found[1].replace(",", "")) if found else 0


def validation_curve(log: Path) -> list[tuple[int, float]]:
    """(update, validation nll in bits per token) from fairseq's JSON log."""
    points = []
    for line in log.read_text(encoding="utf-8").splitlines():
        start = line.find('{"epoch"')
        if start >= 0 and "valid_nll_loss" in line:
            entry = json.loads(line[start:])
            points.append((int(entry["valid_num_updates"]), float(entry["valid_nll_loss"])))
    return points


TEXT = """## Multi30k German to English, test 2016, size {size}

All systems: the same data ({pieces:,} joint SentencePiece pieces), size (width {width}, FFN {ffn}, {heads} heads,
{layers} + {layers} pre-norm layers, shared embeddings), dropout {dropout}, {updates:,} updates of at most {tokens:,}
tokens, Adam (0.9, 0.98) with learning rate 2e-3 inverse_sqrt, {warmup} warm-up updates, label smoothing 0.1; the
checkpoint with the best validation likelihood; beam 5, length penalty 1. Settings are our choice and were not tuned
for any row. Seeds {seeds}; {environment}.

    python -m examples.results {command}

| system | parameters | BLEU | difference to the Transformer | validation bits per token |
|---|---|---|---|---|
{rows}

sacreBLEU signature: `{signature}`, {sentences} of 1,000 sentences scored. {spread}

![Validation curves](results/{name}.png)
"""

ONE_SEED = """One seed: the spread between seeds was not measured, and differences of a point or less at this size
should not be read as differences between methods. The budget is far from convergence, so the table says how fast a
method learns, not how good it can get."""
MANY_SEEDS = "Means over the seeds, with the standard deviation; differences inside it are no differences."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", choices=sorted(SIZES), default="small", help="small for a CPU, iwslt for a GPU")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="one run of every system for each seed")
    parser.add_argument("--systems", nargs="+", choices=sorted(SYSTEMS), default=list(SYSTEMS), help="rows to run")
    parser.add_argument("--updates", type=int, help="training updates, instead of the size's own")


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every system and seed, each trained, translated and scored once."""
    text = options.data / "multi30k_de_en"
    if not text.is_dir():
        raise DataError(f"--data: {text} is not a folder with {{train,val,test_2016_flickr}}.{{de,en}}.gz")
    data_bin = prepare(text, options.out)
    rows = []
    for seed in options.seeds:
        for name in options.systems:
            rows.append(train_and_score(name, options.size, seed, data_bin, options.out, options.updates))
            print(f"{name}, seed {seed}: BLEU {rows[-1]['sacrebleu']:.2f}, {rows[-1]['seconds']} s", flush=True)
    yield {
        "name": f"multi30k_{options.size}",
        "size": options.size,
        "environment": environment("ve-fairseq", "sacrebleu", "sentencepiece"),
        "rows": rows,
    }


def section(contents: list[dict[str, Any]]) -> str:
    """A table for each size."""
    return "\n".join(map(_table, contents))


def _table(content: dict[str, Any]) -> str:
    """The table of one size; draws its learning curves."""
    rows = content["rows"]
    by_system = {name: [row for row in rows if row["system"] == name] for name in SYSTEMS}
    by_system = {name: found for name, found in by_system.items() if found}
    means = {name: statistics.mean(row["sacrebleu"] for row in found) for name, found in by_system.items()}
    baseline = means.get("Transformer")
    lines = []
    for name, found in by_system.items():
        spread = f" ± {statistics.stdev(row['sacrebleu'] for row in found):.2f}" if len(found) > 1 else ""
        delta = "" if baseline is None or name == "Transformer" else f"{means[name] - baseline:+.2f}"
        bits = statistics.mean(min(value for _, value in row["curve"]) for row in found)
        lines.append(f"| {name} | {found[0]['parameters']:,} | {means[name]:.2f}{spread} | {delta} | {bits:.3f} |")
    _plot(by_system, RESULTS / f"{content['name']}.png")
    seeds = sorted({row["seed"] for row in rows})
    updates = rows[0]["updates"]
    return TEXT.format(
        **{**SIZES[content["size"]]._asdict(), "updates": updates},
        size=content["size"],
        name=content["name"],
        pieces=PIECES,
        warmup=updates // 5,
        seeds=", ".join(map(str, seeds)),
        environment=describe(content["environment"]),
        command=content["command"],
        rows="\n".join(lines),
        signature=rows[0]["signature"],
        sentences=rows[0]["sentences"],
        spread=MANY_SEEDS if len(seeds) > 1 else ONE_SEED,
    )


def _plot(by_system: dict[str, list[dict]], file: Path) -> None:
    figure, axes = plt.subplots(figsize=(9, 5.5))
    colours = plt.get_cmap("tab20")
    for index, (name, found) in enumerate(by_system.items()):
        curves = [row["curve"] for row in found]
        steps = [update for update, _ in min(curves, key=len)]
        values = [statistics.mean(value for _, value in points) for points in zip(*curves, strict=False)]
        axes.plot(steps, values, label=name, color=colours(index), linewidth=1.6)
    axes.set_xlabel("updates")
    axes.set_ylabel("validation negative log-likelihood (bits per token)")
    axes.set_title("Multi30k German to English, equal budget")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plt.close(figure)
