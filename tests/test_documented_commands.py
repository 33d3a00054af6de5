"""Every command of a trainer or an example in any ``.md``: it parses by the names of now; all go into one folder."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from typing import Any

import pytest

from fairseq_ext import cli
from fairseq_ext.training.errors import InputError
from tests.helpers import ROOT
from tests.test_flags import MODULES, SCRIPTS, option_sets, program_of

NOT_OURS = {".venv", "build", "checkpoints", "data", "data-bin", "runs"}
PAGES = [page for page in sorted(ROOT.rglob("*.md")) if page.relative_to(ROOT).parts[0] not in NOT_OURS]
CODE = re.compile(r"^```\w*\n(.*?)^```|((?:^ {4}[^\n]*\n)+)|`([^`]+)`", re.DOTALL | re.MULTILINE)
MODULE_OF = {module.removesuffix(".__main__"): module for module in (*MODULES, *SCRIPTS)}
SYSTEMS = "|".join(name.replace(".", r"\.") for name in MODULE_OF)
BY_COMMAND = {module.removesuffix(".__main__") for module in MODULES}
TRAINS = {"train", "train-large", "train-teacher", "amalgamate"}
UNSAVED = {"out", "runs", "repeats", "splits", "inits"}  # more runs go into the same results


def code_lines(text: str) -> list[str]:
    """Lines of blocks, and code within a line of text that may be broken there."""
    lines = []
    for block, indented, inline in CODE.findall(text):
        joined = (block or indented).replace("\\\n", " ")
        lines += joined.splitlines() if joined else [" ".join(inline.split())]
    return lines


def documented_commands() -> list[Any]:
    """Page, module and words of each command; those with an ellipsis, and a name alone, are no whole command."""
    commands = []
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        for line in code_lines(page.read_text(encoding="utf-8")):
            for typed, rest in re.findall(rf"(-m (?:{SYSTEMS})|fairseq-ext captions) ([^|>]+)", line):
                module = typed.removeprefix("-m ").replace("fairseq-ext captions", "fairseq_ext.captions")
                words = shlex.split(re.sub(r"(\S*)\{(\S+),(\S+)\}", r"\1\2 \1\3", rest), comments=True)
                whole = len(words) > 1 or module not in BY_COMMAND
                if whole and "..." not in words and "COMMAND" not in words:
                    commands.append(pytest.param(module, words, id=f"{name}: {module} {' '.join(words)}"))
    return commands


COMMANDS = documented_commands()


def options_of_command(module: str, words: list[str]) -> dict[str, Any]:
    """What the command is called with."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            parsed = program_of(MODULE_OF[module]).parser().parse_args(words)
        sets = [kind.of(parsed) for kind in option_sets(parsed.function).values()]
    except (SystemExit, InputError) as error:
        if isinstance(error, SystemExit) and not error.code:  # --help
            return {}
        pytest.fail(f"{errors.getvalue().strip() or error}", pytrace=False)
    return {name: value for options in sets for name, value in options.as_dict().items()}


def test_there_are_commands():
    split = "examples.translation.tatoeba.split"  # in a script, and in its own docstring
    assert {command.values[0] for command in COMMANDS} == set(MODULE_OF) - {split}


@pytest.mark.parametrize(("module", "words"), COMMANDS)
def test_a_documented_command_is_one_by_the_names_of_now(module, words):
    options_of_command(module, words)
    commands = program_of(MODULE_OF[module]).commands
    function = commands[words[0] if module in BY_COMMAND else ""]
    earlier = {alias for kind in option_sets(function).values() for alias in kind.aliases()}
    assert not [word for word in words if word.startswith("--") and word[2:].replace("-", "_") in earlier]


def test_no_two_documented_trainings_want_one_folder():
    """The second would be refused, or lie among the files of the first."""
    wanted: dict[str, Any] = {}
    for page in PAGES:
        for folder in re.findall(r"--save-dir (\S+)", page.read_text(encoding="utf-8")):
            wanted[folder] = "fairseq-train"
    for command in COMMANDS:
        module, words = command.values
        if module in BY_COMMAND and words[0] in TRAINS and "--help" not in words:
            options = options_of_command(module, words)
            folder = options["out"] or f"{module} {options['dataset']}-{options['loss']}"
            settings = (module, words[0], {key: value for key, value in options.items() if key not in UNSAVED})
            assert wanted.setdefault(folder, settings) == settings, f"{command.id}: {folder} is another training's"
    stock = sum(settings == "fairseq-train" for settings in wanted.values())
    assert 0 < stock < len(wanted), "both kinds are there"


def own_commands() -> list[Any]:
    """Words of each ``fairseq-ext COMMAND ...`` but the programs, which the test above has."""
    commands = {}
    for page in PAGES:
        for line in code_lines(page.read_text(encoding="utf-8")):
            for rest in re.findall(r"^(?:.*\| )?fairseq-ext ((?:average|doctor|list|recipe) [^|>]+)", line):
                words = shlex.split(rest, comments=True)
                if "..." not in words and not set(words) & {"NAME", "DATA/METHOD"}:
                    commands[" ".join(words)] = pytest.param(words, id=f"{page.relative_to(ROOT)}: {' '.join(words)}")
    return list(commands.values())


@pytest.mark.parametrize("words", own_commands())
def test_a_documented_command_of_the_plugin_is_one(words):
    assert cli._parser().parse_args(words)
