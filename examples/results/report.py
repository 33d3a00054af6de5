"""RESULTS.md from the measurements in results/*.json; each part writes its own section."""

from __future__ import annotations

import difflib
import filecmp
import importlib
import re
import shutil
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from examples.results.claims import PARTS as CLAIMED
from examples.results.claims import claims_of
from examples.results.verdicts import page
from fairseq_ext.training.errors import DataError, first_few
from fairseq_ext.training.files import read_json, replacing
from fairseq_ext.training.settings import digest, file_digest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PARTS = (
    *("translation", "cross_view", "inference_dtype", "language_model", "renode", "renode_large", "label_graph"),
    *("graph_classification", "graph_log_end", "iais", "muka", "muka_merging", "image_classification", "captioning"),
    "benchmarks",
)

LONG = 14
"""Rows of a table beyond which it is folded."""
NAMED = 6
"""Rows with fewer seeds that are named."""
SHOWN = 12
"""Lines of a difference that are printed."""

HEAD = """# Measured results

Written by `python -m examples.results` from `results/*.json`, which hold every run with its settings, hardware and
library versions. Numbers marked *published*, and those in the claims, are the papers'; all others were measured here.
The command resumes where it was stopped. Stored rows of translation, language models and cross-view decoding that say
where their run was are measured anew only with another `--docs FOLDER`. Without `--replace`, measurements on other data
or with other options are refused, and figures other than the stored ones are kept beside the runs.

± is the population standard deviation. A difference is paired (the same seed or split on both sides); in brackets is
its 95 % interval by the t-distribution. A row *gains* or *loses* where that interval excludes 0; of rows without any
effect one in twenty does, and the verdicts and ReNode's tables say what is left with Holm's correction. With three
pairs it takes a mean of 2.5 sample standard deviations.
"""


def part(name: str) -> ModuleType:
    """The module of a part.

    - ``add_arguments(parser)``
    - ``reads(options)``: the contents that are measured, each a file of its own, with the files and folders of the data
      that each is measured on
    - ``SELECTS``: the option that chooses those names; every other option changes what a file holds
    - ``measure(options)``: yields the contents
    - ``section(contents)``: their text; and, where there are some, ``draw(contents, folder)``

    What its method claims, :mod:`examples.results.claims` derives from the contents.
    """
    return importlib.import_module(f"examples.results.{name}")


def describe(environment: dict[str, Any]) -> str:
    """Hardware and versions in one line."""
    hardware = environment.get("gpu") or f"{environment['processor']}, {environment['threads']} thread(s)"
    skipped = ("gpu", "processor", "cores", "threads")
    return f"{hardware}; " + ", ".join(f"{key} {value}" for key, value in environment.items() if key not in skipped)


def environments(content: dict[str, Any]) -> str:
    """Where the runs of a content were trained: what they say themselves, or else the content for all of them."""
    if not (each := [*_recorded(content.get("rows", [])), *_recorded(content.get("runs_of", {}))]):
        each = content["environments"] if "environments" in content else [content["environment"]]
    return distinct(each, describe, "; and ")


def _recorded(part: Any) -> Iterator[dict[str, Any]]:
    """The environments that rows and runs have themselves."""
    for key, value in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
        if key == "environment":
            yield value
        else:
            yield from _recorded(value)


def distinct(things: Iterable[Any], of: Callable[[Any], str], between: str) -> str:
    """What ``of`` says about each thing, without repetitions."""
    return between.join(dict.fromkeys(map(of, things)))


def slug(system: str) -> str:
    """The name of a row's folder."""
    return "".join(letter if letter.isalnum() else "_" for letter in system)


def unique(values: Iterable[Any]) -> list[Any]:
    """The different values, in order; unlike a set it takes dictionaries."""
    different: list[Any] = []
    for value in values:
        if value not in different:
            different.append(value)
    return different


def common(rows: Sequence[Mapping[str, Any]], key: str) -> Any:
    """What all ``rows`` say about ``key``: a header may speak for a table only if its rows agree."""
    values = unique(row[key] for row in rows)
    if len(values) != 1:
        raise DataError(f"rows of different {key} cannot share a table: {', '.join(map(str, values))}")
    return values[0]


def agree(where: str, stored: Mapping[str, Any], printed: Mapping[str, Any]) -> None:
    """Refuse settings other than those that the text prints of them; some are not stored, by earlier versions none.

    Args:
        where: the file and row that they are of.
        stored: the settings that were measured.
        printed: those of this version.

    Raises:
        DataError: they differ.
    """
    for key, value in stored.items():
        now = printed.get(key)
        if value != ([*now] if isinstance(now, tuple) else now):
            raise DataError(f"{where} was measured with {key} {value}, and its table says {now}: measure it anew")


def commands(contents: Iterable[dict[str, Any]]) -> str:
    """The commands that measured them: of this program, unless they are ``shell`` commands."""

    def typed(content: dict[str, Any]) -> str:
        return "    " + (content.get("shell") or f"python -m examples.results {content['command']}")

    return distinct(contents, typed, "\n")


