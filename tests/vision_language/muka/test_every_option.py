"""Every option of every command: where it acts the outcome is another one, where it would do nothing it is refused."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace

import pytest
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from fairseq_ext.training.checkpoint import Checkpoint
from fairseq_ext.training.errors import InputError
from tests.helpers import SHARED
from tests.vision_language.muka.texts import write_texts
from vision_language.muka import __main__ as command_line
from vision_language.muka import cache, evaluate, logits, train

QUICK = "--epochs 1 --batch-size 10 --lr 0.01 --max-length 16"
TEACHERS = "--teachers FIRST SECOND"
TO_DIAGNOSE = f"{TEACHERS} --data DATA --max-length 16 --passes 3"
BASES = {
    "train-teacher": f"--model ENCODER --data FILE --valid-fraction 0.3 --classes sport music travel garden {QUICK}",
    "amalgamate": f"--student ENCODER --data FILE --valid-fraction 0.3 --passes 3 {TEACHERS} {QUICK}",
    "merge": "--teachers FIRST THIRD",
    "evaluate": "--model WHOLE --data DATA --max-length 16",
    "diagnose": TO_DIAGNOSE,
    "predict": "NEW --model WHOLE --max-length 16",
    "synthesize": "--texts 40",
}


@dataclass(frozen=True)
class Row:
    """What an option does.

    ``live``: arguments that change the outcome, beside ``base`` and ``without`` one of the command's own; ``idle``:
    arguments beside which they would do nothing.
    """

    live: str
    base: str = ""
    idle: tuple[str, ...] = ()
    without: str | None = None


TRAINING = {
    "--data": Row("--data OTHER"),
    "--max-length": Row("--max-length 5"),
    "--epochs": Row("--epochs 2"),
    "--batch-size": Row("--batch-size 7"),
    "--lr": Row("--lr 0.02"),
    "--warmup": Row("--warmup 0.9"),
    "--weight-decay": Row("--weight-decay 1"),
    "--clip-norm": Row("--clip-norm 0.01"),
    "--validate-every": Row("--validate-every 1"),
    "--save-every": Row("--save-every 1"),
    "--eval-batch-size": Row("--eval-batch-size 3"),
    "--valid-fraction": Row("--valid-fraction 0.4", idle=("--data DATA",)),
    "--mixed-precision": Row("--mixed-precision bf16"),
    "--attn-implementation": Row("--attn-implementation eager"),
    "--seed": Row("--seed 2"),
    "--num-layers": Row("--num-layers 1"),
    "--from-scratch": Row("--from-scratch"),
    "--device": Row("--device cpu"),
    "--out": Row("--out OUT"),
}
SCORES = {
    "--teachers": Row("--teachers FIRST THIRD"),
    "--rename": Row("--rename cooking=kitchen", base="--data TEXTS"),
    "--score": Row("--score margin"),
    "--passes": Row("--passes 4", idle=("--no-mc",)),
    "--teacher-dropout": Row("--teacher-dropout 0.5", idle=("--no-mc",)),
    "--no-mc": Row("--no-mc", without="--passes"),
}
FEATURES = "--teachers FIRST THIRD --method"
OF_MUKA = ("--method vkd", "--method uhc", f"{FEATURES} dfa", f"{FEATURES} cfl", "--method supervised")
LABELLED = "--method supervised"
ROWS = {
    "train-teacher": {
        **TRAINING,
        "--model": Row("--model ENCODER2"),
        "--part": Row("--part 1/2", idle=("--classes music travel",), without="--classes"),
        "--classes": Row("--classes music travel"),
        "--loss": Row("--loss encouraging"),
        "--log-end": Row("--log-end 0.1", base="--loss encouraging", idle=("--loss cross-entropy",)),
    },
    "amalgamate": {
        **TRAINING,
        **{name: replace(row, idle=(*row.idle, *OF_MUKA)) for name, row in SCORES.items()},
        "--teachers": Row("--teachers FIRST THIRD", idle=(LABELLED,)),
        "--rename": Row("--rename cooking=kitchen", base="--data TEXTS", idle=(LABELLED,)),
        "--student": Row("--student ENCODER2"),
        "--method": Row("--method vkd", without="--passes"),
        "--margin": Row("--no-margin", idle=OF_MUKA),
        "--temperature": Row("--temperature 2", idle=(LABELLED,)),
        "--score-temperature": Row("--score-temperature 1", idle=("--method muka-hard", *OF_MUKA)),
        "--amalgam-lr": Row(
            "--amalgam-lr 0.1", base=f"{FEATURES} cfl", idle=("--method muka-soft", "--method vkd"), without="--passes"
        ),
        "--select": Row("--select accuracy"),
        "--until-converged": Row("--until-converged", base="--epochs 2 --validate-every 1 --lr 1e-9", idle=("",)),
        "--cache": Row("--cache CACHE", idle=(LABELLED,)),
    },
    "merge": {
        "--teachers": Row("--teachers THIRD FIRST"),
        "--rename": Row("--rename sport=games"),
        "--rule": Row("--rule task-arithmetic --base ENCODER"),
        "--base": Row("--base WHOLE", base="--rule task-arithmetic --base ENCODER", idle=("--rule average",)),
        "--scale": Row("--scale 1", base="--rule task-arithmetic --base ENCODER", idle=("--rule average",)),
        "--out": Row("--out OUT"),
    },
    "evaluate": {
        "--model": Row("--model OTHER_WHOLE"),
        "--ensemble": Row("--ensemble FIRST SECOND", without="--model"),
        "--data": Row("--data OTHER_TEST"),
        "--split": Row("--split train", idle=("--data OTHER_TEST",)),
        "--rename": Row("--rename sport=music music=sport"),
        "--max-length": Row("--max-length 3"),
        "--eval-batch-size": Row("--eval-batch-size 3"),
        "--device": Row("--device cpu"),
    },
    "diagnose": {
        **SCORES,
        "--rename": Row("--rename music=sport sport=music"),
        "--temperature": Row("--temperature 3", base="--supervised WHOLE", idle=("",)),
        "--score-temperature": Row("--score-temperature 1", base="--supervised WHOLE", idle=("", "--no-mc")),
        "--student": Row("--student WHOLE"),
        "--supervised": Row("--supervised WHOLE"),
        "--seed": Row("--seed 2", idle=("--no-mc",)),
        "--out": Row("--out OUT"),
        "--cache": Row("--cache CACHE"),
        "--data": Row("--data OTHER_TEST"),
        "--split": Row("--split train", idle=("--data OTHER_TEST",)),
        "--max-length": Row("--max-length 3"),
        "--eval-batch-size": Row("--eval-batch-size 3"),
        "--device": Row("--device cpu"),
    },
    "predict": {
        "file": Row("NEW2"),
        "--model": Row("--model OTHER_WHOLE"),
        "--top": Row("--top 1"),
        "--rename": Row("--rename sport=games"),
        "--max-length": Row("--max-length 3"),
        "--eval-batch-size": Row("--eval-batch-size 1"),
        "--device": Row("--device cpu"),
    },
    "synthesize": {"--out": Row("--out OUT"), "--texts": Row("--texts 60"), "--seed": Row("--seed 1")},
}
KNOWN: dict = {}
"""Outcomes of the tests so far: most have the same arguments to compare with."""
CASES = [(command, name) for command, rows in ROWS.items() for name in rows]
IDLE = [(command, name, other) for command, rows in ROWS.items() for name, row in rows.items() for other in row.idle]


@pytest.fixture(scope="module")
def places(world, tmp_path_factory):
    """What the names in capitals stand for."""
    folder = tmp_path_factory.mktemp("options")
    data = write_texts(folder / "data", train=40, valid=10, test=10)
    other = write_texts(folder / "other", train=40, valid=10, test=10, seed=3)
    (folder / "texts.txt").write_text("".join(line.split("\t")[1] for line in open(data / "train.tsv")))
    (folder / "new.txt").write_text("the goal of the race team\nsome rain and a rose\n")
    (folder / "new2.txt").write_text("a song\n")
    paths = {
        "DATA": data,
        "FILE": data / "train.tsv",
        "TEXTS": folder / "texts.txt",
        "OTHER": other / "train.tsv",
        "OTHER_TEST": other / "test.tsv",
        "NEW": folder / "new.txt",
        "NEW2": folder / "new2.txt",
        "ENCODER": world.encoder,
        "ENCODER2": world.other_encoder,
        "FIRST": world.first,
        "SECOND": world.second,
        "THIRD": world.third,
    }
    for name, seed in (("WHOLE", 1), ("OTHER_WHOLE", 2)):
        paths[name] = folder / name
        command = f"train-teacher --model {world.encoder} --data {data} --out {paths[name]} {QUICK} --seed {seed}"
        command_line.main([*command.split(), "--epochs", "6"])
    return {name: str(path) for name, path in paths.items()}


def merged(*parts, without=()):
    """Arguments of several strings, the last of each option, without some of them; the file comes first."""
    groups = {}
    for part in parts:
        name = "file"
        for place, word in enumerate(part.split()):
            if word.startswith("--") or not place:
                name = word if word.startswith("--") else "file"
                groups[name] = []
            groups[name].append(word)
    return [word for name, words in groups.items() if name not in without for word in words]


@pytest.fixture
def outcome(places, tmp_path, monkeypatch, capsys):
    """Runs a command where its default folders do no harm, and tells everything that an option could change."""
    seen = []
    shared = {"CACHE": str(tmp_path / "cache"), "OUT": str(tmp_path / "out")}
    make, fit, save, predict = command_line.make_accelerator, train.fit, Checkpoint.save, logits.predict_logits

    def watched_fit(options, objective, *arguments):
        seen.append((objective.model.config._attn_implementation, *arguments[-2:]))
        return fit(options, objective, *arguments)

    def watched_logits(model, tokens, batch_size, *arguments):
        seen.append(batch_size)
        return predict(model, tokens, batch_size, *arguments)

    for module in (command_line, evaluate):
        monkeypatch.setattr(module, "make_accelerator", lambda *a, **k: (seen.append((a, k)), make(*a, **k))[1])
    monkeypatch.setattr(train, "fit", watched_fit)
    monkeypatch.setattr("vision_language.muka.evaluate.draw_scores", lambda *_: None)  # slow, and without options
    monkeypatch.setattr(Checkpoint, "save", lambda self: (seen.append("saved"), save(self))[1])
    for module in (cache, logits, train):
        monkeypatch.setattr(module, "predict_logits", watched_logits)

    def outcome(command, arguments, name):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        AcceleratorState._reset_state(True)  # one process knows one number format
        seen.clear()
        command_line.main([command, *(shared.get(word, places.get(word, word)) for word in arguments)])
        said = capsys.readouterr().out
        files = {str(path.relative_to(tmp_path / name)): path for path in folder.rglob("*") if path.is_file()}
        content = {}
        for file, path in files.items():
            if path.name == "results.json":
                content[file] = list(_without_time(json.loads(path.read_text())["runs"]).values())
            elif path.suffix in (".json", ".tsv"):
                content[file] = path.read_text()
            elif path.suffix == ".safetensors":
                content[file] = {key: value.double().sum().item() for key, value in load_file(path).items()}
            elif path.suffix == ".npz":
                content[file] = path.stat().st_size
        said = [line for line in said.splitlines() if "seconds" not in line]
        return said, content, list(seen)

    def once(command, arguments, name):
        key = (command, *arguments)
        if key not in KNOWN:
            KNOWN[key] = outcome(command, arguments, name)
        return KNOWN[key]

    yield once
    AcceleratorState._reset_state(True)


def _without_time(value):
    if isinstance(value, dict):
        return {key: _without_time(inner) for key, inner in value.items() if "seconds" not in key}
    return value


def options_of(command):
    top = command_line.main.parser()
    (commands,) = (action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    actions = [action for action in commands.choices[command]._actions if action.dest not in SHARED]
    return {action.option_strings[0] if action.option_strings else action.dest for action in actions}


@pytest.mark.parametrize("command", BASES)
def test_every_option_has_a_row(command):
    assert options_of(command) == set(ROWS[command])


@pytest.mark.parametrize(("command", "name"), CASES, ids=lambda words: words)
def test_an_option_acts(outcome, command, name):
    row = ROWS[command][name]
    before = merged(BASES[command], row.base, without=[row.without] if row.base else [])
    after = merged(BASES[command], row.base, row.live, without=[row.without])
    assert outcome(command, after, "after") != outcome(command, before, "before")


@pytest.mark.parametrize(("command", "name", "other"), IDLE, ids=lambda words: words)
def test_an_idle_option_is_refused(outcome, tmp_path, command, name, other):
    row = ROWS[command][name]
    # The command's own arguments must not be idle too.
    own = {"--passes", "--teachers"} if other == LABELLED else {"--passes"} if command != "synthesize" else set()
    arguments = merged(" ".join(merged(BASES[command], without=own)), other, row.live)
    with pytest.raises(InputError) as error:
        outcome(command, arguments, "idle")
    shown = row.live.split()[0]
    assert str(error.value).startswith(shown) and "\n" not in str(error.value)
    assert not any((tmp_path / "idle").iterdir())
