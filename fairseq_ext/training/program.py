"""A command line made of functions: each function is a command, and its arguments are sets of options."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from tqdm import tqdm

from fairseq_ext.training.errors import DataError, OptionError, choose
from fairseq_ext.training.files import read_json
from fairseq_ext.training.interruption import run_command
from fairseq_ext.training.json_values import json_text
from fairseq_ext.training.options import OptionSet, flag
from fairseq_ext.training.progress import Reporting, is_first_process, refuse_processes, reporting, say

__all__ = ["Program"]

Command = TypeVar("Command", bound=Callable[..., Any])

SECTION = re.compile(r"^(?:Args|Example|Examples|Raises|Returns|Yields):$", re.MULTILINE)
"""Where the part of a docstring begins that is for who calls the function."""
MARKUP = re.compile(r":\w+:`~?(?P<name>[^`]+)`|``(?P<code>[^`]+)``")
"""A reference, or code, of reStructuredText."""


class Program:
    """``python -m NAME COMMAND``, or ``python -m NAME`` if the program is one :meth:`only` command.

    A command's name is that of its function, its help is the function's docstring up to its sections, and each
    parameter is annotated with the :class:`~fairseq_ext.training.options.OptionSet` that it is called with. Every
    command also takes ``--config FILE`` and ``--quiet``. Its result is printed: a text as it is, a mapping as JSON, and
    each row of an iterator as soon as it is there: a text as it is, else a line of JSON, where a number that is not
    finite is refused by name. With several processes only the first prints. The place that the command has written to,
    given by ``--out`` or another option with the metadata ``written=True``, is named in the text that it returns, or
    else in a last line on stderr.

    Args:
        name: the module.
        description: what the program is for. Default: the help of its only command.
        prog: what a user types to run it. Default: ``python -m NAME``.

    Example:
        >>> program = Program("graph.label_graph", __doc__)
        >>> @program.command
        ... def train(options: Options, runs: Runs) -> str:
        ...     '''Train with one or more seeds.'''
        ...     return experiment.report("accuracy")
        >>> program()  # or program(["train", "--data", "folder"])
    """

    def __init__(self, name: str, description: str | None = None, prog: str = "") -> None:
        self.name, self.description = name, description
        self.prog = prog or f"python -m {name}"
        self.commands: dict[str, Callable[..., Any]] = {}
        self.shared: set[Callable[..., Any]] = set()

    def command(self, function: Command) -> Command:
        """Add a command of one process: several processes of a launcher, which would each do all work, are refused."""
        self.commands[function.__name__.strip("_").replace("_", "-")] = function
        return function

    def shared_command(self, function: Command) -> Command:
        """Add a command whose work the processes of a launcher share, by the accelerator that the command makes."""
        self.shared.add(function)
        return self.command(function)

    def only(self, function: Command) -> Command:
        """Make ``function`` the whole program: a command of one process, whose name is not typed."""
        self.commands[""] = function
        return function

    def parser(self, config: str = "", chosen: str = "") -> argparse.ArgumentParser:
        """The command line; the command ``chosen`` has the defaults of the file ``config``."""
        # An abbreviation of --config would be accepted, and its file not read.
        top = argparse.ArgumentParser(prog=self.prog, description=self.description, allow_abbrev=False)
        parsers = None if "" in self.commands else top.add_subparsers(metavar="COMMAND", required=True)
        for name, function in self.commands.items():
            about = _plain(SECTION.split(inspect.getdoc(function) or "")[0].strip())
            summary = about.partition("\n")[0].replace("%", "%%")
            if parsers is None:
                command = top
                command.description = command.description or about
            else:
                command = parsers.add_parser(name, help=summary, description=about, allow_abbrev=False)
            command.set_defaults(function=function)
            command.add_argument(
                "--config", help="YAML file of options, or a results.json of this command; the command line wins"
            )
            kinds: list[type[OptionSet]] = [*_option_sets(function).values(), Reporting]
            for kind in kinds:
                kind.add_to(command.add_argument_group(_title(kind)))
            if config and name == chosen:
                _set_defaults(command, config, kinds)
        return top

    def __call__(self, arguments: Sequence[str] | None = None) -> None:
        """Run one command.

        Args:
            arguments: words of the command. Default: those of the command line; the program then ends without a
                traceback on Ctrl-C, or if a reader such as ``head`` closes the pipe.

        Raises:
            InputError: options that are refused, or several processes (``WORLD_SIZE``) for a command of one process.
        """
        if arguments is not None:
            self._run(list(arguments))
        elif code := run_command(lambda: self._run(sys.argv[1:])):
            raise SystemExit(code)

    def _run(self, arguments: list[str]) -> None:
        early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        early.add_argument("--config", default="")
        config = early.parse_known_args(arguments)[0].config
        name = "" if "" in self.commands or not arguments else arguments[0]
        parsed = self.parser(config, name).parse_args(arguments)
        if parsed.function not in self.shared:
            refuse_processes(f"{self.prog} {name}".rstrip())
        sets = {name: kind.of(parsed) for name, kind in _option_sets(parsed.function).items()}
        with reporting(Reporting.of(parsed).quiet):
            result = parsed.function(**sets)
            _show(result)
            printed = result if isinstance(result, str) else ""
            if places := [place for options in sets.values() for place in _written(options) if place not in printed]:
                say(f"results: {', '.join(places)}")


def _written(options: OptionSet) -> Iterator[str]:
    """The places that a command has written to."""
    for item in fields(options):
        if item.name == "out" or item.metadata.get("written"):
            yield from filter(None, [getattr(options, item.name)])


def _show(result: str | Mapping[str, Any] | Iterator[Any] | None) -> None:
    if isinstance(result, str):
        _print(result)
    elif isinstance(result, Mapping):
        _print(json_text(result, indent=2))
    elif result is not None:
        for row in result:  # in every process: making a row may need all of them
            _print(row if isinstance(row, str) else json_text(row))


def _print(text: str) -> None:
    if not is_first_process():
        return
    if sys.stdout.isatty():
        tqdm.write(text)  # above a bar
    else:
        print(text, flush=True)


def _option_sets(function: Callable[..., Any]) -> dict[str, type[OptionSet]]:
    """The parameters of a command and their classes."""
    return {name: kind for name, kind in get_type_hints(function).items() if name != "return"}


def _title(kind: type[OptionSet]) -> str:
    return _plain((inspect.getdoc(kind) or kind.__name__).partition("\n")[0].rstrip("."))


def _plain(text: str) -> str:
    """A docstring as a terminal shows it: the last part of a reference's name, and code without its quotes."""
    return MARKUP.sub(lambda marked: marked["code"] or marked["name"].rpartition(".")[2], text)


