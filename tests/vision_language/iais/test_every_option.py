"""Every option of every command: it changes what comes out, or how it is made, and is refused where it would not."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from matplotlib.figure import Figure

from fairseq_ext.training.checkpoint import Checkpoint
from fairseq_ext.training.errors import InputError
from tests.helpers import SHARED
from tests.vision_language.iais.regions import write_regions
from tests.vision_language.iais.test_train import save_encoder
from vision_language.iais import __main__ as command_line
from vision_language.iais import pair_plots, plot, train
from vision_language.iais.__main__ import main
from vision_language.iais.data import read_splits
from vision_language.iais.model import RegionRetriever

COMMANDS = {
    "train": "train --data data --out out --device cpu --hidden-size 8 --num-heads 2 --intermediate-size 8"
    " --num-layers 1 --num-steps 3 --warmup-steps 1 --validate-every 2 --valid-images 3 --batch-size 3"
    " --negative-size 4 --hard-negatives 2 --lr 0.05 --iais-schedule const",
    "evaluate": "evaluate --data data --model out/seed1/model --device cpu",
    "search": "search --data data --model out/seed1/model --query dog --device cpu",
    "plot": "plot --data data --model out/seed1/model --device cpu",
    "convert": "convert --captions a.token --instances instances.json --valid 1 --test 1 --out new",
    "synthesize": "synthesize --images 30 --out new",
}
SIZES = "--hidden-size 128 --num-heads 4 --intermediate-size 512"
"""Takes back the sizes of an encoder from scratch."""
ENCODER = f"{SIZES} --encoder encoder --max-text-length 20"
FEATURES = f"{ENCODER} --data features"


class Row(NamedTuple):
    """A value that differs from the default, what must be given with it to have an effect, and where it has none."""

    value: str = ""
    given: str = ""
    idle: tuple[str, ...] = ()


OF_MODELS = {"data": Row("other"), "model": Row("out/seed2/model"), "device": Row("cpu")}
SPLIT = Row("valid", "", ("--data data/test.jsonl",))
ROWS = {
    "train": {
        "out": Row("elsewhere"),
        "seed": Row("2"),
        "runs": Row("2"),
        "device": Row("cpu"),
        "data": Row("other"),
        "encoder": Row("encoder", f"{SIZES} --max-text-length 20"),
        "uniter": Row("uniter.pt", FEATURES),
        "num_layers": Row("2"),
        "hidden_size": Row("16", "", (ENCODER,)),
        "num_heads": Row("1", "", (ENCODER,)),
        "intermediate_size": Row("16", "", (ENCODER,)),
        "vocab_size": Row("45", "", (ENCODER,)),
        "dropout": Row("0.5"),
        "max_text_length": Row("4"),
        "max_regions": Row("3"),
        "iais": Row("distributed"),
        "iais_weight": Row("2", "", ("--iais none --iais-schedule exp",)),
        "iais_schedule": Row("linear", "", ("--iais none", "--iais-weight 0")),
        "iais_scale": Row("sum", "--iais-schedule exp", ("--iais none", "--iais-weight 0", "--batch-size 1")),
        "pseudo_norm": Row("renorm", "", ("--iais distributed", "--iais-schedule exp --iais-weight 0")),
        "negatives": Row("in-batch"),
        "negative_size": Row("5", "", ("--negatives in-batch",)),
        "hard_negatives": Row("3"),
        "random_steps": Row("2", "", ("--hard-negatives 4", "--negatives in-batch --negative-size 399")),
        "margin": Row("0.5"),
        "batch_size": Row("4"),
        "anchors_per_forward": Row("1"),
        "eval_batch_size": Row("3"),
        "num_steps": Row("4"),
        "warmup_steps": Row("2"),
        "lr": Row("0.1"),
        "weight_decay": Row("0.5"),
        "clip_norm": Row("0.1"),
        "mixed_precision": Row("bf16"),
        "attn_implementation": Row("eager"),
        "gradient_checkpointing": Row(),
        "validate_every": Row("1"),
        "valid_images": Row("2"),
        "test_images": Row("2"),
        "save_every": Row("1"),
        "select": Row("tr_r1"),
    },
    "evaluate": OF_MODELS | {"split": SPLIT, "limit": Row("2"), "released": Row(), "eval_batch_size": Row("3")},
    "search": OF_MODELS | {"split": SPLIT, "query": Row("cat"), "top": Row("2"), "eval_batch_size": Row("3")},
    "plot": OF_MODELS
    | {
        "split": SPLIT,
        "image": Row("20"),
        "query": Row("a cat"),
        "before": Row("out/seed2/initial"),
        "mirror": Row("distributed"),
        "out": Row("elsewhere"),
    },
    "convert": {
        "out": Row("elsewhere"),
        "captions": Row("b.token"),
        "instances": Row("other_instances.json"),
        "features": Row("npz"),
        "split_file": Row("karpathy.json"),
        "valid": Row("2", "", ("--split-file karpathy.json",)),
        "test": Row("2", "", ("--split-file karpathy.json",)),
        "seed": Row("1", "", ("--split-file karpathy.json",)),
    },
    "synthesize": {"out": Row("elsewhere"), "images": Row("40"), "captions_per_image": Row("1"), "seed": Row("1")},
}


def options_of(command: str) -> dict[str, argparse.Action]:
    (commands,) = (action for action in main.parser()._actions if isinstance(action, argparse._SubParsersAction))
    actions = commands.choices[command]._actions
    return {action.dest: action for action in actions if action.dest not in SHARED}  # not of IAIS alone


def test_every_option_of_every_command_has_a_row():
    # compare is one for all programs: tests/training/test_compare.py
    assert {command: set(options_of(command)) for command in main.commands if command != "compare"} == {
        command: set(rows) for command, rows in ROWS.items()
    }


def write_sources(folder: Path) -> None:
    """Captions and boxes of six images in published forms."""
    for name, word in (("a", "dog"), ("b", "cat")):
        (folder / f"{name}.token").write_text("".join(f"{n}.jpg#0\ta {word}\n" for n in range(1, 7)))
    for name, side in (("instances", 5), ("other_instances", 6)):
        content = {
            "images": [{"id": n, "width": 9, "height": 9} for n in range(1, 7)],
            "annotations": [{"image_id": n, "bbox": [0, 0, side, 5], "category_id": 1} for n in range(1, 7)],
            "categories": [{"id": 1, "name": "thing"}],
        }
        (folder / f"{name}.json").write_text(json.dumps(content))
    splits = ["train", "train", "train", "train", "val", "test"]
    images = [{"cocoid": n, "split": split, "sentences": []} for n, split in enumerate(splits, 1)]
    (folder / "karpathy.json").write_text(json.dumps({"images": images}))
    (folder / "npz").mkdir()
    for n in range(1, 7):
        np.savez(folder / "npz" / f"{n}.npz", features=np.ones((1, 2), np.float32), norm_bb=[[0, 0, 0.5, 0.5]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data sets, an encoder, a UNITER checkpoint, sources to convert, and models of two seeds."""
    folder = tmp_path_factory.mktemp("every_option")
    sizes = {"train": 10, "valid": 7, "test": 7}
    for seed, name in enumerate(("data", "other")):
        write_regions(folder / name, sizes, seed=seed)
    write_regions(folder / "features", sizes, feature_size=6)
    train = read_splits(folder / "features")["train"]
    save_encoder(folder / "encoder", train, seed=0)
    torch.manual_seed(0)
    weights = RegionRetriever.from_encoder(folder / "encoder", region_feature_size=6).state_dict()
    torch.save({name: value + 0.01 for name, value in weights.items()}, folder / "uniter.pt")
    write_sources(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        AcceleratorState._reset_state(reset_partial_state=True)
        main([*COMMANDS["train"].split(), "--runs", "2", "--num-steps", "4"])
    return folder


@pytest.fixture
def events(monkeypatch):
    """What is done, where an option changes only how: batches, layers, checkpoints, devices."""
    seen = []

    def spied(owner, name, note):
        original = getattr(owner, name)

        def call(*args, **kwargs):
            seen.append(note(*args, **kwargs))
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    def settings(model):
        return model.config._attn_implementation, model.is_gradient_checkpointing

    spied(RegionRetriever, "forward", lambda model, **batch: ("pairs", len(batch["input_ids"]), *settings(model)))
    spied(
        RegionRetriever,
        "score_pairs",
        lambda _, texts, regions: ("scores", len(texts["input_ids"]), len(regions["region_mask"])),
    )
    spied(Checkpoint, "save", lambda checkpoint: ("save", checkpoint.progress["step"]))
    spied(command_line, "make_accelerator", lambda *args, **options: ("device", args, options))
    spied(train, "make_accelerator", lambda *args: ("device", args))
    spied(command_line, "torch_device", lambda name: ("device", name))
    spied(pair_plots, "torch_device", lambda name: ("device", name))
    monkeypatch.setattr(plot, "saved_figure", sketch)
    return seen


@contextlib.contextmanager
def sketch(path, size, title=""):
    """What a figure shows, in place of a figure, which takes seconds."""
    figure = Figure(figsize=size)
    yield figure
    content = [title]
    for axes in figure.axes:
        content += [image.get_array().tolist() for image in axes.images]
        content += [line.get_xydata().tolist() for line in axes.lines]
        content += [label.get_text() for label in axes.get_yticklabels()]
    Path(path).write_text(json.dumps(content))


@pytest.fixture(scope="module")
def outcomes():
    """Outcomes that several tests compare with."""
    return {}


@pytest.fixture
def outcome(folder, outcomes, events, tmp_path, monkeypatch, capsys):
    """What a command writes, prints and does; of a training not what it prints, which repeats its options."""

    def run(*words):
        if words in outcomes:
            return outcomes[words]
        here = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(folder, here, ignore=shutil.ignore_patterns("out") if words[0] == "train" else None)
        monkeypatch.chdir(here)
        AcceleratorState._reset_state(reset_partial_state=True)
        capsys.readouterr()
        events.clear()
        main(words)
        files = {}
        for path in sorted(here.rglob("*")):
            name = str(path.relative_to(here))
            if path.is_file() and not (folder / name).exists() and "tensorboard" not in name:
                files[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            if path.name == "results.json" and words[0] == "train":
                files[name] = json.loads(path.read_text())["runs"]
                for seed in files[name].values():  # what is recorded of an option must not count as its effect
                    del seed["seconds_per_step"], seed["environment"]
        printed = "" if words[0] == "train" else capsys.readouterr().out
        return outcomes.setdefault(words, (files, printed.replace(str(here), ""), list(events)))

    return run


def given(command: str, option: str, value: str) -> list[str]:
    return [options_of(command)[option].option_strings[0], *([value] if value else [])]


@pytest.mark.parametrize(("command", "option"), [(command, option) for command in ROWS for option in ROWS[command]])
def test_an_option_changes_what_comes_out(outcome, command, option):
    row = ROWS[command][option]
    base = [*COMMANDS[command].split(), *row.given.split()]
    words = given(command, option, row.value)
    if option == "device":
        base = " ".join(base).replace("--device cpu", "").split()
    changed = [*base, *words]
    if option == "features":  # in the place of the instances
        changed = [word for word in changed if word not in ("--instances", "instances.json")]
    if option == "negatives":
        changed += ["--negative-size", "399"]
    if option == "split_file":
        changed = " ".join(changed).replace("--valid 1 --test 1 ", "").split()
    assert str(options_of(command)[option].default) != row.value
    assert outcome(*changed) != outcome(*base)


@pytest.mark.parametrize("command", COMMANDS)
def test_equal_options_give_an_equal_outcome(outcome, outcomes, command):
    """Else the test above could not fail."""
    first = outcome(*COMMANDS[command].split())
    outcomes.clear()
    assert outcome(*COMMANDS[command].split()) == first


@pytest.mark.parametrize(
    ("command", "option", "place"),
    [(command, option, place) for command in ROWS for option, row in ROWS[command].items() for place in row.idle],
)
def test_an_option_without_effect_is_refused_by_name(folder, tmp_path, monkeypatch, command, option, place):
    monkeypatch.chdir(folder)
    AcceleratorState._reset_state(reset_partial_state=True)
    words, base = given(command, option, ROWS[command][option].value), COMMANDS[command]
    if command == "train":  # the sweep's own values of other options are not the ones that are asked about
        base = base.replace("--iais-schedule const", "")
    if "--split-file" in place:
        base = base.replace("--valid 1 --test 1", "")
    if place.startswith(SIZES):
        words, base = [*SIZES.split(), *words], base
    out = ["--out", str(tmp_path / "out")] if command in ("train", "convert") else []
    with pytest.raises(
        InputError, match=f"^{words[0] if len(words) < 3 else words[-2]} .*: has no effect (with|where) "
    ):
        main([*base.split(), *out, *place.split(), *words])
    assert not (tmp_path / "out").exists()
