"""``python -m examples.method_figures [NAME ...]``: draw the figures of ``docs/methods``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from examples.method_figures import FIGURES, draw
from fairseq_ext.training.errors import choose
from fairseq_ext.training.options import OptionSet, option
from fairseq_ext.training.program import Program

PAGES = Path(__file__).resolve().parents[2] / "docs" / "methods"

main = Program("examples.method_figures")


@dataclass(frozen=True, kw_only=True)
class Options(OptionSet):
    """Which figures.

    Raises:
        OptionError: a figure that there is not.
    """

    names: tuple[str, ...] = option((), f"figures to draw: {', '.join(FIGURES)} (default: all)", positional=True)
    out: str = option("", "folder of the figures (default: docs/methods)")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.names:
            choose("NAMES", name, FIGURES)


@main.only
def draw_figures(options: Options) -> None:
    """Draw one figure per method."""
    for name in options.names or FIGURES:
        print(draw(name, options.out or PAGES))


if __name__ == "__main__":
    main()
