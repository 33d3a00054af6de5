"""The flags of all trainers: one name for one thing, in every program, on the command line and in files."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import inspect
import json
import re
import types
from collections import defaultdict
from typing import Any, get_args, get_type_hints

import pytest

from fairseq_ext.training.accelerator import make_accelerator
from fairseq_ext.training.errors import InputError
from fairseq_ext.training.files import read_json
from fairseq_ext.training.options import MOST_SEED, OptionSet
from fairseq_ext.training.program import Program
from fairseq_ext.training.progress import say
from tests.graph.graph_classification.conftest import write_tu
from tests.helpers import ROOT, forms_of, options_of, words_of
from tests.training.boards import scalars
from tests.vision_language.iais.regions import write_regions
from tests.vision_language.muka.texts import write_encoder, write_texts
from vision_language.image_classification.synthetic import SyntheticOptions, synthesize

MODULES = [
    ".".join([*path.relative_to(ROOT).parent.parts, "__main__"])
    for pattern in ("graph/*/__main__.py", "vision_language/*/__main__.py", "fairseq_ext/captions/__main__.py")
    for path in sorted(ROOT.glob(pattern))
]
SCRIPTS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for top in ("benchmarks", "examples")
    for path in sorted(ROOT.glob(f"{top}/**/*.py"))
    if "\nmain = Program(" in path.read_text(encoding="utf-8")
]
"""Of one command each."""


def program_of(module: str) -> Program:
    return importlib.import_module(module).main


def option_sets(function: Any) -> dict[str, type[OptionSet]]:
    return {name: kind for name, kind in get_type_hints(function).items() if name != "return"}


def all_fields(modules: list[str] = MODULES) -> list[tuple[str, dataclasses.Field, Any]]:
    """Place, field and type of every option of every command."""
    return [
        (f"{module.removesuffix('.__main__')} {command}", item, get_type_hints(kind)[item.name])
        for module in modules
        for command, function in program_of(module).commands.items()
        for kind in option_sets(function).values()
        for item in dataclasses.fields(kind)
    ]


def reached(function: Any, seen: set[Any]) -> set[Any]:
    """The functions of this tree that a function may call, itself and through each other."""
    if function in seen or not function.__module__.startswith(("fairseq_ext.", "graph.", "vision_language.")):
        return seen
    seen.add(function)
    codes = [function.__code__]
    for code in codes:
        codes += [inner for inner in code.co_consts if isinstance(inner, types.CodeType)]
        found = [function.__globals__.get(name) for name in code.co_names]
        modules = [one for one in found if isinstance(one, types.ModuleType)]
        found += [getattr(module, name, None) for module in modules for name in code.co_names]
        for one in filter(inspect.isfunction, found):
            reached(one, seen)
    return seen


@pytest.mark.parametrize("module", MODULES)
def test_processes_are_for_the_commands_that_share_their_work(module):
    program = program_of(module)
    makes = {name for name, function in program.commands.items() if make_accelerator in reached(function, set())}
    assert makes == {name for name, function in program.commands.items() if function in program.shared}


def test_there_are_trainers():
    assert len(all_fields()) > 50


RENAMED = {
    "batch_size": "eval_batch_size",
    "images": "limit",
    "imbalance": "label_sampling",
    "model": "backbone",
    "select": "select_on",
    "split": "split_kind",
}
"""Earlier names that mean something else in the other programs, and what they are now."""


def test_an_option_has_one_name_everywhere():
    fields = all_fields()
    of_alias = defaultdict(set)
    for place, item, _ in fields:
        for alias in item.metadata["aliases"]:
            if RENAMED.get(alias) == item.name:
                continue
            of_alias[alias].add((item.name, place))
    wrong = {f"{place} --{item.name}": of_alias[item.name] for place, item, _ in fields if item.name in of_alias}
    assert not wrong, "an earlier name of another program's option"
    ambiguous = {alias: names for alias, names in of_alias.items() if len({name for name, _ in names}) > 1}
    assert not ambiguous, "one earlier name of two options"


def test_an_option_means_the_same_everywhere():
    """``--split`` is a part of the data, ``--model`` what was trained before."""
    for place, item, _ in all_fields():
        if item.name == "split":
            assert set(item.metadata["choices"]) - {""} == {"train", "valid", "test"}, place
        if item.name == "model":
            assert re.search("file|folder", item.metadata["help"]), place


OWN_CHOICES = {
    "attn_implementation": "auto: models of a hub, of which some have no sdpa; iais has one model",
    "loss": "each task has its own losses",
    "select": "each task has its own metrics",
    "tokenizer": "of reviews, and of captions as published scores have it",
}
"""Options of several programs that do not take the same values, and why."""


def test_an_option_takes_the_same_values_everywhere():
    """Nothing beside them, ``""``, is a default."""
    choices = defaultdict(lambda: defaultdict(set))
    for place, item, _ in all_fields():
        choices[item.name][frozenset(item.metadata["choices"]) - {""}].add(place)
    assert {name: dict(sets) for name, sets in choices.items() if len(sets) > 1}.keys() == OWN_CHOICES.keys()


def test_a_flag_is_spelled_in_one_place():
    """By :func:`fairseq_ext.training.options.flag`."""
    spelled = re.compile(r"""--\{[^}]*replace\(['"]_['"]""")
    tops = ("fairseq_ext", "graph", "vision_language", "examples", "benchmarks")
    paths = [path for top in tops for path in ROOT.glob(f"{top}/**/*.py")]
    found = [path.relative_to(ROOT).as_posix() for path in paths if spelled.search(path.read_text(encoding="utf-8"))]
    assert found == ["fairseq_ext/training/options.py"]


# Two papers' names: of a ranking loss, and of weights by the lead of a teacher.
PUBLISHED_TWICE = {"margin"}


def test_an_option_has_one_type_everywhere():
    """One or several values of it: ``--data`` may take more than one folder."""
    types = defaultdict(lambda: defaultdict(set))
    for place, item, kind in all_fields():
        types[item.name][(*get_args(kind), kind)[0]].add(place)
    assert {name: dict(kinds) for name, kinds in types.items() if len(kinds) > 1}.keys() == PUBLISHED_TWICE


@pytest.mark.parametrize("module", [*MODULES, *SCRIPTS])
def test_help_has_no_markup_and_every_default(module):
    for command, form in forms_of(program_of(module).parser()).items():
        text = "".join(form.format_help().split())  # which is broken at hyphens
        assert not re.search("``|:`", text), command
        on = [action for action in form._actions if isinstance(action, argparse.BooleanOptionalAction)]
        assert all(f"[{action.option_strings[0]}]" in text for action in on if action.default), command


def test_every_option_says_what_it_is():
    options = all_fields([*MODULES, *SCRIPTS])
    assert not [f"{place} --{item.name}" for place, item, _ in options if not item.metadata["help"].strip()]


@pytest.fixture
def called(tmp_path, monkeypatch):
    """The option sets that a command would be called with, or the refusal."""

    def call(program: Program, command: str, words: list[str], config: dict[str, Any] | None = None):
        calls = []
        function = program.commands[command]
        monkeypatch.setitem(program.commands, command, functools.wraps(function)(lambda **sets: calls.append(sets)))
        if config is not None:
            (tmp_path / "options.json").write_text(json.dumps(config))
            words = [*words, "--config", str(tmp_path / "options.json")]
        try:
            program([command, *words] if command else words)
        except InputError as error:
            return str(error)
        finally:
            monkeypatch.setitem(program.commands, command, function)
        return calls[0]

    return call


def another(item: dataclasses.Field, kind: Any) -> Any:
    """A value that is not the option's default."""
    if kind not in (str, int, float, bool):
        return [{str: "x", int: 3, float: 3.5}[get_args(kind)[0]]]
    if kind is bool:
        return not item.default
    if kind is str:
        return next((choice for choice in item.metadata["choices"] if choice != item.default), "x")
    limits = [item.metadata[limit] for limit in ("least", "above", "most", "below") if item.metadata[limit] is not None]
    middle = sum(limits) / len(limits) if limits else 1.0
    return next(kind(value) for value in (middle, middle + 1, middle + 2) if kind(value) != item.default)


def given(action: argparse.Action, value: Any) -> list[str]:
    """The words that give an option this value."""
    if isinstance(value, bool):
        return words_of(action)
    (first, *rest) = value if isinstance(value, list) else [value]
    return [*words_of(action, str(first)), *map(str, rest)]


@pytest.mark.parametrize("module", [*MODULES, *SCRIPTS])
def test_a_file_gives_every_option_as_the_command_line_does(module, called):
    program = program_of(module)
    actions = options_of(program.parser())
    for command, function in program.commands.items():
        items = {
            item.name: (item, get_type_hints(kind)[item.name])
            for kind in option_sets(function).values()
            for item in dataclasses.fields(kind)
        }
        required = {name: another(*items[name]) for name in items if items[name][0].default is dataclasses.MISSING}
        for name, (item, kind) in items.items():
            values = required | {name: another(item, kind)}
            words = [word for other, value in values.items() for word in given(actions[command][other], value)]
            result = called(program, command, words)
            assert called(program, command, [], values) == result, f"{command} {words}"
            if not isinstance(result, str):
                settings = {key: value for options in result.values() for key, value in options.as_dict().items()}
                chosen = settings[name]
                assert (list(chosen) if isinstance(chosen, tuple) else chosen) == values[name], f"{command} {words}"
                again = called(program, command, [], settings)
                # The values, not the options: a default may stand for what the others say.
                assert [options.as_dict() for options in again.values()] == [
                    options.as_dict() for options in result.values()
                ], f"{command} {words}, fed back"


def write_topics(folder):
    for split in ("train", "valid", "test"):
        (folder / f"{split}.tsv").write_text("food\ttasty soup\nstaff\trude waiter\n" * 4)


def write_texts_and_encoder(folder):
    write_texts(folder)
    write_encoder(folder / "encoder")


def write_images(folder):
    synthesize(SyntheticOptions(out=str(folder), images=50))


TRAININGS = {
    ("graph.label_graph", "train"): (
        write_topics,
        "--data {data} --embedding learned --hidden-size 4 --attention-size 4 --epochs 2 --start-eval 1 --lr 1e-5",
        "",
    ),
    ("graph.graph_classification", "train"): (
        write_tu,
        "--dataset RINGS --root {data} --hidden-size 4 --epochs 2 --defer-start 0 --folds 3 --lr 1e-5",
        "",
    ),
    ("graph.renode", "train"): (
        None,
        "--dataset KarateClub --train-each 2 --valid-each 2 --epochs 2 --lr 1e-5 --inits 1 --splits 1",
        "--inits 1 --splits 1",
    ),
    ("graph.renode", "train-large"): (
        None,
        "--dataset KarateClub --train-each 1 --epochs 2 --lr 1e-5 --inits 1 --splits 1",
        "--inits 1 --splits 1",
    ),
    ("vision_language.iais", "train"): (
        write_regions,
        "--data {data} --hidden-size 8 --num-heads 2 --num-layers 1 --num-steps 2 --warmup-steps 1 --valid-images 3"
        " --batch-size 3 --negative-size 4 --hard-negatives 2 --lr 1e-5 --validate-every 1",
        "",
    ),
    ("vision_language.image_classification", "train"): (
        write_images,
        "--data {data} --epochs 2 --lr 1e-9 --batch-size 40",
        "",
    ),
    ("vision_language.muka", "train-teacher"): (
        write_texts_and_encoder,
        "--data {data} --model {data}/encoder --part 1/2 --epochs 2 --batch-size 40 --lr 1e-12 --max-length 16",
        "",
    ),
}
"""What writes its data, its options, and those of them that are no settings: which runs."""


@pytest.mark.parametrize(("module", "command"), TRAININGS)
def test_the_results_of_a_training_are_a_file_of_its_options(module, command, tmp_path, capsys, monkeypatch):
    write, words, unsaved = TRAININGS[module, command]
    data = tmp_path / "data"
    data.mkdir()
    if write:
        write(data)
    main, results = program_of(f"{module}.__main__"), tmp_path / "out" / "results.json"
    common = ["--out", str(results.parent), "--device", "cpu"]
    monkeypatch.setattr("fairseq_ext.training.progress.FIRST", 0.0)
    main([command, *words.format(data=data).split(), *common])
    before, (out, err) = results.read_bytes(), capsys.readouterr()
    assert str(results) in out and re.search(r"100% .*\[\d\d:\d\d<00:00", err), "no progress, or no place"
    main([command, "--config", str(results), *unsaved.format(data=data).split(), *common])
    assert results.read_bytes() == before, "other settings, or trained again"

    runs = read_json(results)["runs"]
    for name in runs:
        curves = scalars(results.parent / "tensorboard" / name)
        assert "train/loss" in curves and {tag.partition("/")[0] for tag in curves} == {"train", "valid", "test"}
        best = next(step for key, step in runs[name].items() if key in ("best_step", "best_epoch"))
        assert {step for tag, curve in curves.items() if tag.startswith("test/") for step in curve} == {best}
        last = max(step for tag, curve in curves.items() if tag.startswith("train/") for step in curve)
        assert best < last, "planted so that they differ"

    capsys.readouterr()
    main([command, *words.format(data=data).split(), "--out", str(tmp_path / "quiet"), "--device", "cpu", "--quiet"])
    out, err = capsys.readouterr()
    assert str(tmp_path / "quiet" / "results.json") in out and not err


def test_every_seed_is_one_that_all_generators_take():
    seeds = [(place, item) for place, item, _ in all_fields([*MODULES, *SCRIPTS]) if "seed" in item.name]
    assert len(seeds) > 10
    wrong = [f"{place} --{item.name}" for place, item in seeds if item.metadata["most"] != MOST_SEED]
    assert not wrong and all(item.metadata["least"] == 0 for _, item in seeds)


@pytest.mark.parametrize(("module", "command"), [key for key in TRAININGS if key[0] != "graph.renode"])
def test_a_seed_that_the_last_run_cannot_have_is_refused_first(module, command, tmp_path, monkeypatch):
    """Before data are read, and anything is written; ``graph.renode`` counts its seeds from 0."""
    monkeypatch.chdir(tmp_path)
    program = program_of(f"{module}.__main__")
    sets = option_sets(program.commands[command]).values()
    names = {item.name for kind in sets for item in dataclasses.fields(kind)}
    words = [command, *TRAININGS[module, command][1].format(data="absent").split(), "--out", "out", "--device", "cpu"]
    with pytest.raises(InputError, match=r"^--seed must be at least 0 and at most 4294967295, got 4294967296$"):
        program([*words, "--seed", str(MOST_SEED + 1)])
    if "runs" in names:
        words += [] if "--folds" in words else ["--runs", "3"]
        with pytest.raises(InputError, match=r"^--seed must be at most 4294967293 for 3 runs, got 4294967294$"):
            program([*words, "--seed", str(MOST_SEED - 1)])
    assert not list(tmp_path.iterdir())


def unchecked(kind: type[OptionSet], arguments: argparse.Namespace) -> OptionSet:
    """The options as they are given, whether they go together or not."""
    options = object.__new__(kind)
    for item in dataclasses.fields(kind):
        object.__setattr__(options, item.name, getattr(arguments, item.name))
    return options


@pytest.mark.parametrize("module", [*MODULES, *SCRIPTS])
def test_every_command_is_quiet_and_says_where_it_wrote(module, capsys, monkeypatch):
    """Whatever it does: a command that is added has both by itself."""
    monkeypatch.setattr(OptionSet, "of", classmethod(unchecked))
    program = program_of(module)
    for command, function in list(program.commands.items()):
        items = {
            item.name: (item, get_type_hints(kind)[item.name])
            for kind in option_sets(function).values()
            for item in dataclasses.fields(kind)
        }
        required = {name for name in items if items[name][0].default is dataclasses.MISSING}
        written = {name for name, (item, _) in items.items() if name == "out" or item.metadata.get("written")}
        actions = options_of(program.parser())[command]
        words = [word for name in required | written for word in given(actions[name], another(*items[name]))]

        @functools.wraps(function)
        def busy(**sets: Any) -> dict[str, Any]:
            say("begins")
            return {}

        monkeypatch.setitem(program.commands, command, busy)
        words = [command, *words] if command else words
        program(words)
        results = f"| results: {', '.join(['x'] * len(written))}\n" if written else ""
        assert capsys.readouterr() == ("{}\n", f"| begins\n{results}"), command
        program([*words, "--quiet"])
        assert capsys.readouterr() == ("{}\n", ""), command
