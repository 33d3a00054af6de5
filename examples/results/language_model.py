"""Language models of Brown's words: top-k attention, AdaNorm and adaptive spans, by perplexity."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from examples.language_modeling.bpc import bits_per_character
from examples.plotting import limits_after_first, small_multiples
from examples.results import fairseq_log, fairseq_programs
from examples.results.fairseq_programs import DEVICE_OPTIONS, PLUGIN, device
from examples.results.paired import Paired, differences
from examples.results.planned import finished, not_measured, seed_by_seed
from examples.results.report import commands, common, environments, mean_spread, of_seeds, slug, unique
from examples.translation.staging import fairseq_preprocess
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_json, read_lines, replacing, write_json
from fairseq_ext.training.options import SPLITS
from fairseq_ext.training.plotting import saved_figure
from fairseq_ext.training.runs import environment
from fairseq_ext.training.settings import digest, file_digest

BASELINE = "dense"
TEXTS = "language_model/brown"
SOFTMAX = ["--criterion", "adaptive_loss"]
SYSTEMS: dict[str, list[str]] = {
    BASELINE: SOFTMAX,
    "top-k 8": ["--attention-topk", "8", *SOFTMAX],
    "AdaNorm": ["--norm", "adanorm", *SOFTMAX],
    "adaptive span": [
        *("--attention-span", "64", "--attention-span-loss", "5e-7", "--no-token-positional-embeddings"),
        *("--criterion", "adaptive_loss_with_span"),
    ],
}
"""What each row adds to the dense model; spans bring their own positions and take the authors' weight of their loss."""


class Size(NamedTuple):
    """A model and its budget: ``block`` words a sample; words rarer than ``min_count`` are unknown."""

    width: int
    ffn: int
    heads: int
    layers: int
    dropout: float
    epochs: int
    block: int
    tokens: int
    min_count: int
    cutoff: str


SIZES = {
    "brown": Size(
        **dict(width=64, ffn=128, heads=4, layers=2, dropout=0.1, epochs=8, block=64, tokens=2048),
        **dict(min_count=5, cutoff="1000,4000"),
    ),
    "trial": Size(
        **dict(width=16, ffn=16, heads=2, layers=1, dropout=0.1, epochs=1, block=64, tokens=256),
        **dict(min_count=1, cutoff="8,16"),
    ),
}

TEXT = """## {heading}

{train:,} words for training; the {vocabulary:,} words that occur {min_count} times or more, the others unknown
({unknown:.1f} % of test). {layers} pre-norm layers (width {width}, FFN {ffn}, {heads} heads), adaptive input and
softmax with cutoffs {cutoff}, tied; dropout {dropout}, blocks of {block} words, {epochs} epochs of batches of
{tokens:,} words, Adam (0.9, 0.98) with learning rate 2e-3 inverse_sqrt, 200 warm-up updates; the epoch with the best
validation likelihood. Our choice, not tuned for any row. A word of test sees at least {context} words before it, where
there are so many: mean ± spread over {seeds}; {environment}.

{command}

| system | parameters | perplexity, test | bits per word, test | difference to dense, bits | bits per word, valid |
|---|---|---|---|---|---|
{rows}

Perplexities hold for this vocabulary only. {missing}

![Validation curves](results/{name}.png)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size",
        choices=list(SIZES),
        default="brown",
        help="size of the experiment; trial shows only that everything runs",
    )
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), help="rows to run")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 1 on")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--epochs", type=int, help="training epochs, instead of the size's own")


SELECTS = "size"


def reads(options: argparse.Namespace) -> dict[str, list[Path]]:
    return {f"language_model_{options.size}": [options.data / TEXTS]}


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every system and seed, each trained and evaluated once; what is complete, after each of them."""
    size = SIZES[options.size]
    size = size._replace(epochs=options.epochs or size.epochs)
    out = options.out / "language_model"
    data_bin = prepare(options.data / TEXTS, out, size.min_count)

    def run(seed: int, name: str) -> dict[str, Any]:
        row = train_and_score(name, size, seed, data_bin, options.out)
        print(f"{name}, seed {seed}: perplexity {row['perplexity']:.1f}", flush=True)
        return row

    rows: list[dict[str, Any]] = []
    for row, missing in seed_by_seed(range(1, options.seeds + 1), options.systems, run, options.jobs):
        rows.append(row)
        yield {
            "name": f"language_model_{options.size}",
            "size": size._asdict(),
            "text": read_json(data_bin / "prepare.json"),
            "environments": unique(row["environment"] for row in rows),
            "rows": rows,
            "missing": missing,
        }


