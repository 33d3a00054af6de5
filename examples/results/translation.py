"""Multi30k German-English: every method with the same size, data, budget and tuning."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from fairseq_ext.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[2]

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
    """SentencePiece and fairseq-preprocess, once: 6,000 joint pieces on the training text."""
    data_bin = out / "data-bin"
    if not data_bin.is_dir():
        prefixes = {"--train": "train", "--valid": "val", "--test": "test_2016_flickr"}
        files = [part for option, prefix in prefixes.items() for part in (option, str(text / prefix))]
        options = ["--source", "de", "--target", "en", "--out", str(data_bin), "--joined-dictionary"]
        _run(
            ["examples.translation.prepare", *files, *options, "--bpe", "sentencepiece", "--vocab-size", "6000"],
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
    row["curve"] = validation_curve(folder / "train.log")
    write_json(result, row)
    for checkpoint in folder.glob("checkpoint_*.pt"):
        checkpoint.unlink()
    return row


def validation_curve(log: Path) -> list[tuple[int, float]]:
    """(update, validation nll in bits per token) from fairseq's JSON log."""
    points = []
    for line in log.read_text(encoding="utf-8").splitlines():
        start = line.find('{"epoch"')
        if start >= 0 and "valid_nll_loss" in line:
            entry = json.loads(line[start:])
            points.append((int(entry["valid_num_updates"]), float(entry["valid_nll_loss"])))
    return points
