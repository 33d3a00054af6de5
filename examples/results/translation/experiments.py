"""What is prepared, trained and translated for the tables of translation."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

from examples.results import fairseq_log, fairseq_programs
from examples.results.fairseq_programs import DEVICE_OPTIONS, device, discard, generate, train
from examples.results.planned import finished
from examples.results.report import slug
from examples.results.translation.outputs import bleu_by_length, compress, translations_of
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_json, write_json
from fairseq_ext.training.runs import environment
from fairseq_ext.training.settings import digest, file_digest

__all__ = [
    "BASELINE",
    "DATA",
    "DECODING",
    "GRID",
    "SIZES",
    "SMOOTHED",
    "SYSTEMS",
    "DataSet",
    "Settings",
    "Size",
    "folder_of",
    "prepare",
    "settings_of",
    "train_and_score",
    "training",
    "translate_and_score",
    "tune",
    "validate",
    "warmup",
]

BASELINE = "Transformer"
SMOOTHED = ["--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1"]


def _encouraging(log_end: str) -> list[str]:
    return ["--criterion", "label_smoothed_encouraging_loss", "--label-smoothing", "0.1", "--log-end", log_end]


SYSTEMS: dict[str, list[str]] = {
    BASELINE: SMOOTHED,
    "Transformer, km": ["--init", "km", *SMOOTHED],
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
"""What each row adds to the plain Transformer; MUSE runs with the initial weights its authors call essential, which
the second row has alone."""


class DataSet(NamedTuple):
    """A parallel text in a folder of ``--data``; ``splits`` are what the names of its files begin with."""

    folder: str
    source: str
    target: str
    name: str
    title: str
    splits: tuple[str, str, str] = ("train", "valid", "test")


DATA = {
    "multi30k": DataSet(
        *("multi30k_de_en", "de", "en", "Multi30k", "Multi30k German to English, test 2016"),
        splits=("train", "val", "test_2016_flickr"),
    ),
    "libreoffice": DataSet(
        *("libreoffice_help_en_de", "en", "de", "LibreOffice help", "LibreOffice help, English to German")
    ),
}


class Size(NamedTuple):
    """A model size and its training budget; layers count one side.

    ``warmup`` is a fifth of the updates where it is not given. ``select`` is the validation metric that chooses the
    checkpoint, the likelihood or BLEU of greedy translations, after each ``epochs`` of them.
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
    epochs: int = 1


SIZES = {
    "small": Size(width=128, ffn=256, heads=4, layers=3, dropout=0.1, updates=1800, tokens=2048),
    "cpu": Size(
        **dict(width=128, ffn=256, heads=4, layers=3, dropout=0.1, updates=12000, tokens=1024),
        **dict(warmup=400, select="bleu"),
    ),
    "converged": Size(
        **dict(width=128, ffn=256, heads=4, layers=4, dropout=0.3, updates=5000, tokens=4096),
        **dict(select="bleu", epochs=4),
    ),
    "ablation": Size(width=64, ffn=128, heads=4, layers=4, dropout=0.1, updates=1200, tokens=2048, pieces=2000),
    "trial": Size(width=16, ffn=16, heads=2, layers=1, dropout=0.1, updates=5, tokens=512, pieces=60, select="bleu"),
    "iwslt": Size(width=512, ffn=1024, heads=4, layers=6, dropout=0.3, updates=12000, tokens=4096),
}


class Settings(NamedTuple):
    """What tuning chooses."""

    lr: float
    dropout: float


GRID = tuple(Settings(*each) for each in product((1e-3, 2e-3), (0.1, 0.2, 0.3)))
"""What is tried for every system alike."""
LEARNING_RATE = 2e-3

SELECTION = {
    "nll_loss": ["--best-checkpoint-metric", "nll_loss"],
    "bleu": [
        *("--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric"),
        *("--eval-bleu", "--eval-bleu-remove-bpe", "sentencepiece"),
        *("--eval-bleu-args", '{"beam": 1, "max_len_a": 1.2, "max_len_b": 10}'),
    ],
}
DECODING = ("--beam", "5", "--lenpen", "1", "--remove-bpe", "sentencepiece", "--batch-size", "100")


def prepare(name: str, data: Path, out: Path, pieces: int = 6000) -> Path:
    """SentencePiece and fairseq-preprocess, once for each content: joint pieces of the training text.

    Raises:
        DataError: ``data`` has no folder of that text.
    """
    text = DATA[name]
    folder = data / text.folder
    if not folder.is_dir():
        files = f"{{{','.join(text.splits)}}}.{{{text.source},{text.target}}}.gz"
        raise DataError(f"--data: {folder} is not a folder with {files}")
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    key = digest(pieces, *[[file.name, file_digest(file)] for file in files])
    data_bin = out / f"data-bin-{key[:8]}"
    if not data_bin.is_dir():
        prefixes = zip(("--train", "--valid", "--test"), text.splits, strict=True)
        files_of = [part for option, prefix in prefixes for part in (option, str(folder / prefix))]
        options = ["--source", text.source, "--target", text.target, "--out", str(data_bin), "--joined-dictionary"]
        learned = ["--bpe", "sentencepiece", "--vocab-size", str(pieces)]
        fairseq_programs.run(["examples.translation.prepare", *files_of, *options, *learned], out / "prepare.log")
    return data_bin


def settings_of(size: str) -> dict[str, Any]:
    """What a table says of all its rows; each row has its updates."""
    return {key: value for key, value in SIZES[size]._asdict().items() if key != "updates"}


