"""Which errors of a command are worth one line, and which stay the traceback of a faulty program."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import re
from pathlib import Path

import pytest
import torch
from fairseq import options, utils
from fairseq.data import data_utils
from fairseq.dataclass.configs import FairseqConfig
from fairseq.trainer import Trainer
from omegaconf import OmegaConf
from torch.multiprocessing import ProcessRaisedException

import fairseq_ext
from fairseq_ext.compat.refusals import refusal
from fairseq_ext.compat.stock_checks import (
    DICTIONARIES,
    LEAST,
    NEEDS,
    OBJECTS,
    PROBABILITIES,
    READ_BY,
    UNREAD,
    check_stock_values,
)
from fairseq_ext.training.errors import OptionError

CFG = OmegaConf.create({"task": {"data": "folder"}, "dataset": {"gen_subset": "tset"}, "optimization": {"lr": [0.1]}})


def caught(action):
    try:
        action()
    except BaseException as error:
        return error
    raise AssertionError("no error")


@pytest.mark.parametrize(
    ("action", "line"),
    [
        (lambda: open("folder/x.txt"), "data folder: folder/x.txt: No such file or directory"),
        (lambda: utils.get_activation_fn("nope"), "--activation-fn nope not supported"),
        (lambda: utils.import_user_module(argparse.Namespace(user_dir="tset")), "--gen-subset tset: .*tset"),
        (lambda: torch.nn.Linear(1, 2).load_state_dict({}), r"--path \(trained with other .*\): Error\(s\) in loading"),
        (lambda: OmegaConf.create({"lr": "???"}).lr, "--lr: Missing mandatory value: lr"),
    ],
)
def test_what_is_meant_for_users_is_one_line(action, line):
    refused = refusal(caught(action), CFG)
    assert isinstance(refused, OptionError) and refused.code == 2
    assert re.match(line, str(refused)), refused


def test_the_refusal_of_a_process_that_was_started():
    """What ``torch.multiprocessing.spawn`` makes of it, for a training on several GPUs."""
    error = "-- Process 1 terminated with the following error:\nTraceback (most recent call last):\n ...\n{}: --norm: x"
    refused = refusal(ProcessRaisedException(error.format("fairseq_ext.training.errors.OptionError"), 1, 2))
    assert str(refused) == "--norm: x" and refused.code == 2
    assert refusal(ProcessRaisedException(error.format("ValueError"), 1, 2)) is None


class Layer(torch.nn.Module):
    def forward(self):
        utils.get_activation_fn("nope")


class Training(Trainer):
    def __init__(self):
        pass

    def train_step(self, samples):
        utils.get_activation_fn("nope")


@pytest.mark.parametrize(
    "action",
    [
        lambda: data_utils.collate_tokens([], pad_idx=1),  # a ValueError, which Python raises
        lambda: data_utils.collate_tokens(None, pad_idx=1),  # a TypeError
        lambda: data_utils.load_indexed_dataset(3),
        lambda: torch.zeros(2) + torch.zeros(3),
        lambda: torch.nn.Linear(1, 2)(torch.zeros(3)),
        lambda: [].pop(),
        lambda: {}["missing"],
        lambda: int("x"),  # not raised by fairseq
        Layer(),
        lambda: Training().train_step(None),
    ],
)
def test_a_faulty_program_keeps_its_traceback(action):
    error = caught(action)
    assert isinstance(error, Exception) and refusal(error, CFG) is None


def config(place=None, value=None):
    groups = {"dataset": {"batch_size": 4}, "common_eval": {"path": "x.pt"}, "generation": {}, "model": {}, "task": {}}
    cfg = OmegaConf.create({**groups, "optimizer": {}, "checkpoint": {}, "optimization": {}, "lr_scheduler": {}})
    if place:
        OmegaConf.update(cfg, place, value)
    return cfg


@pytest.mark.parametrize(
    ("place", "good", "bad"),
    [
        *((place, least, least - 1) for place, least in LEAST.items()),
        *((place, 1.0, 1.1) for place in PROBABILITIES),
        *((place, "{'a': 1}", "[1]") for place in DICTIONARIES),
        *((place, '{"a": 1}', "{'a': 1}") for place in OBJECTS),
        ("optimizer.adam_betas", "(0.9, 0.98)", "(0.9, x)"),
        ("task.eval_bleu_detok", "space", "mooses"),
        ("optimization.update_freq", [1, 2], [1, 0]),
    ],
)
def test_the_limits_of_stock_options(place, good, bad):
    for command in ("train", "generate"):
        check_stock_values(config(place, good), command)
        with pytest.raises(OptionError, match=f"^--{place.split('.')[1].replace('_', '-')}[ :]"):
            check_stock_values(config(place, bad), command)


def test_a_training_asks_for_a_batch_size():
    for batch_size, max_tokens in ((4, None), (None, 40)):
        check_stock_values(config("dataset", {"batch_size": batch_size, "max_tokens": max_tokens}), "train")
    cfg = config()
    cfg.dataset.batch_size = None
    check_stock_values(cfg, "generate")
    for command in ("train", "validate"):
        with pytest.raises(OptionError, match=r"^--batch-size or --max-tokens"):
            check_stock_values(cfg, command)


@pytest.mark.parametrize(("gpu", "refused"), [(False, "--distributed-init-method"), (True, "--distributed-world-size")])
def test_processes_that_would_train_alone_are_refused(monkeypatch, gpu, refused):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    alone = config("distributed_training", {"distributed_world_size": 1, "distributed_init_method": None})
    address = config("distributed_training", {"distributed_world_size": 2, "distributed_init_method": "tcp://x:1"})
    for processes in ("1", "2"):
        monkeypatch.setenv("WORLD_SIZE", processes)
        check_stock_values(address, "train")
        check_stock_values(alone, "generate")
        if processes == "1":
            check_stock_values(alone, "train")
            continue
        with pytest.raises(OptionError, match=f"^{refused}: .*2 processes"):
            check_stock_values(alone, "train")


@pytest.mark.parametrize(("gpu", "cpu"), [(False, False), (False, True), (True, True), (True, False)])
def test_a_number_format_of_gpus_is_refused_on_a_cpu(monkeypatch, gpu, cpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    for name, lean in itertools.product(("fp16", "amp", "bf16"), (False, True)):
        cfg = config("common", {name: True, "cpu": cpu, "memory_efficient_fp16": lean})
        if (gpu and not cpu) or name == "bf16" or (name == "fp16" and lean):
            check_stock_values(cfg, "train")
            continue
        with pytest.raises(OptionError, match=f"^--{name}: trains on a GPU, and {'--cpu' if cpu else 'there'}"):
            check_stock_values(cfg, "train")


def test_processes_that_share_a_set_do_not_pass_for_one(caplog, monkeypatch):
    cfg = config("distributed_training.distributed_world_size", 2)
    check_stock_values(cfg, "generate")
    for gpu in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        cfg.common = {"cpu": gpu}
        with pytest.raises(
            OptionError, match=r"^--distributed-world-size: fairseq-validate adds up what 2 processes find"
        ):
            check_stock_values(cfg, "validate")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_stock_values(config("distributed_training.distributed_world_size", 2), "validate")
    with pytest.raises(OptionError, match=r"^--distributed-world-size: fairseq-eval-lm gives no loss of all 2"):
        check_stock_values(cfg, "eval_lm")
    cfg.common_eval.results_path = "results"
    with pytest.raises(OptionError, match=r"^--results-path: the 2 processes"):
        check_stock_values(cfg, "generate")
    cfg.distributed_training.distributed_world_size = 1
    check_stock_values(cfg, "generate")
    check_stock_values(config("dataset", {"num_shards": 1, "shard_id": 0}), "eval_lm")
    assert not caplog.messages
    check_stock_values(config("dataset", {"num_shards": 2, "shard_id": 0}), "eval_lm")
    assert caplog.messages == ["--num-shards: the loss is that of share 1 of 2, not of the set"]


def test_what_is_for_training_does_nothing_in_generation(caplog):
    fairseq_ext.register()
    ours = {"task.eval_captions": True, "criterion": {"_name": "label_smoothed_encouraging_loss"}}
    for command in ("generate", "interactive", "eval_lm"):
        for place, value in ours.items():
            option = f"--{place.rpartition('.')[2].replace('_', '-')}"
            with pytest.raises(OptionError, match=f"^{option}.*: has no effect in fairseq-{command.replace('_', '-')}"):
                check_stock_values(config(place, value), command)
        check_stock_values(config("task.eval_bleu", True), command)
        assert "--eval-bleu: has no effect" in caplog.records[-1].message
    for place, value in ours.items():
        for command in ("train", "validate"):
            check_stock_values(config(place, value), command)
    check_stock_values(config("criterion", {"_name": "cross_entropy"}), "generate")
    assert len(caplog.records) == 3


@pytest.mark.parametrize("place", UNREAD)
def test_what_a_program_does_not_read_is_refused(place):
    group, name = place.split(".")
    usual = getattr(getattr(FairseqConfig(), group), name)
    value = not usual if isinstance(usual, bool) else 7 if isinstance(usual, int) else "x"
    commands, way = UNREAD[place]
    for command in READ_BY:
        check_stock_values(config(group, {name: None if str(usual).startswith("$") else usual}), command)
        if command not in commands:
            check_stock_values(config(place, value), command)
            continue
        line = f"--{name.replace('_', '-')}: has no effect in fairseq-{command.replace('_', '-')}; {way}"
        with pytest.raises(OptionError, match=f"^{re.escape(line)}$"):
            check_stock_values(config(place, value), command)


def test_what_is_refused_as_unread_is_taken_and_read_nowhere():
    """The day this fails for an option, its line can go."""
    parsers = (
        options.get_generation_parser,
        options.get_interactive_generation_parser,
        options.get_eval_lm_parser,
        options.get_validation_parser,
    )
    for command, parser in zip(READ_BY, parsers, strict=True):
        taken = {action.dest for action in parser()._actions}
        source = Path(importlib.util.find_spec(f"fairseq_cli.{command}").origin).read_text()
        for place, (commands, _) in UNREAD.items():
            name = place.partition(".")[2]
            if command in commands:
                assert name in taken, (command, place)
                named = (command, name) == ("generate", "sacrebleu")  # by the condition of a warning
                assert named or not re.search(rf"\.{name}\b", source), (command, place)


def test_the_size_of_a_batch_is_that_of_validation_unless_it_has_its_own():
    given = {"batch_size": 4, "max_tokens": None, "batch_size_valid": 4, "max_tokens_valid": None}
    check_stock_values(config("dataset", given), "validate")
    with pytest.raises(OptionError, match=r"^--batch-size-valid: has no effect in fairseq-validate; give --batch-size"):
        check_stock_values(config("dataset", given | {"batch_size_valid": 8}), "validate")


SEARCH = {"sampling": True, "diverse_beam_groups": 2, "lm_path": "lm.pt", "retain_dropout": True}
OF_SEARCH = {
    "sampling_topk": 3,
    "sampling_topp": 0.9,
    "diverse_beam_strength": 0.1,
    "lm_weight": 0.1,
    "retain_dropout_modules": ["all"],
}


@pytest.mark.parametrize("option", NEEDS)
def test_an_option_of_a_search_needs_its_search(option):
    check_stock_values(
        config("generation", {option: OF_SEARCH[option], NEEDS[option]: SEARCH[NEEDS[option]]}), "generate"
    )
    flag, other = (f"--{name.replace('_', '-')}" for name in (option, NEEDS[option]))
    with pytest.raises(OptionError, match=f"^{flag}: has no effect without {other}$"):
        check_stock_values(config("generation", {option: OF_SEARCH[option]}), "generate")


@pytest.mark.parametrize(
    ("generation", "line"),
    [
        ({"beam": 2, "nbest": 3}, "--nbest must be at most --beam 2"),
        ({"sampling": True, "sampling_topp": 3.0}, "--sampling-topp must be more than 0 and at most 1, got 3.0"),
        ({"sampling": True, "sampling_topk": 0}, "--sampling-topk must be more than 0, got 0"),
        ({"sampling": True, "sampling_topk": 3, "sampling_topp": 0.5}, "--sampling-topk: has no effect with"),
        ({"temperature": 0.0}, "--temperature must be more than 0, got 0.0"),
    ],
)
def test_what_a_search_would_leave_out_in_silence(generation, line):
    with pytest.raises(OptionError, match=f"^{re.escape(line)}"):
        check_stock_values(config("generation", generation), "generate")


def test_every_limit_is_of_an_option_of_fairseq():
    groups = OmegaConf.structured(FairseqConfig())
    places = [place.split(".") for place in (*LEAST, *DICTIONARIES, *(f"generation.{name}" for name in NEEDS))]
    assert not [(group, name) for group, name in places if groups.get(group) is not None and name not in groups[group]]
