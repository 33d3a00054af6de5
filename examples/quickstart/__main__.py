"""Command line of the quickstart; see README.md beside this file."""

from __future__ import annotations

import argparse
import fcntl
import shlex
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.files import write_json, writing_to
from fairseq_ext.training.interruption import run_command
from fairseq_ext.training.progress import Reporting, reporting, say

from .corpus import new_line, parse_locale
from .pipeline import Pipeline, Settings


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.quickstart",
        description="Make a small corpus, train a model with every method combined, translate, score and plot.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default = Settings()
    parser.add_argument(
        "--out", type=Path, default=Path("runs/quickstart"), help="folder for everything that is written"
    )
    parser.add_argument("--source", default=default.source, help="source language, a CLDR locale such as en or pt_BR")
    parser.add_argument("--target", default=default.target, help="target language, a CLDR locale")
    parser.add_argument("--baseline", action="store_true", help="also train the plain Transformer on the same budget")
    parser.add_argument("--pairs", type=int, default=default.pairs, help="sentence pairs, valid and test included")
    parser.add_argument(
        "--vocab", type=int, default=default.vocab, help="SentencePiece pieces, both languages together"
    )
    parser.add_argument("--updates", type=int, default=default.updates, help="training updates")
    parser.add_argument("--seed", type=int, default=default.seed, help="seed of the corpus and of the training")
    Reporting.add_to(parser)
    return parser.parse_args(arguments)


@contextmanager
def output_folder(out: Path):
    """Make `out` and hold its lock; a foreign folder, an unwritable one and one in use are refused."""
    lock = out / "quickstart.lock"
    if out.is_dir() and any(out.iterdir()) and not lock.exists():
        raise OptionError(f"--out: {out} holds other files (allowed: a new, an empty or an earlier quickstart folder)")
    with writing_to(out), lock.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OptionError(f"--out: another quickstart is running in {out}") from None
        yield


def run(options: argparse.Namespace) -> None:
    start = time.perf_counter()
    for option in ("source", "target"):
        parse_locale(getattr(options, option), f"--{option}")
    for option in ("updates", "vocab"):
        if getattr(options, option) < 1:
            raise OptionError(f"--{option}: {getattr(options, option)} (allowed: 1 or more)")
    systems = ["combined", "plain"] if options.baseline else ["combined"]
    settings = Settings(**{field: getattr(options, field) for field in Settings.__dataclass_fields__})
    with output_folder(options.out):
        pipeline = Pipeline(options.out, settings)
        pipeline.prepare()
        pipeline.binarize()
        for system in systems:
            pipeline.train(system)
            pipeline.evaluate(system)
        summary = pipeline.summary(systems)
        write_json(options.out / "results.json", summary)
        say("plot")
        from .plot import plot

        plot(pipeline, systems, options.out / "quickstart.png")

    print(f"\n{'system':<10}{'BLEU':>7}{'exact match':>14}{'parameters':>13}{'training':>11}")
    for system, row in summary["systems"].items():
        print(
            f"{system:<10}{row['bleu']:>7.2f}{row['exact_match_percent']:>12.1f} %"
            f"{row['parameters']:>13,}{row['train_seconds']:>9.0f} s"
        )
    print(f"sacreBLEU {summary['systems']['combined']['signature']}\n")
    for sample in summary["systems"]["combined"]["samples"]:
        print(f"  {settings.source}  {sample['source']}")
        print(f"  {'->':<{len(settings.source)}}  {sample['hypothesis']}")
        print(f"  {'=':<{len(settings.source)}}  {sample['reference']}\n")
    line = new_line(settings.source)
    print(f"Your own text:\n  echo {shlex.quote(line)} | fairseq-ext translate {options.out / 'combined'}")
    print(f"  -> {pipeline.translate('combined', line)}\n")
    print(f"picture {options.out / 'quickstart.png'}, results {options.out / 'results.json'}")
    print(f"{time.perf_counter() - start:.0f} s in all")


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    sys.stdout.reconfigure(line_buffering=True)
    try:
        with reporting(options.quiet):
            run(options)
    except KeyboardInterrupt:
        print("\nquickstart: stopped; the same command resumes", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