def prepare(source: Path, out: Path, min_count: int) -> Path:
    """fairseq-preprocess of the words, once for each content.

    Raises:
        DataError: ``source`` has no text.
    """
    files = {split: source / f"{split}.txt.gz" for split in SPLITS}
    if absent := [file for file in files.values() if not file.is_file()]:
        raise DataError(f"--data: {absent[0]} is not there")
    key = digest(min_count, *map(file_digest, files.values()))
    data_bin = out / f"data-bin-{key[:8]}"
    if not data_bin.is_dir():
        data_bin.parent.mkdir(parents=True, exist_ok=True)
        with replacing(data_bin) as partial:
            (partial / "text").mkdir(parents=True)
            counts = {}
            for split, file in files.items():
                lines = [line for line, _ in read_lines(file)]
                (partial / "text" / split).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
                counts[split] = sum(len(line.split()) + 1 for line in lines)  # the end of a line is predicted too
            prefixes = [word for split in SPLITS for word in (f"--{split}pref", str(partial / "text" / split))]
            fairseq_preprocess(["--only-source", *prefixes, "--thresholdsrc", str(min_count)], partial)
            words = {line.rpartition(" ")[0] for line, _ in read_lines(partial / "dict.txt")}
            test = (partial / "text" / "test").read_text(encoding="utf-8").split()
            unknown = sum(word not in words for word in test) / counts["test"]
            write_json(partial / "prepare.json", {**counts, "vocabulary": len(words), "unknown": unknown})
    return data_bin


def training(name: str, size: Size, seed: int) -> list[str]:
    """Everything that decides a row, but for the data: fairseq-train's options."""
    width = " ".join(f"--decoder-{part}-dim {size.width}" for part in ("embed", "input", "output"))
    cutoffs = " ".join(f"--adaptive-{side}-cutoff {size.cutoff}" for side in ("input", "softmax"))
    model = (
        f"--task language_modeling --ddp-backend legacy_ddp --arch transformer_lm_ext {width} "
        f"--decoder-layers {size.layers} --decoder-ffn-embed-dim {size.ffn} --decoder-attention-heads {size.heads} "
        f"--decoder-normalize-before --adaptive-input {cutoffs} --tie-adaptive-weights --dropout {size.dropout}"
    )
    optimisation = (
        f"--tokens-per-sample {size.block} --sample-break-mode none --max-tokens {size.tokens} "
        f"--max-epoch {size.epochs} --optimizer adam --lr 2e-3 --lr-scheduler inverse_sqrt --warmup-updates 200 "
        "--warmup-init-lr 1e-7 --clip-norm 0.25 --no-epoch-checkpoints --log-format json --log-interval 100"
    )
    words = f"{model} {optimisation}".split()
    return [*words, "--adam-betas", "(0.9, 0.98)", *DEVICE_OPTIONS[device()], "--seed", str(seed), *SYSTEMS[name]]


