"""A pytest plugin (``-p benchmarks.outcomes --outcomes FILE``): a line of JSON as soon as a test has ended.

So a killed run has written the outcomes it knew; the file of any other run ends with the exit status.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

WHY = 2000  # characters of the end of a traceback


def why(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The traceback of a failure or the reason of a skip; empty for a test that has passed."""
    if report.skipped and isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return "" if report.passed else report.longreprtext[-WHY:]


class Outcomes:
    def __init__(self, file: Path) -> None:
        self.file = file
        file.write_text("", encoding="utf-8")

    def write(self, **line: Any) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self.write(test=report.nodeid, outcome=report.outcome, why=why(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            self.write(test=report.nodeid, outcome=report.outcome, why=why(report))

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self.write(exit=int(exitstatus))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", metavar="FILE", type=Path, required=True, help="file for the outcomes of the tests")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # a worker of xdist tells the process that started it
        config.pluginmanager.register(Outcomes(config.getoption("outcomes")))
