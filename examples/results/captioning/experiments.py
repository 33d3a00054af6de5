"""What is prepared, trained and generated for the tables of captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from examples.results import fairseq_log, fairseq_programs
from examples.results.fairseq_programs import DEVICE_OPTIONS, device
from examples.results.report import slug
from fairseq_ext.captions.evaluation import Evaluation
from fairseq_ext.captions.generated import read_generated
from fairseq_ext.captions.store import Preparation, Split
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import output_folder, read_json, write_json
from fairseq_ext.training.runs import environment
from fairseq_ext.training.settings import digest

__all__ = ["ARMS", "EXPERIMENTS", "Experiment", "prepared", "train_and_score", "training"]

SMOOTHED = ["--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1"]
ENCOURAGING = ["--criterion", "label_smoothed_encouraging_loss", "--label-smoothing", "0.1", "--log-end", "0.75"]
ARMS: dict[str, list[str]] = {
    "dense": SMOOTHED,
    "top-k 4": ["--attention-topk", "4", *SMOOTHED],
    "top-k 8": ["--attention-topk", "8", *SMOOTHED],
    "sparsemax": ["--attention-normalizer", "sparsemax", *SMOOTHED],
    "top-k 4, AdaNorm, encouraging loss": ["--attention-topk", "4", "--norm", "adanorm", *ENCOURAGING],
}
"""What each row adds to the dense Transformer; ``--attention-topk`` is that of all attentions."""


class Experiment(NamedTuple):
    """A data set and the settings of all its rows.

    Words less frequent than ``min_count`` are unknown; ``images`` is the folder of the images that the vectors of
    ``components`` principal components each are extracted from, where the source has none.
    """

    source: str
    epochs: int
    dropout: float
    batch: int
    warmup: int
    min_count: int
    arms: tuple[str, ...] = tuple(ARMS)
    language: str = ""
    model: tuple[str, ...] = ()
    images: str = ""
    components: int = 128


STAMPS = Experiment(
    source="captioning/tuxpaint_stamps",
    epochs=40,
    dropout=0.3,
    batch=32,
    warmup=100,
    min_count=1,
    arms=("dense", "top-k 8"),
    model=("--visual-position", "learned"),
    images="images",
)
EXPERIMENTS = {
    "coco_val2017_regions": Experiment(
        source="coco_val2017_regions", epochs=7, dropout=0.2, batch=64, warmup=600, min_count=5
    ),
    "tuxpaint_stamps_en": STAMPS._replace(language="en"),
    "tuxpaint_stamps_de": STAMPS._replace(language="de"),
}
DECODING = ["--task", "captioning", "--beam", "3", "--max-len-b", "20", "--batch-size", "50"]


def prepared(name: str, data: Path, out: Path) -> Path:
    """The prepared folder of an experiment."""
    experiment = EXPERIMENTS[name]
    source = data / experiment.source
    if not source.is_dir():
        raise DataError(f"--data: {source} is not a folder with {{train,valid,test}}.jsonl.gz")
    folder = out / "data" / name
    output_folder(folder.parent)
    language = ["--language", experiment.language] if experiment.language else []
    log = folder.parent / f"{name}.log"
    features = ["--features", str(_extracted(experiment, source, folder.parent, log))] if experiment.images else []
    options = [str(source), str(folder), "--min-count", str(experiment.min_count), *language, *features]
    fairseq_programs.run(["fairseq_ext.captions", "prepare", *options], log)
    return folder


def _extracted(experiment: Experiment, source: Path, out: Path, log: Path) -> Path:
    """The grids of the images, extracted once; the components are those of the training images."""
    images = sorted((source / experiment.images).iterdir())
    key = digest([[path.name, path.stat().st_size] for path in images], experiment.components)
    grids = out / f"{source.name}-{key[:8]}.npz"
    if not grids.is_file():
        components = ["--pca", str(experiment.components), "--pca-images", str(source / "train.jsonl.gz")]
        words = ["extract", str(source / experiment.images), str(grids), *components]
        fairseq_programs.run(["fairseq_ext.captions", *words], log)
    return grids


def training(experiment: Experiment, arm: str, seed: int, epochs: int | None = None) -> list[str]:
    """Everything that decides a row, but for the data: fairseq-train's options."""
    shape = " ".join(
        f"--{side}-layers 2 --{side}-embed-dim 128 --{side}-ffn-embed-dim 512 --{side}-attention-heads 4"
        for side in ("encoder", "decoder")
    )
    optimisation = (
        f"--batch-size {experiment.batch} --max-epoch {epochs or experiment.epochs} --dropout {experiment.dropout} "
        f"--optimizer adam --lr 1e-3 --lr-scheduler inverse_sqrt --warmup-updates {experiment.warmup} --num-workers 0"
    )
    selection = "--eval-captions --best-checkpoint-metric cider --maximize-best-checkpoint-metric"
    logging = "--no-epoch-checkpoints --log-format json --log-interval 100"
    model = f"--task captioning --arch captioning_transformer_ext {shape} --share-decoder-input-output-embed"
    options = f"{model} {optimisation} {selection} {logging}".split()
    own = [*experiment.model, *DEVICE_OPTIONS[device()], "--seed", str(seed), *ARMS[arm]]
    return [*options, "--adam-betas", "(0.9, 0.98)", *own]


def train_and_score(
    name: str, arm: str, seed: int, data: Path, out: Path, epochs: int | None = None
) -> tuple[dict[str, Any], Evaluation]:
    """One row: trains (resuming a killed training), captions the test images with the best checkpoint, scores.

    A finished row is kept in ``result.json``; with another recipe or other data it has another folder.
    """
    preparation = Preparation.load(data)
    test = Split(data, "test", preparation)
    options = training(EXPERIMENTS[name], arm, seed, epochs)
    folder = out / name / f"seed{seed}" / f"{slug(arm)}-{digest(options, DECODING, preparation.fingerprint)[:8]}"
    result, captions = folder / "result.json", folder / "generate.txt"
    if not result.exists():
        checkpoint = fairseq_programs.train(options, data, folder)
        decoding = [*DEVICE_OPTIONS[device()], *DECODING]
        fairseq_programs.generate(decoding, data, checkpoint, captions)
        evaluation = Evaluation(read_generated(captions, test), test)
        log = folder / "train.log"
        curves = {metric: fairseq_log.validation_curve(log, metric) for metric in ("nll_loss", "cider")}
        row = {**evaluation.metrics(), "counts": evaluation.counts(), "parameters": fairseq_log.parameters(log)}
        packages = ("ve-fairseq", "numpy")
        write_json(result, {**row, "curves": curves, "environment": environment(*packages, device=device())})
        fairseq_programs.discard(folder)
    return read_json(result), Evaluation(read_generated(captions, test), test)
