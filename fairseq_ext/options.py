"""A program's options as the fields of a dataclass: one place for default, meaning and limits of each."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Self, get_args, get_type_hints

from .errors import OptionError, choose

__all__ = ["OptionSet", "at_least", "flag", "option", "subcommands"]

LIMITS = {"least": "at least", "above": "greater than", "most": "at most", "below": "less than"}


def option(
    default: Any = MISSING,
    help: str = "",
    choices: tuple[str, ...] = (),
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Any:
    """A field of an :class:`OptionSet`.

    Args:
        default: without it the option is required.
        help: what it means, with the paper's value.
        choices: the only values allowed.
        least, above, most, below: limits of a number.
    """
    limits = {"least": least, "above": above, "most": most, "below": below}
    return field(default=default, metadata={"help": help, "choices": choices, **limits})


def flag(name: str) -> str:
    """The option's name on the command line."""
    return f"--{name.replace('_', '-')}"


def at_least(arguments: argparse.Namespace, **least: int) -> None:
    """Refuse numbers of a command line that are too small; one that is absent, or None, is passed over.

    Raises:
        OptionError: names the option, the limit and what was found.
    """
    for name, limit in least.items():
        value = getattr(arguments, name, None)
        if value is not None and value < limit:
            raise OptionError(f"{flag(name)} must be at least {limit}, got {value}")


def subcommands(parser: argparse.ArgumentParser) -> Callable[[str, Callable[..., None], str], argparse.ArgumentParser]:
    """Split a program into commands: the function that makes one.

    Example:
        >>> command = subcommands(parser)
        >>> train = command("train", train_with, "train with several seeds")  # its name, its function, its help
        >>> arguments = parser.parse_args()
        >>> arguments.function(arguments)
    """
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, function: Callable[..., None], help: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help, description=help)
        made.set_defaults(function=function)
        return made

    return command


@dataclass(frozen=True, kw_only=True)
class OptionSet:
    """Base of option classes, whose fields are ``str``, ``int``, ``float``, ``bool``, or tuples of one such type.

    Values are checked when an object is made, so that a program gets the same messages as the command line.

    Raises:
        OptionError: a value that is not allowed.

    Example:
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Options(OptionSet):
        ...     lr: float = option(1e-3, "step size of Adam (paper: 1e-3)", above=0)
        >>> Options.add_to(parser)
        >>> options = Options.of(parser.parse_args())
    """

    def __post_init__(self) -> None:
        for item in fields(self):
            name, value, metadata = flag(item.name), getattr(self, item.name), item.metadata
            if metadata["choices"]:
                choose(name, value, metadata["choices"])
            if isinstance(value, float) and not math.isfinite(value):
                raise OptionError(f"{name} must be finite, got {value}")
            limits = {key: metadata[key] for key in LIMITS if metadata[key] is not None}
            fits = {
                "least": lambda limit, value=value: value >= limit,
                "above": lambda limit, value=value: value > limit,
                "most": lambda limit, value=value: value <= limit,
                "below": lambda limit, value=value: value < limit,
            }
            if not all(fits[key](limit) for key, limit in limits.items()):
                allowed = " and ".join(f"{LIMITS[key]} {limit}" for key, limit in limits.items())
                raise OptionError(f"{name} must be {allowed}, got {value}")

    def refuse_idle(self, reason: str, *names: str) -> None:
        """Refuse those of ``names`` that differ from their default, as they would do nothing.

        Args:
            reason: why, such as ``"with --loss cross-entropy"``.

        Raises:
            OptionError: the first of them.
        """
        defaults = self.defaults()
        for name in names:
            value = getattr(self, name)
            if value != defaults[name]:
                shown = flag(f"no_{name}") if value is False else flag(name)
                given = "" if isinstance(value, bool) else f" {value}"
                raise OptionError(f"{shown}{given}: has no effect {reason}")

    def as_dict(self) -> dict[str, Any]:
        """Names and values."""
        return asdict(self)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Names and defaults of the options that have one."""
        return {item.name: item.default for item in fields(cls) if item.default is not MISSING}

    @classmethod
    def add_to(cls, parser: argparse._ActionsContainer) -> None:
        """Give ``parser``, or a group of one, a flag for every field, and ``--no-`` forms of those that are on."""
        types = get_type_hints(cls)
        for item in fields(cls):
            choices = f" ({', '.join(item.metadata['choices'])})" if item.metadata["choices"] else ""
            value = " ".join(map(str, item.default)) if isinstance(item.default, tuple) else item.default
            shown = "" if value in (MISSING, "") or types[item.name] is bool else f" [{value}]"
            settings: dict[str, Any] = {"help": f"{item.metadata['help']}{choices}{shown}".replace("%", "%%")}
            if types[item.name] is bool:
                settings["action"] = argparse.BooleanOptionalAction if item.default else "store_true"
            elif types[item.name] in (str, int, float):
                settings |= {"type": types[item.name], "metavar": item.name.upper()}
            else:
                settings |= {"nargs": "+", "type": get_args(types[item.name])[0], "metavar": item.name.upper()}
            settings |= {"required": True} if item.default is MISSING else {"default": item.default}
            parser.add_argument(flag(item.name), **settings)

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Self:
        """The options among parsed arguments."""
        values = {item.name: getattr(arguments, item.name) for item in fields(cls)}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
