"""Scores of generated captions against those that people wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_ext.captions.evaluation import METRICS, TOKENIZERS, Evaluation
from fairseq_ext.captions.generated import read_generated, write_results
from fairseq_ext.captions.java import SCORERS
from fairseq_ext.captions.store import Preparation, Split
from fairseq_ext.training.errors import DataError, OptionError, choose
from fairseq_ext.training.files import output_folder, read_json, write_json, writing_to
from fairseq_ext.training.options import SPLITS, OptionSet, option, seed_option

__all__ = ["GeneratedOptions", "ScoreOptions", "score"]


@dataclass(frozen=True, kw_only=True)
class GeneratedOptions(OptionSet):
    """The captions, and the images they are of."""

    data: str = option(help="folder of prepared data", positional=True)
    generated: str = option(
        help="what fairseq-generate printed (-: the standard input), what `fairseq-ext captions generate --json` "
        "printed (.jsonl), or a COCO results file (.json)"
    )
    split: str = option("", "split that was generated (default: test)", ("", *SPLITS))
    tokenizer: str = option(
        "words",
        "tokenizer of captions and references: as Java's, without Java; or Java's own, of pycocoevalcap",
        (*TOKENIZERS,),
    )
    seed: int = seed_option(1, "seed of what is drawn")

    def evaluate(self) -> Evaluation:
        """The captions with their scores.

        Raises:
            DataError: a folder that is not prepared data, or captions of other images.
        """
        split = Split(self.data, self.split or "test", Preparation.load(self.data))
        captions = read_generated(self.generated, split, certain=bool(self.split))
        return Evaluation(captions, split, self.tokenizer)

    def output(self, name: str) -> Path:
        """The file that an option names, after a check that its folder can be written to.

        Raises:
            OptionError: the folder cannot be written to, or the file is one that is read.
        """
        path = Path(getattr(self, name))
        read = [other for other in ("generated", "compare", "attention") if getattr(self, other, "")]
        for other in read:
            if path.resolve() == Path(getattr(self, other)).resolve():
                raise OptionError(f"--{name} {path}: is the file of --{other}")
        output_folder(path.parent, f"--{name}")
        if path.is_dir():
            raise OptionError(f"--{name} {path}: is a folder, must be a file")
        return path


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(GeneratedOptions):
    """What is computed of them, and where it is written."""

    metrics: tuple[str, ...] = option((), f"further metrics: {', '.join(SCORERS)}, which run in Java (pycocoevalcap)")
    samples: int = option(1000, "bootstrap samples of the images, for the intervals", least=100)
    compare: str = option("", "a file that --out wrote for other captions: the difference to them, paired by image")
    out: str = option("", "JSON file for the scores, in natural units, and those of each image")
    results: str = option("", "JSON file for the captions as COCO's server takes them", written=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.metrics:
            choose("--metrics", name, SCORERS)
        if self.out and self.results and Path(self.out).resolve() == Path(self.results).resolve():
            raise OptionError(f"--results {self.results}: is the file of --out")


def score(options: ScoreOptions) -> str:
    """BLEU-1 to 4, ROUGE-L and CIDEr-D of generated captions, with 95 % intervals over the images.

    All references of an image count. fairseq-generate's own BLEU line is of one reference, in the model's words.

    Returns:
        What is printed; the files of ``--out`` and ``--results`` are written too.
    """
    paths = {name: options.output(name) for name in ("out", "results") if getattr(options, name)}
    evaluation = options.evaluate()
    other = _other(options.compare, evaluation) if options.compare else None
    metrics, intervals = evaluation.metrics(), evaluation.intervals(options.samples, options.seed)
    each: dict[str, list[float]] = {"rouge_l": evaluation.rouge_l.tolist(), "cider_d": evaluation.cider_d.tolist()}
    for name in dict.fromkeys(options.metrics):
        metrics[name], each[name] = SCORERS[name](evaluation.hypotheses, evaluation.references)
    differences = evaluation.differences(other, options.samples, options.seed) if other else {}
    if "out" in paths:
        with writing_to(paths["out"].parent):
            write_json(paths["out"], _record(options, evaluation, metrics, intervals, differences, each))
    if "results" in paths:
        with writing_to(paths["results"].parent, "--results"):
            write_results(paths["results"], evaluation.split, evaluation.captions)
    return "\n".join(
        [
            *_table(metrics, intervals),
            *_about(evaluation, options),
            *(_compared(options.compare, evaluation, other, differences) if other else []),
        ]
    )


def _record(
    options: ScoreOptions,
    evaluation: Evaluation,
    metrics: dict[str, float],
    intervals: dict[str, list[float]],
    differences: dict[str, Any],
    each: dict[str, list[float]],
) -> dict[str, Any]:
    split = evaluation.split
    rows = zip(split.image_ids.tolist(), evaluation.captions, *each.values(), strict=True)
    return {
        "split": split.name,
        "tokenizer": evaluation.tokenizer,
        "references": evaluation.key,
        "metrics": metrics,
        "intervals": intervals,
        "samples": options.samples,
        "seed": options.seed,
        "counts": evaluation.counts(),
        **({"compared": {"file": options.compare, **differences}} if differences else {}),
        "images": [dict(zip(("image_id", "caption", *each), row, strict=True)) for row in rows],
    }


def _other(path: str, evaluation: Evaluation) -> Evaluation:
    """The captions of a file of :func:`_record`, scored anew."""
    split = evaluation.split
    value = read_json(path)
    try:
        recorded = {name: value[name] for name in ("split", "tokenizer", "references")}
        captions = {str(entry["image_id"]): str(entry["caption"]) for entry in value["images"]}
    except (KeyError, TypeError) as error:
        raise DataError(f"--compare {path}: not a file that `captions score --out` wrote") from error
    own = {"split": split.name, "tokenizer": evaluation.tokenizer, "references": evaluation.key}
    for name, before in recorded.items():
        if before != own[name]:
            shown = "other images or references" if name == "references" else f"--{name} {before}, here {own[name]}"
            raise OptionError(f"--compare {path}: {shown}, so the scores cannot be compared")
    missing = [image_id for image_id in split.image_ids.tolist() if image_id not in captions]
    if missing:
        raise DataError(f"--compare {path}: damaged, no caption of image {missing[0]}")
    return Evaluation([captions[image_id] for image_id in split.image_ids.tolist()], split, evaluation.tokenizer)


def _table(metrics: dict[str, float], intervals: dict[str, list[float]]) -> list[str]:
    lines = []
    for name, value in metrics.items():
        low, high = intervals.get(name, (None, None))
        interval = f"  [{100 * low:.2f}, {100 * high:.2f}]" if low is not None and high is not None else ""
        lines.append(f"{METRICS.get(name, name.upper()):8}{100 * value:7.2f}{interval}")
    return lines


def _about(evaluation: Evaluation, options: ScoreOptions) -> list[str]:
    counts = evaluation.counts()
    lines = [
        f"scored {counts['images']} of {counts['images']} images of {evaluation.split.name}, "
        f"{counts['references']:.1f} references each; tokenizer {evaluation.tokenizer}",
        f"{counts['distinct']} distinct captions, {counts['words']:.1f} words on average, {counts['empty']} empty, "
        f"{100 * counts['with_unknown']:.1f} % with <unk>",
        f"[95 % intervals] over the images, of {options.samples} bootstrap samples; another training varies beside",
    ]
    if evaluation.without_idf():
        lines.append("CIDEr-D is 0 for any captions here: all words of the references stand in every image")
    return lines


def _compared(path: str, evaluation: Evaluation, other: Evaluation, differences: dict[str, Any]) -> list[str]:
    equal = sum(map(str.__eq__, evaluation.hypotheses, other.hypotheses))
    lines = [f"minus {path}: {equal} of {len(other.captions)} captions are equal"]
    for name, row in differences.items():
        low, high = (100 * bound for bound in row["interval"])
        lines.append(
            f"{METRICS[name]:8}{100 * row['difference']:+7.2f}  [{low:+.2f}, {high:+.2f}]  "
            f"higher in {100 * row['better']:.0f} % of the samples"
        )
    return lines
