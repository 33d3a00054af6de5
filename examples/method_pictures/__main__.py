"""``python -m examples.method_pictures [NAME ...]``: draw the pictures of ``docs/methods``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.method_pictures import PICTURES, draw
from fairseq_ext.training.interruption import run_command

PAGES = Path(__file__).resolve().parents[2] / "docs" / "methods"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.method_pictures", description="Draw one picture a method")
    parser.add_argument("name", nargs="*", metavar="NAME", help=f"{', '.join(PICTURES)} (default: all)")
    parser.add_argument("--out", default=PAGES, help="folder of the pictures (default: %(default)s)")
    options = parser.parse_args(arguments)
    for name in options.name:
        if name not in PICTURES:
            parser.error(f"there is no picture {name!r}; there are {', '.join(PICTURES)}")
    for name in options.name or PICTURES:
        print(draw(name, options.out))


if __name__ == "__main__":
    sys.exit(run_command(main))
