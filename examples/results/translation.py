"""Multi30k German-English: every method with the same size, data, budget and tuning."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

from examples.results import fairseq_log, fairseq_programs
from examples.results.fairseq_programs import DEVICE_OPTIONS, device, generate, train
from examples.results.report import commands, common, environments, mean_spread, unique
from examples.results.translation_pictures import BASELINE, best_bits, draw, gains, links
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_json, write_json
from fairseq_ext.training.runs import environment
from fairseq_ext.training.settings import digest

SMOOTHED = ["--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1"]


def _encouraging(log_end: str) -> list[str]:
    return ["--criterion", "label_smoothed_encouraging_loss", "--label-smoothing", "0.1", "--log-end", log_end]


# What each row adds to the plain Transformer; MUSE runs with the initial weights its authors call essential.
SYSTEMS: dict[str, list[str]] = {
    BASELINE: SMOOTHED,
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
    """A model size and its training budget; layers count one side.

    ``warmup`` is a fifth of the updates where it is not given. ``select`` is the validation metric that chooses the
    checkpoint: the likelihood, or BLEU of greedy translations.
    """

    width: int
    ffn: int
    heads: int
    layers: int
    dropout: float
    updates: int
    tokens: int
    pieces: int = 6000
    warmup: int | None = None
    select: Literal["nll_loss", "bleu"] = "nll_loss"


SIZES = {
    "small": Size(width=128, ffn=256, heads=4, layers=3, dropout=0.1, updates=1800, tokens=2048),
    "cpu": Size(
        **dict(width=128, ffn=256, heads=4, layers=3, dropout=0.1, updates=4500, tokens=2048),
        **dict(warmup=400, select="bleu"),
    ),
    "converged": Size(width=128, ffn=256, heads=4, layers=4, dropout=0.3, updates=5000, tokens=4096),
    "trial": Size(width=16, ffn=16, heads=2, layers=1, dropout=0.1, updates=5, tokens=512, pieces=60, select="bleu"),
    "iwslt": Size(width=512, ffn=1024, heads=4, layers=6, dropout=0.3, updates=12000, tokens=4096),
}


SELECTION = {
    "nll_loss": ["--best-checkpoint-metric", "nll_loss"],
    "bleu": [
        *("--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric"),
        *("--eval-bleu", "--eval-bleu-remove-bpe", "sentencepiece"),
        *("--eval-bleu-args", '{"beam": 1, "max_len_a": 1.2, "max_len_b": 10}'),
    ],
}
DECODING = ("--beam", "5", "--lenpen", "1", "--remove-bpe", "sentencepiece", "--batch-size", "100")


def prepare(text: Path, out: Path, pieces: int = 6000) -> Path:
    """SentencePiece and fairseq-preprocess, once for each content of ``text``: joint pieces of the training text."""
    files = [file for file in sorted(text.iterdir()) if file.is_file()]
    key = digest(pieces, *[[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in files])
    data_bin = out / f"data-bin-{key[:8]}"
    if not data_bin.is_dir():
        prefixes = {"--train": "train", "--valid": "val", "--test": "test_2016_flickr"}
        files_of = [part for option, prefix in prefixes.items() for part in (option, str(text / prefix))]
        options = ["--source", "de", "--target", "en", "--out", str(data_bin), "--joined-dictionary"]
        learned = ["--bpe", "sentencepiece", "--vocab-size", str(pieces)]
        fairseq_programs.run(["examples.translation.prepare", *files_of, *options, *learned], out / "prepare.log")
    return data_bin


def training(name: str, size: str, seed: int, updates: int) -> list[str]:
    """Everything that decides a row, but for the data: fairseq-train's options."""
    model = SIZES[size]
    shape = " ".join(
        f"--{side}-embed-dim {model.width} --{side}-ffn-embed-dim {model.ffn} --{side}-layers {model.layers} "
        f"--{side}-attention-heads {model.heads} --{side}-normalize-before"
        for side in ("encoder", "decoder")
    )
    optimisation = (
        f"--max-tokens {model.tokens} --max-update {updates} --optimizer adam --weight-decay 1e-4 --lr 2e-3 "
        f"--lr-scheduler inverse_sqrt --warmup-updates {_warmup(size, updates)} --warmup-init-lr 1e-7 "
        f"--share-all-embeddings --dropout {model.dropout}"
    )
    saving = ["--no-epoch-checkpoints", *SELECTION[model.select]]
    logging = ["--log-format", "json", "--log-interval", "100"]
    options = [*f"--arch transformer_ext {shape} {optimisation}".split(), *saving, *logging]
    return [*options, "--adam-betas", "(0.9, 0.98)", *DEVICE_OPTIONS[device()], "--seed", str(seed), *SYSTEMS[name]]