def of_seeds(runs: Mapping[str, Iterable[Any]], listed: bool = False) -> str:
    """How many seeds the rows are means of: ``3 seeds``, with the rows that have fewer.

    Args:
        runs: of each row the names of its seeds; a row without a seed, whose only run is called ``""``, is left out.
        listed: the seeds themselves, ``the seeds 1, 2, 3``.
    """
    own = {name: seeds for name, names in runs.items() if (seeds := sorted(names)) != [""]}
    every = sorted({seed for seeds in own.values() for seed in seeds})

    def told(seeds: list[Any]) -> str:
        return ", ".join(map(str, seeds)) if listed else str(len(seeds))

    fewer = [f"{name}: {told(seeds)}" for name, seeds in own.items() if seeds != every]
    number, plural = told(every), len(every) != 1
    if listed:
        head = f"the seeds {number}" if plural else f"seed {number}"
    else:
        head = f"{number} seed{'s' if plural else ''}"
    return f"{head} ({first_few(fewer, NAMED, '; ')})" if fewer else head


def asked(runs: Mapping[str, dict[str, Any]], names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The runs called ``names``: a folder may hold more of them, from a longer command."""
    return {name: runs[name] for name in names}


def copied(source: Path, target: Path) -> None:
    """A copy of a data set's folder, because torch_geometric writes beside the raw files; an old one must be the same.

    Raises:
        DataError: there is no ``source``, or ``target`` was copied from other files.
    """
    if not source.is_dir():
        raise DataError(f"--data: {source} is not a folder with the raw files of {source.name}")
    if not target.is_dir():
        with replacing(target) as partial:
            shutil.copytree(source, partial)
    files = [str(file.relative_to(source)) for file in source.rglob("*") if file.is_file()]
    _, other, missing = filecmp.cmpfiles(source, target, files, shallow=False)
    if other or missing:
        raise DataError(f"{target} was copied from other data than {source} ({(other or missing)[0]}): delete it")


def unpacked(archives: Sequence[Path], target: Path) -> Path:
    """A folder with the content of archives, beside ``target`` and called by their content as well.

    Raises:
        DataError: an archive that is absent or damaged.
    """
    if absent := [archive for archive in archives if not archive.is_file()]:
        raise DataError(f"--data: {absent[0]} is not there")
    key = digest(*map(file_digest, archives))
    target = target.with_name(f"{target.name}-{key[:8]}")
    if not target.is_dir():
        with replacing(target) as partial:
            for archive in archives:
                safely: dict[str, Any] = {} if archive.suffix == ".zip" else {"filter": "data"}
                try:
                    shutil.unpack_archive(archive, partial, **safely)
                except Exception as error:  # damage makes zipfile, tarfile and lzma raise many types
                    raise DataError(f"{archive}: damaged ({type(error).__name__})") from error
    return target


def mean_spread(values: Sequence[float], digits: int) -> str:
    """Mean ± population standard deviation; of one value, the value alone."""
    spread = f" ± {statistics.pstdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def write_report(docs: Path = DOCS) -> None:
    """Writes ``RESULTS.md`` into ``docs``, the sections in the order of ``PARTS``, from ``docs/results/*.json``."""
    by_part = measured(docs)
    text = report_text(by_part)
    for name, own in by_part.items():
        if hasattr(part(name), "draw"):
            with _naming(own):
                part(name).draw(own, docs / "results")
    (docs / "RESULTS.md").write_text(text, encoding="utf-8")


def check_report(docs: Path = DOCS) -> None:
    """Whether ``RESULTS.md`` is what the measurements give, to the letter; figures are not compared.

    Raises:
        SystemExit: it differs, with the first lines that do; exit code 1.
    """
    file = docs / "RESULTS.md"
    stands = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    given = report_text(measured(docs)).splitlines()
    difference = [*difflib.unified_diff(stands, given, str(file), "what results/*.json gives", n=0, lineterm="")]
    if difference:
        print(*difference[:SHOWN], sep="\n")
        raise SystemExit(
            f"error: {file} is not what results/*.json gives: write it with python -m examples.results report"
        )


def measured(docs: Path) -> dict[str, list[dict[str, Any]]]:
    """The contents of ``docs/results/*.json`` of each part that has some.

    Raises:
        DataError: there are none.
    """
    folder = docs / "results"
    contents = [read_json(file) for file in sorted(folder.glob("*.json"))]
    contents = [content for content in contents if content.get("rows") != []]  # of a part that ended before its first
    by_part = {name: [content for content in contents if content.get("part") == name] for name in PARTS}
    if not any(by_part.values()):
        raise DataError(f"no measurement in {folder}")
    return {name: own for name, own in by_part.items() if own}


def report_text(by_part: Mapping[str, list[dict[str, Any]]]) -> str:
    """RESULTS.md: its head, the verdicts, the sections."""
    sections = []
    for name, own in by_part.items():
        with _naming(own):
            sections.append(folded(part(name).section(own)))
    claims = []
    for name in CLAIMED:
        with _naming(own := by_part.get(name, [])):
            claims += claims_of(name, own)
    return "\n".join([HEAD, *([page(claims)] if claims else []), *sections])


def folded(text: str) -> str:
    """The same text, its long tables under a line that opens them."""

    def fold(table: re.Match[str]) -> str:
        rows = table[0].count("\n") - 2
        summary = f"<summary>The table of {rows} rows</summary>"
        return f"<details markdown>\n{summary}\n\n{table[0]}\n</details>\n" if rows > LONG else table[0]

    return re.sub(r"(?:^\|.*\n)+", fold, text, flags=re.MULTILINE)


@contextmanager
def _naming(contents: Sequence[dict[str, Any]]) -> Iterator[None]:
    """What the contents lack is said in one line, with their files."""
    try:
        yield
    except KeyError as error:
        files = ", ".join(f"{content.get('name', 'a file without name')}.json" for content in contents)
        raise DataError(f"{files}: {error} is missing, or not what this version measures") from error
