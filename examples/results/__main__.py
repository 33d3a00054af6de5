"""``python -m examples.results [PART ...]``: measure what is not measured yet, then write docs/RESULTS.md."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from examples.results.report import PARTS, RESULTS, ROOT, part, write_report
from fairseq_ext.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.results",
        description="Measure, then write docs/RESULTS.md. Without a part: all parts, each with its defaults.",
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the data sets")
    shared.add_argument("--out", type=Path, default=Path("runs/results"), help="folder of the runs; finished ones stay")
    commands = parser.add_subparsers(dest="part", metavar="PART")
    commands.add_parser("report", help="only write the report, from docs/results/*.json")
    own = {}
    for name in PARTS:
        help = (part(name).__doc__ or "").splitlines()[0]
        form = argparse.ArgumentDefaultsHelpFormatter
        own[name] = commands.add_parser(name, parents=[shared], help=help, description=help, formatter_class=form)
        part(name).add_arguments(own[name])
    options = parser.parse_args()
    chosen = {options.part: options} if options.part in own else {}
    if options.part is None:
        chosen = {name: form.parse_args([]) for name, form in own.items()}
    for name, values in chosen.items():
        values.out.mkdir(parents=True, exist_ok=True)
        RESULTS.mkdir(parents=True, exist_ok=True)
        command = shlex.join(sys.argv[1:] or [name])
        for content in part(name).measure(values):
            write_json(RESULTS / f"{content['name']}.json", {"part": name, "command": command, **content})
    write_report()


if __name__ == "__main__":
    main()