def _warmup(size: str, updates: int) -> int:
    return SIZES[size].warmup or updates // 5


def train_and_score(name: str, size: str, seed: int, data_bin: Path, out: Path, updates: int | None = None) -> dict:
    """One row: trains (resuming a killed training), translates test 2016 with the best checkpoint, scores.

    A finished row is kept in ``result.json``; with another budget, recipe or data it has another folder.
    """
    updates = SIZES[size].updates if updates is None else updates
    options = training(name, size, seed, updates)
    slug = "".join(letter if letter.isalnum() else "_" for letter in name)
    folder = out / f"{size}-seed{seed}" / f"{slug}-{digest(options, DECODING, data_bin.name)[:8]}"
    result = folder / "result.json"
    if result.exists():
        return read_json(result)
    checkpoint = train(options, data_bin, folder)
    decoding = [*DEVICE_OPTIONS[device()], "--seed", str(seed), *DECODING]
    scores = translate_and_score(checkpoint, decoding, data_bin, folder)
    row = {"system": name, "size": size, "seed": seed, "updates": updates, **scores}
    log = folder / "train.log"
    row |= {"parameters": fairseq_log.parameters(log), "curve": fairseq_log.validation_curve(log)}
    if SIZES[size].select == "bleu":
        row["bleu_curve"] = fairseq_log.validation_curve(log, "bleu")
    row["environment"] = environment("ve-fairseq", "sacrebleu", "sentencepiece", device=device())
    write_json(result, row)
    for checkpoint in folder.glob("checkpoint_*.pt"):
        checkpoint.unlink()
    return row


def translate_and_score(checkpoint: Path, decoding: list[str], data_bin: Path, folder: Path) -> dict[str, Any]:
    """The scores of test 2016, whose translations are left in ``generate.txt``."""
    scores = folder / "score.json"
    translations = generate(decoding, data_bin, checkpoint, folder / "generate.txt")
    reference = ["--reference", str(data_bin / "text" / "test.en"), "--json", str(scores)]
    fairseq_programs.run(["examples.translation.score", str(translations), *reference], folder / "score.log")
    return read_json(scores)


TEXT = """## {heading}

All systems: the same data ({pieces:,} joint SentencePiece pieces), size (width {width}, FFN {ffn}, {heads} heads,
{layers} + {layers} pre-norm layers, shared embeddings), dropout {dropout}, {updates:,} updates of at most {tokens:,}
tokens, Adam (0.9, 0.98) with learning rate 2e-3 inverse_sqrt, {warmup} warm-up updates, label smoothing 0.1; the
checkpoint with the best validation {selection}; beam 5, length penalty 1. Settings are our choice and were not tuned
for any row. BLEU, chrF and bits: mean ± spread over the seeds {seeds}; {environment}.

{command}

| system | parameters | BLEU | difference to the Transformer | chrF | validation bits per token |
|---|---|---|---|---|---|
{rows}

sacreBLEU signature: `{signature}`, {sentences} of 1,000 sentences scored. {spread}{budget}

{pictures}
"""

