"""Merge fine-tuned classifiers into one, from unlabelled texts: python -m vision_language.muka COMMAND."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from fairseq_ext.training.accelerator import make_accelerator
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import output_folder, write_json
from fairseq_ext.training.options import at_least, subcommands
from fairseq_ext.training.runs import Experiment
from vision_language.muka.cache import TeacherCache
from vision_language.muka.data import read_new_texts
from vision_language.muka.evaluate import diagnose_teachers, evaluate, predict, read_texts
from vision_language.muka.options import AmalgamationOptions, DiagnosisOptions, TeacherOptions
from vision_language.muka.synthetic import synthesize
from vision_language.muka.train import amalgamate, train_teacher


def _report(experiment: Experiment, seed: int) -> None:
    record = experiment.runs[f"seed{seed}"]
    shown = ("test_accuracy", "valid_accuracy", "valid_loss", "best_step", "seconds_per_epoch")
    figures = ", ".join(f"{name} {record[name]:.4g}" for name in shown if name in record)
    print(f"{figures}\n{experiment.file.parent}: model and results.json")


def _train_teacher(arguments: argparse.Namespace) -> None:
    options = TeacherOptions.of(arguments)
    accelerator = make_accelerator(options.mixed_precision, "cpu" if arguments.cpu else "auto")
    experiment = train_teacher(options, arguments.out, accelerator)
    if accelerator.is_main_process:
        _report(experiment, options.seed)


def _amalgamate(arguments: argparse.Namespace) -> None:
    options = AmalgamationOptions.of(arguments)
    accelerator = make_accelerator(options.mixed_precision, "cpu" if arguments.cpu else "auto")
    experiment = amalgamate(options, arguments.out, arguments.cache, accelerator)
    if accelerator.is_main_process:
        _report(experiment, options.seed)


def _evaluate(arguments: argparse.Namespace) -> None:
    texts = read_texts(arguments.data, arguments.split)
    accelerator = make_accelerator(device="cpu" if arguments.cpu else "auto")
    folders = arguments.ensemble or [arguments.model]
    settings = (arguments.max_length, arguments.batch_size, arguments.rename)
    report = evaluate(folders, texts, accelerator, *settings)
    if accelerator.is_main_process:
        print(json.dumps(report, indent=2, ensure_ascii=False))


def _diagnose(arguments: argparse.Namespace) -> None:
    options = DiagnosisOptions.of(arguments)
    texts = read_texts(arguments.data, arguments.split)
    accelerator, out = make_accelerator(device="cpu" if arguments.cpu else "auto"), output_folder(arguments.out)
    store = TeacherCache(arguments.cache or out / "cache", accelerator, arguments.max_length, arguments.batch_size)
    report = diagnose_teachers(options, texts, store, arguments.split or "test", out / "scores.png")
    if accelerator.is_main_process:
        write_json(out / "diagnostics.json", options.as_dict() | report)
        print(json.dumps(report, indent=2))
        print(f"{out / 'diagnostics.json'}, {out / 'scores.png'}")


def _predict(arguments: argparse.Namespace) -> None:
    texts = read_new_texts(arguments.file)
    if not any(texts):
        raise DataError(f"{arguments.file}: no text in it")
    accelerator = make_accelerator(device="cpu" if arguments.cpu else "auto")
    settings = (arguments.max_length, arguments.batch_size, arguments.top, arguments.rename)
    rows = predict(arguments.model, texts, accelerator, *settings)
    for row in rows if accelerator.is_main_process else ():
        print(json.dumps(row, ensure_ascii=False))


def _synthesize(arguments: argparse.Namespace) -> None:
    synthesize(arguments.out, arguments.texts, arguments.seed)
    print(f"{arguments.texts} texts in {arguments.out}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m vision_language.muka", description=__doc__)
    command = subcommands(top)

    train = command("train-teacher", _train_teacher, "fine-tune a classifier on the texts of its classes")
    train.add_argument("--out", default="runs/muka/teacher", help="folder of the model and results [%(default)s]")
    TeacherOptions.add_to(train)

    merge = command("amalgamate", _amalgamate, "train a student that knows the classes of all teachers")
    merge.add_argument("--out", default="runs/muka/student", help="folder of the model and results [%(default)s]")
    merge.add_argument("--cache", help="folder of the teachers' logits and scores, to share between runs [OUT/cache]")
    AmalgamationOptions.add_to(merge)

    measure = command("evaluate", _evaluate, "accuracy of a classifier, or of an ensemble of teachers, as JSON")
    which = measure.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="folder of the classifier")
    which.add_argument("--ensemble", nargs="+", metavar="MODEL", help="folders of teachers: their joined logits")

    look = command("diagnose", _diagnose, "do the teachers' scores choose the right teacher? Needs labels; draws them")
    DiagnosisOptions.add_to(look)
    look.add_argument("--out", default="runs/muka/diagnostics", help="folder of the figures and picture [%(default)s]")
    look.add_argument("--cache", help="folder of the teachers' logits and scores [OUT/cache]")
    for made in (measure, look):
        made.add_argument("--data", required=True, help="folder with splits, or a file of label TAB text")
        made.add_argument("--split", choices=("train", "valid", "test"), help="of the folder [test]")

    new = command("predict", _predict, "label and probabilities of new texts, one JSON line each")
    new.add_argument("file", help="a .txt with a text a line, - for stdin, or any data file; its labels are not used")
    new.add_argument("--model", default="runs/muka/student", help="folder of the classifier [%(default)s]")
    new.add_argument("--top", type=int, default=3, help="labels shown of each text [3]")
    for made in (measure, new):
        made.add_argument(
            "--rename",
            nargs="+",
            default=[],
            metavar="OLD=NEW",
            help="another name for a class; 2:OLD=NEW: of the second model only",
        )
    for made in (measure, look, new):
        made.add_argument("--max-length", type=int, help="tokens of a text [128, or fewer]")
        made.add_argument("--batch-size", type=int, default=64, help="texts of a step [64]")
    for made in (train, merge, measure, look, new):
        made.add_argument("--cpu", action="store_true", help="leave the GPU alone")

    make = command("synthesize", _synthesize, "write made-up texts of four classes, for a try without data")
    make.add_argument("--out", default="runs/muka/texts", help="folder [%(default)s]")
    make.add_argument("--texts", type=int, default=1000, help="texts of all splits together [%(default)s]")
    make.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    at_least(options, max_length=2, batch_size=1, top=1, passes=1, seed=0)
    options.function(options)


if __name__ == "__main__":
    main(sys.argv[1:])
