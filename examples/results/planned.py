"""Trainings that are planned in an order, what of them is finished, and what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from examples.results.fairseq_programs import discard
from fairseq_ext.training.errors import first_few
from fairseq_ext.training.files import output_folder, read_json, write_json
from fairseq_ext.training.progress import say

NAMED = 12
"""Missing rows that a sentence names."""

Row = TypeVar("Row")
System = TypeVar("System")


def seed_by_seed(
    seeds: Sequence[int],
    systems: Sequence[System],
    run: Callable[[int, System], Row],
    jobs: int,
    name: Callable[[System], str] = str,
) -> Iterator[tuple[Row, list[str]]]:
    """What ``run(seed, system)`` gives, in order, ``jobs`` at a time, each with the names of those that are missing.

    All systems of a seed come before the next seed, so that what is stopped leaves whole seeds.
    """
    planned = list(product(seeds, systems))
    with ThreadPoolExecutor(jobs) as pool:
        for number, row in enumerate(pool.map(lambda cell: run(*cell), planned), 1):
            yield row, [f"{name(system)}, seed {seed}" for seed, system in planned[number:]]


def finished(folder: Path, out: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The row of a run, measured once: it is kept in ``result.json`` of its folder, with its place below ``out``.

    Once it is there the checkpoints go.
    """
    result = folder / "result.json"
    row = read_json(result) if result.exists() else measure()
    if "run" not in row:  # new, or of an earlier version
        row["run"] = folder.relative_to(out).as_posix()
        write_json(result, row)
    discard(folder)
    return read_json(result)


def take_over(stored: Path, out: Path) -> bool:
    """Rows of a stored table are finished runs, so that a table can grow on another machine, where ``out`` is empty.

    Returns:
        Whether all of them could be taken over, as none can that do not say where their run was.
    """
    content = read_json(stored) if stored.exists() else {}
    rows = content.get("rows", [])
    kept = [row for row in rows if "run" in row]
    if restored := restore(kept, out):
        say(f"{restored} rows of {stored} are not measured anew; they are with another --docs FOLDER")
    return len(kept) == len(rows) and "runs_of" not in content


def restore(rows: Iterable[dict[str, Any]], out: Path) -> int:
    """What :func:`finished` will find of rows that are not there: how many."""
    absent = [(row, out / row["run"]) for row in rows if not (out / row["run"] / "result.json").exists()]
    for row, folder in absent:
        write_json(output_folder(folder) / "result.json", row)
    return len(absent)


def not_measured(content: Mapping[str, Any], planned: Iterable[str] = ()) -> str:
    """The sentence below a table that names its missing rows, of many the first; empty where it is complete.

    Args:
        content: of the table.
        planned: systems that its command measures now, where the table does not say itself what is missing.
    """
    missing = content.get("missing")
    if missing is None:
        missing = [name for name in planned if name not in {row["system"] for row in content["rows"]}]
    return f"Not measured yet: {first_few(missing, NAMED, '; ')}." if missing else ""