NOTES = {
    "small": """The budget is far from
convergence, so the table says how fast a method learns, not how good it can get.""",
    "cpu": """GCA's fusion is the one
with the best validation likelihood in the table of size small.""",
}
ONE_SEED = "One seed: the table cannot tell a difference between methods from one between seeds. "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    help = "small and cpu for a CPU; converged and iwslt for a GPU; trial shows only that everything runs"
    parser.add_argument("--size", choices=sorted(SIZES), default="small", help=help)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="one run of every system for each seed")
    parser.add_argument("--systems", nargs="+", choices=sorted(SYSTEMS), default=list(SYSTEMS), help="rows to run")
    parser.add_argument("--updates", type=int, help="training updates, instead of the size's own")


SELECTS = "size"


def names(options: argparse.Namespace) -> list[str]:
    return [f"multi30k_{options.size}"]


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every system and seed, each trained, translated and scored once; what is complete, after each of them."""
    text = options.data / "multi30k_de_en"
    if not text.is_dir():
        raise DataError(f"--data: {text} is not a folder with {{train,val,test_2016_flickr}}.{{de,en}}.gz")
    data_bin = prepare(text, options.out, SIZES[options.size].pieces)

    def run(seed: int, name: str) -> dict[str, Any]:
        try:
            row = train_and_score(name, options.size, seed, data_bin, options.out, options.updates)
        except SystemExit as error:  # others go on
            print(f"{name}, seed {seed}: {error}", flush=True)
            raise
        print(f"{name}, seed {seed}: BLEU {row['sacrebleu']:.2f}", flush=True)
        return row

    planned = list(product(options.seeds, options.systems))  # seed by seed: stopped, it leaves whole seeds
    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for row in pool.map(run, *zip(*planned, strict=True)):
            rows.append(row)
            yield {
                "name": f"multi30k_{options.size}",
                "size": options.size,
                "environments": unique(row["environment"] for row in rows),
                "rows": rows,
                "missing": [f"{name}, seed {seed}" for seed, name in planned[len(rows) :]],
            }


def heading(content: dict[str, Any]) -> str:
    """Of the section with the table."""
    return f"Multi30k German to English, test 2016, size {content['size']}"


def section(contents: list[dict[str, Any]]) -> str:
    """A table for each size."""
    return "\n".join(map(_table, contents))


def pictures(contents: list[dict[str, Any]], folder: Path) -> None:
    """Differences to the Transformer and learning curves of each size."""
    for content in contents:
        draw(_by_system(content), content["name"], folder)


def _by_system(content: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    by_system = {name: [row for row in content["rows"] if row["system"] == name] for name in SYSTEMS}
    return {name: rows for name, rows in by_system.items() if rows}


def _table(content: dict[str, Any]) -> str:
    """The table of one size."""
    rows, by_system = content["rows"], _by_system(content)
    differences = gains(by_system, lambda row: row["sacrebleu"])
    lines = []
    for name, of_system in by_system.items():
        gain = differences[name].text(2) if name in differences else ""
        bleu = mean_spread([row["sacrebleu"] for row in of_system], 2)
        chrf = mean_spread([row["chrf"] for row in of_system], 2) if "chrf" in rows[0] else ""
        bits = mean_spread([best_bits(row) for row in of_system], 3)
        lines.append(f"| {name} | {common(of_system, 'parameters'):,} | {bleu} | {gain} | {chrf} | {bits} |")
    seeds = sorted({row["seed"] for row in rows})
    updates = common(rows, "updates")
    unfinished = f"Not measured yet: {'; '.join(content['missing'])}. " if content.get("missing") else ""
    return TEXT.format(
        **{**SIZES[content["size"]]._asdict(), "updates": updates, "warmup": _warmup(content["size"], updates)},
        heading=heading(content),
        pictures=links(by_system, content["name"]),
        selection={"nll_loss": "likelihood", "bleu": "BLEU (greedy)"}[SIZES[content["size"]].select],
        seeds=", ".join(map(str, seeds)),
        environment=environments(content),
        command=commands([content]),
        rows="\n".join(lines),
        signature=common(rows, "signature"),
        sentences=common(rows, "sentences"),
        budget=NOTES.get(content["size"], ""),
        spread=(ONE_SEED if len(seeds) == 1 else "") + unfinished,
    )
