"""Every option of every command: that it changes what comes out, and that it is refused where it would not."""

from __future__ import annotations

import json
import random
import shutil

import pytest

from fairseq_ext.training.errors import InputError, OptionError
from graph.label_graph.__main__ import main
from tests.helpers import Row, options_of, words_of
from tests.vision_language.muka.texts import write_encoder

COMMANDS = {
    "train": "train --data data --out out --embedding learned --embedding-dim 4 --hidden-size 4 --attention-size 4"
    " --epochs 2 --start-eval 1 --lr 0.1 --device cpu",
    "evaluate": "evaluate --model out/seed1/model.pt --data data",
    "predict": "predict --model out/seed1/model.pt new.txt",
    "plot": "plot --model out/seed1/model.pt",
    "synthesize": "synthesize --albums 50",
}


NOT_SOFT = ("--arm han", "--arm graph")
ON_WORDS = "--embedding word2vec --embedding-dim 100"
ON_STATES = f"--encoder encoder {ON_WORDS}"
ROWS = {
    "train": {
        "data": Row("other"),
        "out": Row("elsewhere"),
        "seed": Row("2"),
        "runs": Row("2"),
        "device": Row("cuda:99"),
        "pieces": Row("sentences"),
        "tokenizer": Row("jieba", "", (ON_STATES,)),
        "max_reviews": Row("1", "--pieces sentences", ("", "--pieces whole")),
        "max_words": Row("1"),
        "min_count": Row("8", "", (ON_STATES,)),
        "embedding": Row("word2vec-tuned", "", ("--encoder encoder --embedding-dim 100",)),
        "embedding_dim": Row("5", "", ("--encoder encoder --embedding word2vec",)),
        "transductive": Row("", "", (ON_STATES,)),
        "encoder": Row("encoder", ON_WORDS),
        "num_layers": Row("1", ON_STATES, ("",)),
        "encoder_pooling": Row("none", ON_STATES, ("",)),
        "encoder_precision": Row("bfloat16", ON_STATES, ("",)),
        "cache": Row("states", ON_STATES, ("",)),
        "arm": Row("han"),
        "graph_position": Row("probabilities", "", ("--arm han",)),
        "graph_noise": Row("0.1", "", ("--arm han",)),
        "temperature": Row("2", "", NOT_SOFT),
        "ratio1": Row("0.5", "", NOT_SOFT),
        "ratio2": Row("0.1", "", ("--arm han",)),
        "no_stop_gradient": Row("", "", NOT_SOFT),
        "no_soft_target_clip": Row("", "", (*NOT_SOFT, "--temperature 2")),
        "loss": Row("encouraging"),
        "log_end": Row("0.5", "--loss encouraging", ("", "--loss halted-focal")),
        "cell": Row("gru"),
        "hidden_size": Row("5", "", ("--cell none",)),
        "attention_size": Row("5"),
        "dropout": Row("0.5"),
        "word_dropout": Row("0.5"),
        "unmasked_attention": Row(),
        "epochs": Row("3"),
        "start_eval": Row("2", "", ("--epochs 1",)),
        "batch_size": Row("3"),
        "lr": Row("0.2"),
        "select": Row("one_error"),
        "threshold": Row("0.6"),
    },
    "evaluate": {
        "model": Row("out/seed2/model.pt", "--threshold 0.5"),
        "data": Row("other"),
        "split": Row("valid"),
        "threshold": Row("0.6"),
    },
    "predict": {"model": Row("out/seed2/model.pt"), "file": Row("data/test.tsv"), "threshold": Row("0.6")},
    "plot": {"model": Row("out/seed2/model.pt"), "pairs": Row("1"), "out": Row("elsewhere")},
    "synthesize": {
        "out": Row("elsewhere"),
        "albums": Row("51"),
        "reviews": Row("2"),
        "words": Row("2"),
        "own": Row("0.1"),
        "hidden_styles": Row("rock"),
        "seed": Row("1"),
    },
}


