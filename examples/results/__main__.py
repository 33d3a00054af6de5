"""``python -m examples.results [PART ...]``: measure what is not measured yet, then write docs/RESULTS.md."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from examples.results.planned import take_over
from examples.results.report import DOCS, PARTS, ROOT, check_report, part, write_report
from examples.results.stored import DIGEST, aside_of, data_digest, store
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.files import output_folder, read_json
from fairseq_ext.training.options import flag
from fairseq_ext.training.progress import Reporting, reporting, say, warn

# Where and how fast, and not what is measured.
PLACES = ("part", "data", "out", "docs", "replace", "jobs", "quiet")


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    # Those of other parts may need packages that are not here.
    parser, own = _parsers([name for name in PARTS if name in arguments] or PARTS)
    options = parser.parse_args(arguments)
    with reporting(options.quiet):
        _run(options, own)


def _run(options: argparse.Namespace, own: dict[str, argparse.ArgumentParser]) -> None:
    if options.part == "report":
        (check_report if options.check else write_report)(options.docs)
        return
    chosen = {options.part: options} if options.part else {name: form.parse_args([]) for name, form in own.items()}
    digests = {}
    for name, values in chosen.items():
        _refuse_empty_and_double(values)
        digests[name] = _digests(name, values)
        _refuse_other(name, values, own[name], digests[name])
    docs = DOCS
    for number, (name, values) in enumerate(chosen.items(), 1):
        say(f"{name}: part {number} of {len(chosen)}")
        docs = values.docs
        folder = output_folder(docs / "results", "--docs")
        output_folder(values.out)
        for title in digests[name]:
            file = folder / f"{title}.json"
            if not take_over(file, values.out) and not values.replace:
                say(f"{file} stays where its runs are not found again; others go to {aside_of(file, values.out)}")
        told = set()
        for title, content in _measured(name, values, _command(name, values, own[name]), digests[name]):
            file = folder / f"{title}.json"
            if (aside := store(content, file, values.out, values.replace)) and file not in told:
                warn(
                    f"{file} has other runs than were measured: it stays as it is, and they are in {aside}; "
                    "give --replace to have them in its place"
                )
                told.add(file)
    write_report(docs)
    say(f"results: {docs / 'RESULTS.md'}")


def _digests(name: str, options: argparse.Namespace) -> dict[str, str]:
    """The titles of a part's contents, with what tells the data of each."""
    return {title: data_digest(paths) for title, paths in part(name).reads(options).items()}


def _measured(
    name: str, options: argparse.Namespace, command: str, digests: dict[str, str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The contents of a part by their titles, with what they were measured on and how."""
    for content in part(name).measure(options):
        title = content["name"]
        data = {DIGEST: digests[title]} if digests[title] else {}
        yield title, {"part": name, "command": command, **data, **content}


def _parsers(parts: Sequence[str] = PARTS) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of everything, and that of each of ``parts``."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.results",
        description="Measure, then write docs/RESULTS.md. Without a part: all parts, each with its defaults.",
    )
    Reporting.add_to(parser)
    docs = argparse.ArgumentParser(add_help=False)
    docs.add_argument("--docs", type=Path, default=DOCS, help="folder of RESULTS.md and results/*.json")
    shared = argparse.ArgumentParser(add_help=False, parents=[docs])
    shared.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the data sets")
    shared.add_argument("--out", type=Path, default=Path("runs/results"), help="folder of the runs; finished ones stay")
    shared.add_argument("--replace", action="store_true", help="replace measurements that were made with other options")
    # of a part too, where leaving it out must not undo it
    shared.add_argument(
        "--quiet", action="store_true", default=argparse.SUPPRESS, help="show no progress; warnings and errors stay"
    )
    commands = parser.add_subparsers(dest="part", metavar="PART")
    report = commands.add_parser("report", parents=[docs], help="only write the report, from results/*.json")
    report.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the report would change")
    own = {}
    for name in parts:
        help = (part(name).__doc__ or "").splitlines()[0]
        form = argparse.ArgumentDefaultsHelpFormatter
        own[name] = commands.add_parser(name, parents=[shared], help=help, description=help, formatter_class=form)
        part(name).add_arguments(own[name])
    return parser, own


def _refuse_empty_and_double(options: argparse.Namespace) -> None:
    """No count is 0, and nothing is asked for twice: a row that a table has twice counts twice in its means."""
    for option, value in vars(options).items():
        if type(value) is int and value < 1:
            raise OptionError(f"{flag(option)} must be at least 1, got {value}")
        twice = [word for word in value if value.count(word) > 1] if isinstance(value, list) else []
        if twice:
            raise OptionError(f"{flag(option)} has {twice[0]} twice")


def _refuse_other(
    name: str, options: argparse.Namespace, form: argparse.ArgumentParser, digests: dict[str, str]
) -> None:
    """What has other options (fewer rows, another budget) or data takes the place of what is stored when told to."""
    for title, digest in digests.items():
        file = options.docs / "results" / f"{title}.json"
        if options.replace or not file.exists():
            continue
        stored = read_json(file)
        before = vars(form.parse_args(shlex.split(stored["command"])[1:]))
        for option, value in vars(options).items():
            if option not in (*PLACES, part(name).SELECTS) and before[option] != value:
                raise OptionError(
                    f"{file} was measured with {flag(option)} {_shown(before[option])}, now {_shown(value)}: "
                    "write elsewhere with --docs FOLDER, or give --replace"
                )
        if digest and digest != stored.get(DIGEST, digest):
            paths = ", ".join(map(str, part(name).reads(options)[title]))
            raise OptionError(
                f"{file} was measured on other data than {paths} (--data): "
                "write elsewhere with --docs FOLDER, or give --replace"
            )
        if digest and DIGEST not in stored:
            say(f"{file} does not say which data it was measured on, which is taken to be that of --data")


def _command(name: str, options: argparse.Namespace, form: argparse.ArgumentParser) -> str:
    """What to type for the same measurement: the options that are not at their defaults, and no places."""
    words = [name]
    for option, value in vars(options).items():
        if option not in PLACES and value != form.get_default(option):
            given = [] if value is True else value if isinstance(value, list) else [value]
            words += [flag(option), *map(str, given)]
    return shlex.join(words)


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    main()
