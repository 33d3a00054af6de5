"""A program's commands: their options come from the command line, or from a file below it."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass

import pytest

from fairseq_ext.training.errors import DataError, InputError, OptionError
from fairseq_ext.training.flags import Runs
from fairseq_ext.training.options import OptionSet, option
from fairseq_ext.training.program import Program
from fairseq_ext.training.progress import say
from fairseq_ext.training.runs import Experiment
from fairseq_ext.training.settings import Settings
from tests.helpers import ROOT


@dataclass(frozen=True, kw_only=True)
class Options(OptionSet):
    """What is trained.

    More about it.
    """

    data: str = option(help="folder")
    lr: float = option(0.1, "step size", above=0)
    sizes: tuple[int, ...] = option((2, 3), "widths")
    bias: bool = option(True, "with bias")
    tied: bool = option(False, "with tied weights")
    loss: str = option("ce", "loss", ("ce", "mse"))


calls: list[tuple[Options, Runs]] = []
program = Program("some.trainer", "Trains something.")


@program.command
def train_all(options: Options, runs: Runs) -> None:
    """Train with one or more seeds."""
    calls.append((options, runs))


@program.command
def show(options: Options) -> None:
    """Show it."""
    calls.append((options, Runs()))


def called(*arguments):
    calls.clear()
    program(list(arguments))
    return calls[0]


def config(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content if isinstance(content, str) else json.dumps(content))
    return ["--config", str(tmp_path / "config.yaml")]


def test_a_command_is_called_with_its_option_sets():
    options, runs = called("train-all", "--data", "d", "--sizes", "4", "--no-bias", "--runs", "2", "--seed", "5")
    assert options == Options(data="d", sizes=(4,), bias=False) and runs == Runs(runs=2, seed=5)
    assert runs.seeds == {"seed5": 5, "seed6": 6}


def test_help_names_commands_and_defaults(capsys):
    for arguments, words in (
        (["--help"], ["Trains something.", "train-all", "Train with one or more seeds.", "show"]),
        (["train-all", "--help"], ["What is trained:", "--lr LR", "[0.1]", "--config", "--no-bias", "--runs"]),
    ):
        with pytest.raises(SystemExit) as end:
            program(arguments)
        out = capsys.readouterr().out
        assert end.value.code == 0 and all(word in out for word in words), out


def test_a_file_gives_options_and_the_command_line_wins(tmp_path):
    file = config(tmp_path, "data: d\nlr: 2\nsizes: [7, 8]\nbias: false\nseed: 3\n")
    options, runs = called("train-all", *file, "--lr", "0.5")
    assert options == Options(data="d", lr=0.5, sizes=(7, 8), bias=False) and runs.seed == 3


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("name", ["bias", "tied"])
def test_the_command_line_wins_over_a_file_in_either_direction(tmp_path, name, value):
    file = config(tmp_path, {"data": "d", name: not value})
    assert getattr(called("train-all", *file)[0], name) is not value
    assert getattr(called("train-all", *file, f"--{name}" if value else f"--no-{name}")[0], name) is value


@pytest.mark.parametrize(
    ("written", "option"),
    [
        ("lr: 1e-5", {"lr": 1e-5}),
        ("lr: 1", {"lr": 1.0}),
        ("data: no", {"data": "no"}),
        ("data: 0.20", {"data": "0.20"}),
        ("data: 2026-01-01", {"data": "2026-01-01"}),
        ("bias: False", {"bias": False}),
    ],
)
def test_the_type_of_a_value_is_that_of_its_option(tmp_path, written, option):
    base = "" if "data" in option else "data: d\n"
    assert called("train-all", *config(tmp_path, base + written))[0] == Options(**{"data": "d", **option})


@pytest.mark.parametrize("lr", [0.3, 1e-5, 1e16, 1.0])
@pytest.mark.parametrize("name", ["results.json", "copy.yaml"])
def test_results_can_be_fed_back(tmp_path, lr, name):
    options = Options(data="d", lr=lr, bias=False)
    settings = Settings.of(options, inputs={"train": "12ab"}, leave_out=("data", "lr"))
    experiment = Experiment(tmp_path, settings, device="cpu")
    experiment.add("seed1", {"accuracy": 0.5})
    experiment.file.rename(tmp_path / name)
    assert called("train-all", "--config", str(tmp_path / name))[0] == options


def test_a_damaged_results_file_is_named(tmp_path):
    (tmp_path / "results.json").write_text('{"settings": {')
    with pytest.raises(DataError, match=r"results\.json: not a JSON file"):
        program(["train-all", "--config", str(tmp_path / "results.json")])


def test_a_name_is_not_abbreviated(tmp_path, capsys):
    with pytest.raises(SystemExit):
        program(["train-all", "--data", "d", "--conf", config(tmp_path, "lr: 2")[1]])
    assert "unrecognized arguments: --conf" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lrr: 1", r"'lrr' is not one of .*did you mean 'lr'"),
        ("lr: high", r"config\.yaml: lr: must be float, got 'high'"),
        ("lr: true", r"lr: must be float, got 'true'"),
        ("seed: 1.5", r"seed: must be int, got '1\.5'"),
        ("data: null", r"data: must be str, got None"),
        ("data: [d]", r"data: must be str, got \['d'\]"),
        ("data: d\nlr: 1\nlr: 2", r"--config .*config\.yaml: a name stands twice"),
        ("sizes: 3", r"sizes: must be a list of int, got '3'"),
        ("sizes: [a]", r"sizes: must be int, got 'a'"),
        ("bias: 1", r"bias: must be bool, got '1'"),
        ("- a\n- b", r"must hold names of options"),
        ("a: [", r"--config .*config\.yaml: "),
        ("[" * 5000, r"--config .*config\.yaml: "),
        ("", r"must hold names of options"),
        ("!!python/object/apply:os.getcwd []", r"--config .*config\.yaml: "),
        ("lr: -1\ndata: d", r"^--lr must be greater than 0, got -1"),
        ("loss: cee\ndata: d", r"^--loss: 'cee' is not one of ce, mse"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, content, message):
    calls.clear()
    with pytest.raises(InputError, match=message) as refusal:
        program(["train-all", *config(tmp_path, content)])
    assert not calls and "\n" not in str(refusal.value) and refusal.value.code == 2


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"^--config .*none\.yaml: No such file"):
        program(["show", "--config", str(tmp_path / "none.yaml")])


def test_the_options_of_another_command_are_refused(tmp_path):
    with pytest.raises(OptionError, match="'seed' is not one of data, lr"):
        program(["show", *config(tmp_path, "data: d\nseed: 1")])


@pytest.mark.parametrize(
    ("result", "printed"),
    [
        ("0.5 ± 0.1", "0.5 ± 0.1\n"),
        ({"f1": 0.5, "name": "ß"}, '{\n  "f1": 0.5,\n  "name": "ß"\n}\n'),
        (iter([{"a": 1}, {"a": 2}]), '{"a": 1}\n{"a": 2}\n'),
        (None, ""),
    ],
    ids=["text", "mapping", "rows", "nothing"],
)
def test_what_a_command_returns_is_printed(result, printed, capsys):
    some = Program("some.trainer", "Trains something.")

    @some.command
    def show():
        """Show it."""
        return result

    some(["show"])
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("result", "name"),
    [({"f1": 0.5, "of": [0.5, float("nan")]}, "of.1 is nan"), (iter([{"a": 1}, {"a": float("-inf")}]), "a is -inf")],
    ids=["mapping", "rows"],
)
def test_a_number_that_json_cannot_hold_is_named(result, name, capsys):
    """Half of a JSON that no reader reads would be taken for a result."""
    some = Program("some.trainer", "Trains something.")

    @some.command
    def show():
        """Show it."""
        return result

    with pytest.raises(DataError, match=rf"^{name}, which is no result") as refusal:
        some(["show"])
    assert refusal.value.code == 2
    assert all(json.loads(line) for line in capsys.readouterr().out.splitlines())


@dataclass(frozen=True, kw_only=True)
class Output(OptionSet):
    """Where it writes."""

    out: str = option("", "folder")
    table: str = option("", "file", written=True)


@pytest.mark.parametrize(
    ("result", "words", "shown"),
    [
        ({"f1": 0.5}, "--out o --table t", "| results: o, t\n"),
        ({"f1": 0.5}, "--table t", "| results: t\n"),
        ({"f1": 0.5}, "--out o --table t --quiet", ""),
        ({"f1": 0.5}, "", ""),
        (iter([{"f1": 0.5}]), "--out o", "| results: o\n"),
        (None, "--out o", "| results: o\n"),
        ("written: o/a.json", "--out o", ""),
    ],
)
def test_where_the_results_lie_is_said_once(result, words, shown, capsys):
    some = Program("some.trainer", "Trains something.")

    @some.command
    def show(output: Output):
        """Show it."""
        return result

    some(["show", *words.split()])
    assert capsys.readouterr().err == shown


def test_quiet_may_stand_in_a_file(tmp_path, capsys):
    some = Program("some.trainer", "Trains something.")

    @some.command
    def show(output: Output):
        """Show it."""
        say("begins")
        return {}

    file = config(tmp_path, {"out": "o", "quiet": True})
    some(["show", *file])
    assert capsys.readouterr() == ("{}\n", "")
    some(["show", *file, "--no-quiet"])
    assert capsys.readouterr().err == "| begins\n| results: o\n"


@pytest.mark.parametrize(("rank", "printed"), [(0, 2), (1, 0)])
def test_only_the_first_process_prints_and_all_make_the_rows(rank, printed, capsys, monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: rank)
    some, rows = Program("some.trainer", "Trains something."), []

    @some.command
    def show():
        """Show it."""
        for row in range(2):
            rows.append(row)
            yield row

    some(["show"])
    assert rows == [0, 1] and len(capsys.readouterr().out.splitlines()) == printed


def test_processes_that_share_no_work_are_refused_before_any_is_done(monkeypatch):
    some, calls = Program("some.trainer", "Trains something."), []

    @some.command
    def one_alone() -> None:
        """Do it."""
        calls.append("alone")

    @some.shared_command
    def together() -> None:
        """Share it."""
        calls.append("together")

    some(["one-alone"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    some(["together"])
    with pytest.raises(OptionError, match=r"^python -m some.trainer one-alone has one process, got 2 \(WORLD_SIZE\)"):
        some(["one-alone"])
    assert calls == ["alone", "together"]
    monkeypatch.setenv("WORLD_SIZE", "1")
    some(["one-alone"])
    assert calls[2:] == ["alone"]


@dataclass(frozen=True, kw_only=True)
class Renamed(OptionSet):
    """Options with other names."""

    lr: float = option(0.1, "step size", aliases=("learning_rate",))


def test_two_names_of_one_option_in_a_file_are_refused(tmp_path):
    renamed = Program("some.trainer", "Trains something.")

    @renamed.command
    def train(options: Renamed) -> None:
        calls.append((options, Runs()))

    with pytest.raises(OptionError, match="learning-rate and lr are one option"):
        renamed(["train", *config(tmp_path, "learning-rate: 1\nlr: 2")])


@pytest.mark.parametrize("section", ["Args", "Returns", "Raises", "Yields", "Example"])
def test_what_a_docstring_says_to_programs_is_no_help(capsys, section):
    program = Program("made.up", None)

    @program.command
    def train(options: Options) -> str:
        return ""

    train.__doc__ = f"Train.\n\n    More of it.\n\n    {section}:\n        InputError: no data.\n    "
    with pytest.raises(SystemExit):
        program(["train", "--help"])
    told = capsys.readouterr().out
    assert "Train. More of it." in " ".join(told.split()) and section not in told and "InputError" not in told


def test_a_per_cent_sign_in_the_help_of_a_command(capsys):
    some = Program("some.trainer", "Trains something.")

    @some.command
    def train():
        """Train on 70% (of all)."""

    for words in (["--help"], ["train", "--help"]):
        with pytest.raises(SystemExit):
            some(words)
        assert "Train on 70% (of all)." in capsys.readouterr().out


def test_an_alias_is_the_option_on_the_command_line_and_in_a_file(tmp_path):
    renamed = Program("some.trainer", "Trains something.")
    rates = []

    @renamed.command
    def train(options: Renamed) -> None:
        rates.append(options.lr)

    renamed(["train", "--learning-rate", "0.2"])
    renamed(["train", *config(tmp_path, {"learning_rate": 0.3})])
    assert rates == [0.2, 0.3]


def test_no_command_only_calls_the_function_of_its_name():
    """``main.command(function)`` has its help and its options from one place."""
    wrappers = []
    for path in ROOT.glob("*/*/__main__.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and isinstance(node.body[-1], ast.Return) and len(node.body) <= 2:
                called = node.body[-1].value.func if isinstance(node.body[-1].value, ast.Call) else None
                if node.name in (getattr(called, "id", ""), getattr(called, "attr", "")):
                    wrappers.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert wrappers == []