OPTIONS = options_of(main.parser())
del OPTIONS["compare"]  # one for all programs: tests/training/test_compare.py
PLACES = {"evaluate": {"encoder"}, "predict": {"encoder"}}
"""Options that say where the same thing lies: ``test_an_encoder_may_lie_elsewhere``."""


def test_every_option_of_every_command_has_a_row():
    assert {command: set(options) - PLACES.get(command, set()) for command, options in OPTIONS.items()} == {
        command: set(rows) for command, rows in ROWS.items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two data sets, texts, and models of two seeds."""
    folder = tmp_path_factory.mktemp("every_option")
    words = [*"soup waiter room bread cosy rude the and was".split(), "好吃的面", "服务员很好"]
    for seed, name in enumerate(("data", "other")):
        (folder / name).mkdir()
        chance = random.Random(seed)
        for split, count in (("train", 14), ("valid", 8), ("test", 9)):
            lines = [
                f"{'|'.join(chance.sample(['food', 'place', 'staff'], 1 + n % 2))}\t"
                f"{' '.join(chance.sample(words, 4))}. {split} {' '.join(chance.sample(words, 3))}"
                for n in range(count)
            ]
            (folder / name / f"{split}.tsv").write_text("\n".join(lines))
    (folder / "new.txt").write_text("soup\n")
    write_encoder(folder / "encoder", extra=tuple(words))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main([*COMMANDS["train"].split(), "--runs", "2"])
    return folder


@pytest.fixture(scope="module")
def outcomes():
    """Outcomes that several tests compare with."""
    return {}


@pytest.fixture
def outcome(folder, outcomes, tmp_path, monkeypatch, capsys):
    """What a command writes and prints; of a training not what it prints, which repeats its options."""

    def run(*words):
        if words in outcomes:
            return outcomes[words]
        here = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(folder, here, ignore=shutil.ignore_patterns("out") if words[0] == "train" else None)
        monkeypatch.chdir(here)
        capsys.readouterr()
        try:
            main(words)
        except OptionError as error:
            assert "cuda:99" in words, error
            return str(error)
        files = {str(path.relative_to(here)): json.loads(path.read_text()) for path in here.rglob("*.json")}
        for content in files.values():
            if "settings" in content:  # what is recorded of an option must not count as its effect
                del content["settings"], content["summary"]
                for seed in content["runs"].values():
                    del seed["seconds_per_epoch"], seed["environment"]
        files |= {str(path.parent.relative_to(here)): "states" for path in here.rglob("*.safetensors")}
        printed = "" if words[0] == "train" else capsys.readouterr().out
        return outcomes.setdefault(words, (files, printed.replace(str(here), "")))

    return run


@pytest.mark.parametrize(("command", "option"), [(command, option) for command in ROWS for option in ROWS[command]])
def test_an_option_changes_what_comes_out(outcome, command, option):
    row = ROWS[command][option]
    if row.value == "jieba":
        pytest.importorskip("jieba")
    base = [*COMMANDS[command].split(), *row.given.split()]
    changed = [row.value if word == "new.txt" else word for word in base]
    if option != "file":
        changed = base + words_of(OPTIONS[command][option], row.value)
    assert str(OPTIONS[command][option].default) != row.value
    assert outcome(*changed) != outcome(*base)


@pytest.mark.parametrize(
    ("option", "place"), [(option, place) for option, row in ROWS["train"].items() for place in row.idle]
)
def test_an_option_without_effect_is_refused_by_name(folder, tmp_path, monkeypatch, option, place):
    monkeypatch.chdir(folder)
    words = words_of(OPTIONS["train"][option], ROWS["train"][option].value)
    with pytest.raises(InputError, match=f"^{words[0]}.*: has no effect with|^{words[0]} .*: has no effect where"):
        main([*COMMANDS["train"].split(), "--out", str(tmp_path / "out"), *words, *place.split()])
    assert not (tmp_path / "out").exists()
