"""Trainings that are planned in an order, and what of them is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any, TypeVar

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


def not_measured(content: Mapping[str, Any]) -> str:
    """The sentence below a table that names its missing rows; empty where it is complete."""
    missing = content.get("missing")
    return f"Not measured yet: {'; '.join(missing)}." if missing else ""