def warmup(size: str, updates: int) -> int:
    """Updates until the learning rate is at its peak."""
    return SIZES[size].warmup or updates // 5


def training(added: list[str], size: str, seed: int, updates: int, settings: Settings | None = None) -> list[str]:
    """Everything that decides a row, but for the data: fairseq-train's options, to which the row has ``added`` some."""
    model = SIZES[size]
    lr, dropout = settings or Settings(LEARNING_RATE, model.dropout)
    shape = " ".join(
        f"--{side}-embed-dim {model.width} --{side}-ffn-embed-dim {model.ffn} --{side}-layers {model.layers} "
        f"--{side}-attention-heads {model.heads} --{side}-normalize-before"
        for side in ("encoder", "decoder")
    )
    optimisation = (
        f"--max-tokens {model.tokens} --max-update {updates} --optimizer adam --weight-decay 1e-4 --lr {1e3 * lr:g}e-3 "
        f"--lr-scheduler inverse_sqrt --warmup-updates {warmup(size, updates)} --warmup-init-lr 1e-7 "
        f"--share-all-embeddings --dropout {dropout}"
    )
    saving = ["--no-epoch-checkpoints", *SELECTION[model.select]]
    saving += ["--validate-interval", str(model.epochs)] if model.epochs > 1 else []
    logging = ["--log-format", "json", "--log-interval", "100"]
    options = [*f"--arch transformer_ext {shape} {optimisation}".split(), *saving, *logging]
    return [*options, "--adam-betas", "(0.9, 0.98)", *DEVICE_OPTIONS[device()], "--seed", str(seed), *added]


def folder_of(name: str, size: str, seed: int, options: list[str], data_bin: Path, out: Path) -> Path:
    """Where a row is trained: with another budget, recipe or data it is another folder."""
    return out / f"{size}-seed{seed}" / f"{slug(name)}-{digest(options, DECODING, data_bin.name)[:8]}"


def tune(name: str, seed: int, size: str, data_bin: Path, out: Path, updates: int | None = None) -> Settings:
    """The settings of ``GRID`` with the best validation metric; only their training keeps its checkpoints."""
    updates = updates or SIZES[size].updates
    metric = SIZES[size].select
    scores: dict[Settings, float] = {}
    folders: dict[Settings, Path] = {}
    for settings in GRID:
        options = training(SYSTEMS[name], size, seed, updates, settings)
        folder = folders[settings] = folder_of(name, size, seed, options, data_bin, out)
        values = [value for _, value in validate(options, data_bin, folder, metric)["curve"]]
        scores[settings] = max(values) if metric == "bleu" else -min(values)
        chosen = max(scores, key=scores.__getitem__)
        for other in folders.keys() - {chosen}:
            discard(folders[other])
    return chosen


def validate(options: list[str], data_bin: Path, folder: Path, metric: str = "nll_loss") -> dict[str, Any]:
    """A training without a test: its size and the curve of a metric, kept in ``valid.json``; checkpoints stay."""
    result = folder / "valid.json"
    if not result.exists():
        train(options, data_bin, folder)
        log = folder / "train.log"
        curve = fairseq_log.validation_curve(log, metric)
        packages = environment("ve-fairseq", "sentencepiece", device=device())
        write_json(result, {"parameters": fairseq_log.parameters(log), "curve": curve, "environment": packages})
    return read_json(result)


def train_and_score(
    data: str,
    name: str,
    seed: int,
    size: str,
    data_bin: Path,
    out: Path,
    updates: int | None = None,
    settings: Settings | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """One row, with its translations: trains (resuming a killed training), translates with the best checkpoint, scores.

    A finished row is kept in ``result.json`` beside its translations, of which there are none where only the row was
    restored.
    """
    updates = SIZES[size].updates if updates is None else updates
    options = training(SYSTEMS[name], size, seed, updates, settings)
    folder = folder_of(name, size, seed, options, data_bin, out)
    text = DATA[data]
    source, reference = (data_bin / "text" / f"test.{language}" for language in (text.source, text.target))

    def measure() -> dict[str, Any]:
        checkpoint = train(options, data_bin, folder)
        decoding = [*DEVICE_OPTIONS[device()], "--seed", str(seed), *DECODING]
        scores = translate_and_score(checkpoint, decoding, data_bin, folder, text.target)
        scores["bleu_by_length"] = bleu_by_length(compress(folder, reference), reference, source)
        lr, dropout = settings or Settings(LEARNING_RATE, SIZES[size].dropout)
        row = {"system": name, "size": size, "seed": seed, "updates": updates, "lr": lr, "dropout": dropout, **scores}
        log = folder / "train.log"
        row |= {"parameters": fairseq_log.parameters(log), "curve": fairseq_log.validation_curve(log)}
        if SIZES[size].select == "bleu":
            row["bleu_curve"] = fairseq_log.validation_curve(log, "bleu")
        row["environment"] = environment("ve-fairseq", "sacrebleu", "sentencepiece", device=device())
        return row

    return finished(folder, out, measure), translations_of(folder)


def translate_and_score(
    checkpoint: Path, decoding: list[str], data_bin: Path, folder: Path, target: str
) -> dict[str, Any]:
    """The scores of the test set, whose translations are left in ``generate.txt``."""
    scores = folder / "score.json"
    translations = generate(decoding, data_bin, checkpoint, folder / "generate.txt")
    reference = ["--reference", str(data_bin / "text" / f"test.{target}"), "--json", str(scores)]
    fairseq_programs.run(["examples.translation.score", str(translations), *reference], folder / "score.log")
    return read_json(scores)
