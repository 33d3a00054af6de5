"""``python -m examples.method_pictures [NAME ...]``: draw the pictures of ``docs/methods``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from examples.method_pictures import PICTURES, draw
from fairseq_ext.training.errors import choose
from fairseq_ext.training.options import OptionSet, option
from fairseq_ext.training.program import Program

PAGES = Path(__file__).resolve().parents[2] / "docs" / "methods"

main = Program("examples.method_pictures")


@dataclass(frozen=True, kw_only=True)
class Options(OptionSet):
    """Which pictures.

    Raises:
        OptionError: a picture that there is not.
    """

    names: tuple[str, ...] = option((), f"{', '.join(PICTURES)} (default: all)", positional=True)
    out: str = option("", "folder of the pictures (default: docs/methods)")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.names:
            choose("NAMES", name, PICTURES)


@main.only
def draw_pictures(options: Options) -> None:
    """Draw one picture per method."""
    for name in options.names or PICTURES:
        print(draw(name, options.out or PAGES))


if __name__ == "__main__":
    main()
