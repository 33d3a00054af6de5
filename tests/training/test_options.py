"""Options as the fields of a dataclass: the command line they make, and what they refuse."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.options import OptionSet, check_fields, flag, idle_fields, option


@dataclass(frozen=True, kw_only=True)
class Base(OptionSet):
    data: str = option(help="folder")
    lr_decay: float = option(0.5, "of 100 %", above=0, most=1)


@dataclass(frozen=True, kw_only=True)
class Options(Base):
    steps: int = option(3, "count", least=1)
    kind: str = option("soft", "which", ("soft", "hard"))
    attack: str = option("", "as trained", ("", "weak"))
    margin: bool = option(True, "weigh")
    deep: bool = option(False, "all layers")
    names: tuple[str, ...] = option((), "labels")


def parse(*arguments: str) -> Options:
    parser = argparse.ArgumentParser()
    Options.add_to(parser)
    return Options.of(parser.parse_args(["--data", "d", *arguments]))


def test_the_command_line_is_that_of_the_fields():
    assert parse() == Options(data="d")
    arguments = "--lr-decay 1 --steps 7 --kind hard --attack weak --no-margin --deep --names a b".split()
    chosen = {"lr_decay": 1.0, "steps": 7, "kind": "hard", "attack": "weak", "margin": False, "deep": True}
    chosen["names"] = ("a", "b")
    assert parse(*arguments) == Options(data="d", **chosen)
    assert parse(*arguments).as_dict() == {"data": "d", **chosen}
    assert flag("lr_decay") == "--lr-decay"


def test_values_of_a_program_become_those_of_the_command_line():
    typed = Options(data="runs/texts", names=("a", "runs/b"))
    assert Options(data=Path("runs/texts"), names=["a", Path("runs/b")]) == typed
    assert Options(data="d", names=Path("runs/b")) == Options(data="d", names="runs/b") == parse("--names", "runs/b")
    assert json.loads(json.dumps(Options(data=Path("runs/texts")).as_dict()))["data"] == "runs/texts"


def test_help_tells_default_and_choices(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "of 100 % [0.5]" in text and "--no-margin" in text
    assert "which (soft, hard) [soft]" in text and "as trained (weak)" in text
    assert "[()]" not in text and "MISSING" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--lr-decay", "0"], "--lr-decay must be greater than 0 and at most 1, got 0.0"),
        (["--lr-decay", "1.5"], "--lr-decay must be greater than 0 and at most 1, got 1.5"),
        (["--lr-decay", "inf"], "--lr-decay must be finite, got inf"),
        (["--steps", str(2**63)], f"--steps must be at most {2**63 - 1} in size, got {2**63}"),
        (["--steps", "1" + 400 * "0"], f"--steps must be at most {2**63 - 1} in size, got 1000"),
        (["--kind", "sof"], "did you mean 'soft'"),
        (["--attack", "strong"], "--attack: 'strong' is not one of weak"),
    ],
)
def test_limits_hold_on_the_command_line_and_in_programs(arguments, message):
    with pytest.raises(OptionError, match=message):
        parse(*arguments)
    name = arguments[0].removeprefix("--").replace("-", "_")
    value = type(getattr(parse(), name))(arguments[1])
    with pytest.raises(OptionError, match=message):
        Options(data="d", **{name: value})


@dataclass(frozen=True, kw_only=True)
class Numbers(OptionSet):
    seed: int = option(0, "seed", least=0, most=9)
    lr: float = option(0.1, "step size", above=0)
    shifts: tuple[float, ...] = option((), "in pixels")


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"lr": 3e38}, "--lr must be at most 1e+30 in size, got 3e+38"),
        ({"shifts": (0.5, -1e31)}, "--shifts must be at most 1e+30 in size, got -1e+31"),
        ({"shifts": (0.5, float("nan"))}, "--shifts must be finite, got nan"),
        ({"seed": 2**64}, f"--seed must be at least 0 and at most 9, got {2**64}"),
    ],
)
def test_numbers_that_no_tensor_can_hold_are_refused(chosen, message):
    """Else a step of float32 overflows in the middle of a training; an option's own limits are told first."""
    assert Numbers(lr=1e30, shifts=(-1e30,))
    with pytest.raises(OptionError) as error:
        Numbers(**chosen)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"steps": 1, "margin": False}, "--steps 1: has no effect with --kind soft"),
        ({"margin": False}, "--no-margin: has no effect with --kind soft"),
        ({"deep": True}, "--deep: has no effect with --kind soft"),
    ],
)
def test_options_that_do_nothing_are_refused_by_name(chosen, message):
    names = ("steps", "margin", "deep")
    Options(data="d").refuse_idle("with --kind soft", *names)
    Options(data="d", lr_decay=1.0).refuse_idle("with --kind soft", *names)
    with pytest.raises(OptionError) as error:
        Options(data="d", **chosen).refuse_idle("with --kind soft", *names)
    assert str(error.value) == message


def test_a_required_option_is_required(capsys):
    parser = argparse.ArgumentParser()
    Options.add_to(parser)
    with pytest.raises(SystemExit):
        parser.parse_args([])
    assert "--data" in capsys.readouterr().err


@dataclass(frozen=True, kw_only=True)
class Dependent(OptionSet):
    loss: str = option("ce", "which", ("ce", "focal", "ldam"))
    decay: float = option(0.0, "of the rate")
    gamma: float = option(2.0, "of the focal loss", idle={"loss": ("ce", "ldam")})
    reset: bool = option(False, "at each decay", idle={"decay": (0,), "loss": ("ce",)})


def test_an_option_can_say_itself_where_it_does_nothing():
    assert idle_fields(Dependent(), Dependent) == {
        "gamma": "with --loss ce",
        "reset": "with --decay 0.0 and --loss ce",
    }
    Dependent(loss="focal", gamma=3.0), Dependent(decay=0.1, reset=True), Dependent(loss="ldam", reset=True)
    with pytest.raises(OptionError, match=r"^--gamma 3.0: has no effect with --loss ldam$"):
        Dependent(loss="ldam", gamma=3.0)
    with pytest.raises(OptionError, match=r"^--reset: has no effect with --decay 0.0 and --loss ce$"):
        Dependent(reset=True)


@dataclass(frozen=True, kw_only=True)
class Switches(OptionSet):
    fast: bool = option(False, "a switch")
    bias: bool = option(True, "a switch that is on")
    model: str = option("", "a file")
    first: int = option(0, idle={"fast": (True,)})
    second: int = option(0, idle={"fast": (False,), "model": ("",)})
    third: int = option(0, idle={"bias": (False,), "model": ("",)})


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"first": 1, "fast": True}, "--first 1: has no effect with --fast"),
        ({"second": 1}, "--second 1: has no effect without --fast and --model"),
        ({"third": 1, "bias": False}, "--third 1: has no effect with --no-bias and without --model"),
    ],
)
def test_switches_and_what_is_not_given_are_named_as_they_are_typed(chosen, message):
    with pytest.raises(OptionError) as error:
        Switches(**chosen)
    assert str(error.value) == message


def test_a_namespace_is_checked_like_an_option_set():
    namespace = argparse.Namespace(loss="focl", decay=0.0, gamma=2.0, reset=False)
    with pytest.raises(OptionError, match="did you mean 'focal'"):
        check_fields(namespace, Dependent)
    assert idle_fields(argparse.Namespace(loss="focal"), Dependent) == {}