def train_and_score(name: str, size: Size, seed: int, data_bin: Path, out: Path) -> dict[str, Any]:
    """One row: trains (resuming a killed training) and evaluates on test; a finished row is in ``result.json``."""
    options = training(name, size, seed)
    folder = out / "language_model" / f"seed{seed}" / f"{slug(name)}-{digest(options, data_bin.name)[:8]}"

    def measure() -> dict[str, Any]:
        checkpoint = fairseq_programs.train(options, data_bin, folder)
        bits = evaluate(checkpoint, size, data_bin, folder / "eval.log")
        log = folder / "train.log"
        row = {"system": name, "seed": seed, "bits": bits, "perplexity": 2**bits}
        row |= {"parameters": fairseq_log.parameters(log), "curve": fairseq_log.validation_curve(log, "loss")}
        return row | {"environment": environment("ve-fairseq", device=device())}

    return finished(folder, out, measure)


def evaluate(checkpoint: Path, size: Size, data_bin: Path, log: Path) -> float:
    """Bits per word of test, ends of lines included."""
    log.unlink(missing_ok=True)
    blocks = ["--tokens-per-sample", str(size.block), "--context-window", str(size.block // 2)]
    options = [*DEVICE_OPTIONS[device()], *blocks, "--max-tokens", str(size.tokens), "--gen-subset", "test"]
    options += ["--sample-break-mode", "none", "--required-batch-size-multiple", "1", "--path", str(checkpoint)]
    fairseq_programs.run(["fairseq_cli.eval_lm", str(data_bin), *PLUGIN, *options], log)
    words = read_json(data_bin / "prepare.json")["test"]
    try:
        return bits_per_character(log.read_text(encoding="utf-8"), words, words)
    except ValueError as error:
        raise DataError(f"{log}: {error}") from error


def heading(content: dict[str, Any]) -> str:
    """Of the section with the table."""
    return f"Language models, {content['name'].removeprefix('language_model_').capitalize()}"


def section(contents: list[dict[str, Any]]) -> str:
    """A table for each size."""
    return "\n".join(map(_table, contents))


def by_system(content: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each system."""
    rows = {name: [row for row in content["rows"] if row["system"] == name] for name in SYSTEMS}
    return {name: own for name, own in rows.items() if own}


def gains(systems: dict[str, list[dict[str, Any]]]) -> dict[str, list[float]]:
    """Bits of test that each system saves against the dense model of the same seed."""
    saved = {name: {row["seed"]: -row["bits"] for row in own} for name, own in systems.items()}
    dense = saved.pop(BASELINE, {})
    pairs = {name: differences(own, dense) for name, own in saved.items()}
    return {name: own for name, own in pairs.items() if own}


def _table(content: dict[str, Any]) -> str:
    systems = by_system(content)
    saved = gains(systems)
    lines = []
    for name, own in systems.items():
        difference = Paired.of([-bits for bits in saved[name]]).text(3) if name in saved else ""
        means = [mean_spread([row[key] for row in own], digits) for key, digits in (("perplexity", 1), ("bits", 3))]
        valid = mean_spread([min(bits for _, bits in row["curve"]) for row in own], 3)
        cells = [name, f"{common(own, 'parameters'):,}", *means, difference, valid]
        lines.append(f"| {' | '.join(cells)} |")
    text = content["text"]
    return TEXT.format(
        **content["size"] | text | {"unknown": 100 * text["unknown"]},
        heading=heading(content),
        context=content["size"]["block"] // 2,
        seeds=of_seeds({name: [row["seed"] for row in own] for name, own in systems.items()}, listed=True),
        environment=environments(content),
        command=commands([content]),
        rows="\n".join(lines),
        missing=not_measured(content),
        name=content["name"],
    )


def draw(contents: list[dict[str, Any]], folder: Path) -> None:
    """Validation bits over the updates, a panel for each system."""
    for content in contents:
        curves = {name: [row["curve"] for row in rows] for name, rows in by_system(content).items()}
        title = f"Brown corpus: validation bits per word, mean and range over the seeds, beside {BASELINE} (grey)"
        with saved_figure(folder / f"{content['name']}.png", (9, 2.6), title) as figure:
            small_multiples(figure, curves, BASELINE, columns=3, limits=limits_after_first(curves))
            figure.supxlabel("updates")
            figure.supylabel("bits")
