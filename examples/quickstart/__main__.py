"""Command line of the quickstart; see README.md beside this file."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.quickstart.corpus import new_line, parse_locale
from examples.quickstart.pipeline import Pipeline, Settings
from examples.translation.score import sacrebleu_metric
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.files import write_json, writing_to
from fairseq_ext.training.locks import locked
from fairseq_ext.training.options import OptionSet, option
from fairseq_ext.training.program import Program
from fairseq_ext.training.progress import say

main = Program("examples.quickstart")


@dataclass(frozen=True, kw_only=True)
class Options(OptionSet):
    """What is trained, and where to."""

    out: str = option("runs/quickstart", "folder for everything that is written")
    baseline: bool = option(False, "train also the plain Transformer on the same budget")


@contextmanager
def exclusive_folder(out: Path) -> Iterator[None]:
    """Make `out` and hold its lock; a foreign folder, an unwritable one and one in use are refused."""
    mark = out / "quickstart.lock"
    if out.is_dir() and any(out.iterdir()) and not mark.exists():
        raise OptionError(f"--out: {out} holds other files (allowed: a new, an empty or an earlier quickstart folder)")
    with writing_to(out), ExitStack() as held:
        mark.touch()
        try:
            held.enter_context(locked(out, wait=False))
        except BlockingIOError:
            raise OptionError(f"--out: another quickstart is running in {out}") from None
        yield


@main.only
def run(options: Options, settings: Settings) -> None:
    """Make a small corpus, train a model with every method combined, translate, score and plot.

    Raises:
        OptionError: a language that is no CLDR locale, or whose score needs a tokeniser that is not installed; a folder
            that holds anything else or is in use.
    """
    start = time.perf_counter()
    sys.stdout.reconfigure(line_buffering=True)
    for name in ("source", "target"):
        parse_locale(getattr(settings, name), f"--{name}")
    sacrebleu_metric(settings.target)
    systems = ["combined", "plain"] if options.baseline else ["combined"]
    out = Path(options.out)
    try:
        with exclusive_folder(out):
            pipeline = Pipeline(out, settings)
            pipeline.prepare()
            for system in systems:
                pipeline.train(system)
                pipeline.evaluate(system)
            summary = pipeline.summary(systems)
            write_json(out / "results.json", summary)
            say("plot")
            from examples.quickstart.plot import plot

            plot(pipeline, systems, out / "quickstart.png")
    except KeyboardInterrupt:
        print("\nquickstart: stopped; the same command resumes", file=sys.stderr)
        raise
    show(summary, settings.source)
    line = new_line(settings.source)
    print(f"Your own text:\n  echo {shlex.quote(line)} | fairseq-ext translate {out / 'combined'}")
    print(f"  -> {pipeline.translate('combined', line)}\n")
    print(f"figure {out / 'quickstart.png'}, results {out / 'results.json'}")
    print(f"{time.perf_counter() - start:.0f} s in all")


def show(summary: dict[str, Any], source: str) -> None:
    """Print the scores and some translations."""
    print(f"\n{'system':<10}{'BLEU':>7}{'exact match':>14}{'parameters':>13}{'training':>11}")
    for system, row in summary["systems"].items():
        print(
            f"{system:<10}{row['bleu']:>7.2f}{row['exact_match_percent']:>12.1f} %"
            f"{row['parameters']:>13,}{row['train_seconds']:>9.0f} s"
        )
    print(f"sacreBLEU {summary['systems']['combined']['signature']}\n")
    for sample in summary["systems"]["combined"]["samples"]:
        print(f"  {source}  {sample['source']}")
        print(f"  {'->':<{len(source)}}  {sample['hypothesis']}")
        print(f"  {'=':<{len(source)}}  {sample['reference']}\n")


if __name__ == "__main__":
    main()