def _set_defaults(parser: argparse.ArgumentParser, config: str, kinds: Sequence[type[OptionSet]]) -> None:
    """Take the options in a file as the defaults of a command."""
    actions = {action.dest: action for action in parser._actions}
    types = {name: kind for options in kinds for name, kind in get_type_hints(options).items()}
    aliases = {alias: name for options in kinds for alias, name in options.aliases().items()}
    given: dict[str, str] = {}
    for name, value in _read(config).items():
        key = name.replace("-", "_")
        key = choose(f"--config {config}", aliases.get(key, key), types)
        if key in given:
            raise OptionError(f"--config {config}: {given[key]} and {name} are one option")
        given[key] = name
        actions[key].default = _typed(f"--config {config}: {name}", value, types[key])
        actions[key].required = False
        if actions[key].default is True and not isinstance(actions[key], argparse.BooleanOptionalAction):
            # a flag that the file sets needs a --no- form, or the command line could not turn it off
            help = f"not {flag(key)}, which {config} gives".replace("%", "%%")
            parser.add_argument(flag(f"no_{key}"), dest=key, action="store_false", help=help)


class _Loader(yaml.SafeLoader):
    """Loads scalars as text, whose type the options know: YAML would take ``1e-3`` for a text and ``no`` for False.

    Raises:
        yaml.YAMLError: also for a name that occurs twice.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a name stands twice", node.start_mark)
        return mapping


for _kind in ("bool", "int", "float", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_scalar)


def _read(config: str) -> Mapping[str, Any]:
    """The options in a file."""
    try:
        if config.endswith(".json"):  # JSON is YAML too, but reading a large file as YAML takes minutes
            content = read_json(config)
        else:
            content = yaml.load(Path(config).read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"--config {config}: {reason}") from error
    if isinstance(content, dict) and isinstance(content.get("settings"), dict):  # results.json
        content = {name: value for name, value in content["settings"].items() if name != "inputs"}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise DataError(f"--config {config}: must hold names of options and their values")
    return content


TYPES: dict[Any, Callable[[str], Any]] = {
    str: str,
    int: int,
    float: float,
    bool: lambda text: {"true": True, "false": False}[text.lower()],
}


def _typed(name: str, value: Any, kind: Any) -> Any:
    """``value`` in the type ``kind`` of its option."""
    if type(value) is kind or (kind, type(value)) == (float, int):
        return kind(value)
    if kind in TYPES and isinstance(value, str):
        with contextlib.suppress(ValueError, KeyError):
            return TYPES[kind](value)
    elif kind not in TYPES and isinstance(value, list):
        return tuple(_typed(name, item, kind.__args__[0]) for item in value)
    wanted = kind.__name__ if kind in TYPES else f"a list of {kind.__args__[0].__name__}"
    raise OptionError(f"{name}: must be {wanted}, got {value!r}")
