"""A program's options as the fields of a dataclass: one place for default, meaning and limits of each."""

from __future__ import annotations

import argparse
import math
import operator
import os
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self, get_args, get_origin, get_type_hints

from fairseq_ext.training.errors import DataError, OptionError, choose

__all__ = [
    "MOST_SEED", "SPLITS", "SPLIT_NAMES", "OptionSet", "check_fields", "check_seeds", "find_split", "flag",
    "idle_fields", "option", "seed_option",
]  # fmt: skip

MOST_SEED = 2**32 - 1
"""Largest seed that all generators take: NumPy's ``RandomState``, which gensim and fairseq use, takes no larger one."""

MOST = {float: 1e30, int: 2**63 - 1}
"""Largest size of a number: of one that is not whole, what float32 still multiplies; of a whole one, torch's."""

SPLITS = ("train", "valid", "test")
"""Of a data set; what ``--split`` names."""
SPLIT_NAMES = {"train": ("train",), "valid": ("valid", "val", "dev", "validation"), "test": ("test",)}
"""What files, folders and arrays of each split may be called."""
LIMITS = {"least": "at least", "above": "greater than", "most": "at most", "below": "less than"}
KEEPS = {"least": operator.ge, "above": operator.gt, "most": operator.le, "below": operator.lt}


def option(
    default: Any = MISSING,
    help: str = "",
    choices: tuple[str, ...] = (),
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    positional: bool = False,
    aliases: tuple[str, ...] = (),
    idle: dict[str, tuple[Any, ...]] | None = None,
    outcome: bool = True,
    **metadata: Any,
) -> Any:
    """A field of an :class:`OptionSet`, or of any dataclass that :func:`check_fields` checks.

    Args:
        default: default value; without one the option is required.
        help: the meaning of the option, with the paper's value.
        choices: the only values allowed; a default ``""``, if there is one, is allowed too and is not shown.
        least, above, most, below: limits of a number.
        positional: whether the option is given without its name; with a default it may be left out.
        aliases: other names of the option: those in a paper's code, and earlier ones.
        idle: values of other options with which this one does nothing, such as ``{"loss": ("ce", "focal")}``; if
            several options are named, all must have such a value.
        outcome: whether results depend on the option. Give False if it changes only the speed, or is the path of a file
            whose content is compared instead: runs are then resumed, and results added to, whatever the value.
        **metadata: further metadata of the field, for other code that reads it.
    """
    limits = {"least": least, "above": above, "most": most, "below": below}
    own = {
        "help": help,
        "choices": choices,
        **limits,
        "positional": positional,
        "aliases": aliases,
        "idle": idle or {},
        "outcome": outcome,
    }
    return field(default=default, metadata=own | metadata)


def seed_option(default: int, help: str, **more: Any) -> Any:
    """An :func:`option` that is a seed, from 0 to ``MOST_SEED``.

    Args:
        default: default value.
        help: the meaning of the option.
        **more: further arguments of :func:`option`.
    """
    return option(default, help, least=0, most=MOST_SEED, **more)


def check_seeds(first: int, runs: int) -> None:
    """Refuse runs of which the last has no seed.

    Args:
        first: ``--seed``; the others count on.
        runs: number of runs.

    Raises:
        OptionError: a seed would be greater than ``MOST_SEED``.
    """
    if first + runs - 1 > MOST_SEED:
        raise OptionError(f"--seed must be at most {MOST_SEED - runs + 1} for {runs} runs, got {first}")


def flag(name: str) -> str:
    """The option's name on the command line."""
    return f"--{name.replace('_', '-')}"


def find_split(place: str | Path, split: str, called: Callable[[str], Iterable[str]]) -> str | None:
    """The file, folder or array of a split in ``place``, by whichever of its ``SPLIT_NAMES``; None if there is none.

    Args:
        place: a folder or an archive, for messages.
        split: one of ``SPLITS``.
        called: gives, for one of the names, all that ``place`` has by this name, such as files in several forms.

    Raises:
        DataError: two files, folders or arrays could be the split.
    """
    found = [candidate for name in SPLIT_NAMES[split] for candidate in called(name)]
    if len(found) > 1:
        raise DataError(f"{place}: both {found[0]} and {found[1]} could be the {split} set")
    return found[0] if found else None


def _check_value(item: Field[Any], value: Any) -> None:
    name, metadata = flag(item.name), item.metadata
    if metadata["choices"]:
        choose(name, value, metadata["choices"])
    numbers = [number for number in (value if isinstance(value, tuple) else (value,)) if type(number) in MOST]
    for number in numbers:
        if isinstance(number, float) and not math.isfinite(number):
            raise OptionError(f"{name} must be finite, got {number}")
    limits = {key: metadata[key] for key in LIMITS if metadata[key] is not None}
    if not all(KEEPS[key](value, limit) for key, limit in limits.items()):
        allowed = " and ".join(f"{LIMITS[key]} {limit}" for key, limit in limits.items())
        raise OptionError(f"{name} must be {allowed}, got {value}")
    for number in numbers:
        if abs(number) > MOST[type(number)]:
            raise OptionError(f"{name} must be at most {MOST[type(number)]} in size, got {number}")


def _refuse_idle(item: Field[Any], value: Any, reason: str) -> None:
    if value != item.default:
        shown = flag(f"no_{item.name}") if value is False else flag(item.name)
        words = () if isinstance(value, bool) else value if isinstance(value, tuple) else (value,)
        given = "".join(f" {word}" for word in words)
        raise OptionError(f"{shown}{given}: has no effect {reason}")


