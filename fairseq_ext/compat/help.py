"""Help: ``--help`` shows the options of the architecture, task and criterion that were chosen, too."""

from __future__ import annotations

import argparse
import functools
import sys
from typing import Any

__all__ = ["show_whole_help"]

HELP = ("-h", "--help")


def show_whole_help() -> bool:
    """Let ``--help`` wait for the second of fairseq's two passes over a command line, which knows all options."""
    from fairseq import options

    parse = options.parse_args_and_arch

    @functools.wraps(parse)
    def parse_args_and_arch(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        words = args[0] if args else kwargs.get("input_args")
        words = sys.argv[1:] if words is None else words
        actions = parser._option_string_actions
        if not set(HELP) & set(words) or len(args) > 1 or not set(HELP) <= set(actions):
            return parse(parser, *args, **kwargs)
        waiting = {word: actions.pop(word) for word in HELP}
        chosen, _ = parser.parse_known_args([word for word in words if word not in HELP])
        if getattr(chosen, "arch", "") is None:  # without an architecture there is no second pass
            actions.update(waiting)
            return parse(parser, *args, **kwargs)
        passes, modify = iter((False, True)), kwargs.pop("modify_parser", None)

        def second_pass_helps(parser: argparse.ArgumentParser) -> None:
            if next(passes):
                actions.update(waiting)
            if modify is not None:
                modify(parser)

        return parse(parser, *args, modify_parser=second_pass_helps, **kwargs)

    options.parse_args_and_arch = parse_args_and_arch
    return True
