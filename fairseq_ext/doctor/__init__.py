"""``fairseq-ext doctor``: what is installed, what this machine can do, and what to do where something is missing."""

from __future__ import annotations

import importlib
import json
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from fairseq_ext.doctor import packages
from fairseq_ext.doctor.check import Check
from fairseq_ext.training.errors import one_line

__all__ = ["Check", "as_json", "examine", "problems", "render"]

Sections = dict[str, dict[str, Check]]
TITLES = {
    "": "",
    "packages": "packages, by what brings them: pip install 'fairseq-ext[EXTRA]'",
    "machine": "this machine",
    "fairseq": "fairseq",
}
MARGIN = 14
"""Columns for the names of the checks."""


def examine(wanted: Sequence[str] = ()) -> Sections:
    """Every check, by section and name.

    Args:
        wanted: extras that have to be complete. Of others it is no problem that packages are missing.

    Raises:
        OptionError: one of ``wanted`` is no extra of this package.
    """
    extras = {name: partial(packages.extra, name, wanted) for name in packages.extras(wanted)}
    contents = {name: check for name, check in _made(extras).items() if check.text}
    own = _made({"fairseq-ext": packages.this, "python": packages.python})
    return {"": own, "packages": contents, "machine": _section("machine"), "fairseq": _section("fairseq")}


def _section(name: str) -> dict[str, Check]:
    try:
        checks = importlib.import_module(f"{__name__}.{name}").CHECKS
    except Exception as error:  # a torch that is missing or broken
        return {name: _failed(name, error)}
    return _made(checks)


def _made(checks: Mapping[str, Callable[[], Check]]) -> dict[str, Check]:
    results = {}
    for name, check in checks.items():
        try:
            results[name] = check()
        except Exception as error:  # what is broken here must not hide the rest
            results[name] = _failed(name, error)
    return results


def _failed(name: str, error: Exception) -> Check:
    text = f"cannot be checked: {one_line(error)}"
    return Check(None, text, [f"{name} {text}"])


def problems(sections: Sections) -> list[str]:
    """What is wrong, each once."""
    every = (problem for checks in sections.values() for check in checks.values() for problem in check.problems)
    return list(dict.fromkeys(every))


def render(sections: Sections) -> str:
    """The report for people: a line for each check, the problems last."""
    columns = max(80, shutil.get_terminal_size((120, 24)).columns)
    lines: list[str] = []
    for section, checks in sections.items():
        lines += [TITLES[section]] if TITLES[section] else []
        for name, check in checks.items():
            for number, line in enumerate(check.text.splitlines()):
                margin = f"{'  ' if TITLES[section] else ''}{name if number == 0 else '':<{MARGIN}}"
                rest = " " * len(margin)
                lines += textwrap.wrap(margin + line, columns, subsequent_indent=rest, break_on_hyphens=False)
    wrong = problems(sections)
    count = f"{len(wrong)} problem{'s' * (len(wrong) != 1)} found" if wrong else "no problem found"
    return "\n".join([*lines, *(f"problem: {problem}" for problem in wrong), count])


def as_json(sections: Sections) -> str:
    """The report for programs: the value of every check, and the problems."""
    values = {section: {name: check.value for name, check in checks.items()} for section, checks in sections.items()}
    return json.dumps({**values.pop(""), **values, "problems": problems(sections)}, indent=2, ensure_ascii=False)