def idle_fields(holder: Any, kind: Any) -> dict[str, str]:
    """The options that do nothing beside the values of the others, each with the reason.

    Args:
        holder: object with the values as attributes; an absent attribute stands for its default.
        kind: the dataclass whose :func:`option` fields are looked at.

    Example:
        >>> idle_fields(Options(loss="ce"), Options)
        {'gamma': 'with --loss ce'}
    """
    items = {item.name: item for item in fields(kind)}
    values = {name: getattr(holder, name, item.default) for name, item in items.items()}
    idle = {}
    for item in fields(kind):
        others = item.metadata.get("idle")
        if others and all(values[name] in off for name, off in others.items()):
            given = [_as_given(items[name], values[name]) for name in others]
            parts = {
                "with": [words for words in given if words],
                "without": [flag(name) for name, words in zip(others, given, strict=True) if not words],
            }
            idle[item.name] = " and ".join(f"{word} {_and_joined(names)}" for word, names in parts.items() if names)
    return idle


def _as_given(item: Field[Any], value: Any) -> str:
    """The words of the command line that give an option this value; empty if leaving it out does."""
    if value == "" or value == () or (value is False and not item.default):
        return ""
    if isinstance(value, bool):
        return flag(item.name if value else f"no_{item.name}")
    return f"{flag(item.name)} {value}"


def _and_joined(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def check_fields(holder: Any, kind: Any) -> None:
    """Refuse values outside of the limits of their :func:`option`, and options that would do nothing.

    Args:
        holder: object with the values as attributes: an object of the dataclass, or a namespace.
        kind: the dataclass; fields that are no :func:`option` are skipped.

    Raises:
        OptionError: the first option that is refused.
    """
    items = {item.name: item for item in fields(kind) if "idle" in item.metadata}
    for name, item in items.items():
        _check_value(item, getattr(holder, name))
    for name, reason in idle_fields(holder, kind).items():
        _refuse_idle(items[name], getattr(holder, name), reason)


def _as_typed(kind: Any, value: Any) -> Any:
    """``value`` as the command line would have given it."""
    if get_origin(kind) is tuple:
        several = value if isinstance(value, (list, tuple)) else (value,)
        return tuple(_as_typed(get_args(kind)[0], one) for one in several)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


@dataclass(frozen=True, kw_only=True)
class OptionSet:
    """Base of option classes, whose fields are ``str``, ``int``, ``float``, ``bool``, or tuples of one such type.

    Values are checked when an object is made, so that a program gets the same messages as the command line. A path is
    taken for its text, and a list or a single value where a tuple is meant.

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
        for name, kind in get_type_hints(type(self)).items():
            object.__setattr__(self, name, _as_typed(kind, getattr(self, name)))  # the class is frozen
        check_fields(self, type(self))

    def refuse_idle(self, reason: str, *names: str) -> None:
        """Refuse those of ``names`` that differ from their default, as they would do nothing.

        Args:
            reason: why, such as ``"with --loss cross-entropy"``.

        Raises:
            OptionError: for the first of them.
        """
        items = {item.name: item for item in fields(self)}
        for name in names:
            _refuse_idle(items[name], getattr(self, name), reason)

    def as_dict(self) -> dict[str, Any]:
        """Names and values."""
        return asdict(self)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Names and defaults of the options that have one."""
        return {item.name: item.default for item in fields(cls) if item.default is not MISSING}

    @classmethod
    def without_outcome(cls) -> list[str]:
        """Names of the options that change no outcome."""
        return [item.name for item in fields(cls) if not item.metadata.get("outcome", True)]

    @classmethod
    def aliases(cls) -> dict[str, str]:
        """Other names of the options, each with the option's name."""
        return {alias: item.name for item in fields(cls) for alias in item.metadata["aliases"]}

    @classmethod
    def add_to(cls, parser: argparse._ActionsContainer) -> None:
        """Give ``parser``, or a group of it, a flag for every field, and ``--no-`` forms for fields that are on."""
        types = get_type_hints(cls)
        for item in fields(cls):
            choices = f" ({', '.join(filter(None, item.metadata['choices']))})" if item.metadata["choices"] else ""
            value = " ".join(map(str, item.default)) if isinstance(item.default, tuple) else item.default
            if types[item.name] is bool:
                value = flag(item.name) if item.default else ""
            shown = "" if value in (MISSING, "") else f" [{value}]"
            settings: dict[str, Any] = {"help": f"{item.metadata['help']}{choices}{shown}".replace("%", "%%")}
            if types[item.name] is bool:
                settings["action"] = argparse.BooleanOptionalAction if item.default else "store_true"
            elif types[item.name] in (str, int, float):
                settings |= {"type": types[item.name], "metavar": item.name.upper()}
            else:
                settings |= {"nargs": "+", "type": get_args(types[item.name])[0], "metavar": item.name.upper()}
            if item.metadata["positional"]:
                if item.default is not MISSING:
                    settings |= {"nargs": "*" if "nargs" in settings else "?", "default": item.default}
                parser.add_argument(item.name, **settings)
                continue
            settings |= {"required": True} if item.default is MISSING else {"default": item.default}
            parser.add_argument(flag(item.name), *map(flag, item.metadata["aliases"]), dest=item.name, **settings)

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Self:
        """The options among parsed arguments."""
        values = {item.name: getattr(arguments, item.name) for item in fields(cls)}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
