"""Help: ``--help`` shows the options of the architecture, task and criterion that were chosen, too, with defaults."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from typing import Any

from fairseq_ext.compat.wrapping import wrapping
from fairseq_ext.training.options import flag

__all__ = ["show_whole_help"]

HELP = ("-h", "--help")


def show_whole_help() -> bool:
    """Let ``--help`` wait for the second of fairseq's two passes over a command line, which knows all options."""
    from fairseq import options

    @wrapping(options, "parse_args_and_arch")
    def parse_args_and_arch(upstream: Any, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        words = args[0] if args else kwargs.get("input_args")
        words = sys.argv[1:] if words is None else words
        actions = parser._option_string_actions
        if not set(HELP) & set(words) or len(args) > 1 or not set(HELP) <= set(actions):
            return upstream(parser, *args, **kwargs)
        waiting = {word: actions.pop(word) for word in HELP}
        chosen, _ = parser.parse_known_args([word for word in words if word not in HELP])
        if getattr(chosen, "arch", "") is None:  # without an architecture there is no second pass
            actions.update(waiting)
            _show_defaults(parser, {})
            return upstream(parser, *args, **kwargs)
        passes, modify = iter((False, True)), kwargs.pop("modify_parser", None)

        def second_pass_helps(parser: argparse.ArgumentParser) -> None:
            last = next(passes)
            if last:
                actions.update(waiting)
            if modify is not None:
                modify(parser)
            if last:
                _show_defaults(parser, _model_defaults(chosen))

        return upstream(parser, *args, modify_parser=second_pass_helps, **kwargs)

    return True


def _model_defaults(chosen: argparse.Namespace) -> dict[str, Any]:
    """The defaults of the chosen architecture's options: those of its preset, then those of its dataclass."""
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY

    if not hasattr(chosen, "arch"):
        return {}
    kind = MODEL_DATACLASS_REGISTRY.get(ARCH_MODEL_NAME_REGISTRY.get(chosen.arch, chosen.arch))
    values = {} if kind is None else {item.name: item.default for item in dataclasses.fields(kind)}
    preset = argparse.Namespace(**vars(chosen))
    with contextlib.suppress(AttributeError):  # lightconv_lm reads options that are not there yet
        ARCH_CONFIG_REGISTRY.get(chosen.arch, lambda given: None)(preset)
    return values | vars(preset)


def _show_defaults(parser: argparse.ArgumentParser, model: dict[str, Any]) -> None:
    """Ends the help of each option with its default, as the suite's other programs do.

    Args:
        parser: fairseq's parser, with all options.
        model: defaults of the model's options, which fairseq's parser leaves out so that a preset can fill them in.
    """
    for action in parser._actions:
        default = model.get(action.dest) if action.default is argparse.SUPPRESS else action.default
        if isinstance(default, bool):
            default = "on" if default and action.const is True else None  # a flag that is off says nothing
        elif str(default).startswith("${."):  # the value of another option
            default = f"as {flag(str(default)[3:-1])}"
        if action.option_strings and not str(default).startswith("${") and default not in _NONE:
            shown = f"[{default}]".replace("%", "%%")
            action.help = f"{action.help} {shown}" if action.help else shown


_NONE = (None, "", dataclasses.MISSING, argparse.SUPPRESS)
