"""Refuses, by name and at the start, values of fairseq's options that it accepts but later fails on or ignores."""

from __future__ import annotations

import argparse
import ast
import json
import logging
import os
from typing import Any

import torch

from fairseq_ext.training.errors import OptionError, choose
from fairseq_ext.training.options import flag

__all__ = ["check_stock_values"]

logger = logging.getLogger(__name__)

LEAST = {
    "dataset.num_workers": 0,
    "dataset.batch_size": 1,
    "dataset.max_tokens": 1,
    "optimization.update_freq": 1,
    "lr_scheduler.warmup_updates": 0,
    "generation.beam": 1,
    "generation.nbest": 1,
    "generation.max_len_b": 0,
    "generation.prefix_size": 0,
    "model.encoder_layers": 0,
    "model.decoder_layers": 0,
}
PROBABILITIES = ("model.dropout", "model.attention_dropout", "model.activation_dropout")
DICTIONARIES = ("common_eval.model_overrides", "checkpoint.optimizer_overrides")
OBJECTS = ("task.eval_bleu_args", "task.eval_bleu_detok_args")
# Options of the search, each with the option without which fairseq does not read it.
NEEDS = {
    "sampling_topk": "sampling",
    "sampling_topp": "sampling",
    "diverse_beam_strength": "diverse_beam_groups",
    "lm_weight": "lm_path",
    "retain_dropout_modules": "retain_dropout",
}

READ_BY = ("generate", "interactive", "eval_lm", "validate")
_DECODING = READ_BY[:3]
_PRECISION = "--inference-dtype bfloat16 decodes in it on a CPU; --fp16 on a GPU, and in fairseq-validate"
_TRACKING = "it is of trainings; the output has every value"
_PROCESSES = "give each process --distributed-world-size N --distributed-rank I"
# Options that a program takes but never reads, although a user would expect them to act: each with the programs, of the
# four that load a model, which do not read it, and the way out. Options that only tune a training (--optimizer, ...)
# are not refused.
UNREAD = {
    "common.memory_efficient_bf16": (READ_BY, _PRECISION),  # which sets --bf16
    "common.bf16": (READ_BY, _PRECISION),
    "common.amp": (READ_BY, _PRECISION),
    "common.tpu": (READ_BY, "it runs on the GPU where there is one, else on the CPU"),
    "common.profile": (READ_BY, "it is of trainings"),
    "common.quantization_config_path": (READ_BY, "--inference-dtype int8 decodes with quantized weights on a CPU"),
    "common.log_file": (READ_BY, "redirect the output"),
    "common.tensorboard_logdir": (READ_BY, _TRACKING),
    "common.wandb_project": (READ_BY, _TRACKING),
    "common_eval.results_path": (("interactive", "eval_lm", "validate"), "redirect the output"),
    "common_eval.quiet": (("interactive", "eval_lm", "validate"), "redirect the output"),
    "generation.sacrebleu": (("generate", "interactive"), "fairseq-generate --scoring sacrebleu scores with it"),
    "generation.lm_path": (("interactive",), "use fairseq-generate"),
    "generation.prefix_size": (("interactive",), "use fairseq-generate, whose data have targets"),
    "dataset.num_shards": (("generate", "validate"), _PROCESSES),
    "dataset.shard_id": (("generate", "validate"), _PROCESSES),
    "dataset.valid_subset": (("generate", "eval_lm"), "--gen-subset says what is read"),
    "dataset.gen_subset": (("validate",), "--valid-subset says what is read"),
    "dataset.max_tokens_valid": (("validate",), "give --max-tokens"),
    "dataset.batch_size_valid": (("validate",), "give --batch-size"),
    "dataset.max_valid_steps": (("validate",), "it is of trainings; fairseq-validate reads the whole set"),
    "checkpoint.restore_file": (("generate", "interactive"), "--path names the model"),
}


def check_stock_values(cfg: Any, command: str) -> None:
    """Refuse values that are wrong as can be seen from the options of a command alone.

    Args:
        cfg: configuration of the command.
        command: the module of ``fairseq_cli``.

    Raises:
        OptionError: one line that names the option, what it got and what is allowed.
    """
    trains = command == "train"
    if command in ("generate", "interactive", "eval_lm", "validate") and _value(cfg, "common_eval.path") is None:
        raise OptionError("--path: must name a trained model")
    if command in ("train", "validate") and not (
        _value(cfg, "dataset.batch_size") or _value(cfg, "dataset.max_tokens")
    ):
        raise OptionError("--batch-size or --max-tokens: one of them must say how large a batch is")
    if trains:
        _check_formats(cfg)
        _check_processes(cfg)
    else:
        _check_shares(cfg, command)
    for place, least in LEAST.items():
        values = _value(cfg, place)
        for value in values if _is_list(values) else [values]:
            if isinstance(value, int | float) and value < least:
                raise OptionError(f"{_flag(place)} must be at least {least}, got {value}")
    for place in PROBABILITIES:
        value = _value(cfg, place)
        if isinstance(value, int | float) and not 0 <= value <= 1:
            raise OptionError(f"{_flag(place)} must be at least 0 and at most 1, got {value}")
    _check_texts(cfg)
    if not trains:
        _check_search(cfg)
    least, most = _value(cfg, "generation.min_len"), _value(cfg, "generation.max_len_b")
    if not trains and least is not None and not _value(cfg, "generation.max_len_a") and least > most:
        raise OptionError(f"--min-len must be at most --max-len-b {most}, got {least}")
    if command == "generate" and _value(cfg, "generation.constraints"):
        raise OptionError("--constraints: fairseq-generate reads none; fairseq-interactive reads them with a sentence")
    for name in ("print_alignment", "replace_unk"):
        # Constrained search gives fewer hypotheses than --beam, and the alignment is of --beam of them.
        if _value(cfg, "generation.constraints") and _value(cfg, f"generation.{name}") is not None:
            raise OptionError(f"--constraints: not with {_flag(f'.{name}')}, whose alignment fairseq has not for it")
    if not trains:
        _refuse_idle(cfg, command)
    window, tokens = _value(cfg, "eval_lm.context_window"), _value(cfg, "task.tokens_per_sample")
    if command == "eval_lm" and tokens is not None and not 0 <= window < tokens:
        raise OptionError(
            f"--context-window must be at least 0 and less than --tokens-per-sample {tokens}, got {window}"
        )


def _check_formats(cfg: Any) -> None:
    """Refuse number formats that the CPU lacks: fairseq fails with ``--fp16``, and ignores ``--amp``."""
    on_cpu = _value(cfg, "common.cpu")
    if torch.cuda.is_available() and not on_cpu:
        return
    lean = _value(cfg, "common.memory_efficient_fp16")  # which sets --fp16, and trains anywhere
    without = "--cpu says to use none" if on_cpu else "there is none"
    for name, anywhere in (("fp16", lean), ("amp", False)):
        if _value(cfg, f"common.{name}") and not anywhere:
            raise OptionError(
                f"--{name}: trains on a GPU, and {without}; without one train --memory-efficient-fp16 and --bf16"
            )


def _check_shares(cfg: Any, command: str) -> None:
    """Refuse options that go wrong where several processes each read a share of one data set."""
    processes = _value(cfg, "distributed_training.distributed_world_size") or 1
    if processes > 1 and command == "generate" and _value(cfg, "common_eval.results_path") is not None:
        raise OptionError(
            f"--results-path: the {processes} processes (--distributed-world-size) would all write the one file in it; "
            "redirect the output of each"
        )
    if processes > 1 and command == "eval_lm":
        raise OptionError(
            f"--distributed-world-size: fairseq-eval-lm gives no loss of all {processes} processes; start one, or give "
            "each its share with --num-shards and --shard-id"
        )
    if processes > 1 and command == "validate" and (_value(cfg, "common.cpu") or not torch.cuda.is_available()):
        raise OptionError(
            f"--distributed-world-size: fairseq-validate adds up what {processes} processes find on GPUs alone; start "
            "one"
        )
    shares = _value(cfg, "dataset.num_shards") or 1
    if shares > 1 and command == "eval_lm":
        share = (_value(cfg, "dataset.shard_id") or 0) + 1
        logger.warning("--num-shards: the loss is that of share %d of %d, not of the set", share, shares)


def _check_processes(cfg: Any) -> None:
    """Refuse processes that fairseq, which counts GPUs, would let train alone: all would write into one folder."""
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes == "1" or _value(cfg, "distributed_training.distributed_init_method") is not None:
        return
    if not torch.cuda.is_available():
        raise OptionError(
            f"--distributed-init-method: {processes} processes were started (WORLD_SIZE), which on a CPU would train "
            "alone, all into one folder; start each with it, its --distributed-rank and --distributed-no-spawn"
        )
    if _value(cfg, "distributed_training.distributed_world_size") == 1:
        raise OptionError(
            f"--distributed-world-size: 1, but {processes} processes were started (WORLD_SIZE), which would train "
            f"alone, all into one folder; give --distributed-world-size {processes}"
        )


def _check_search(cfg: Any) -> None:
    """Refuse options that fairseq's search silently ignores, and values beyond their limits."""
    from fairseq.dataclass.configs import GenerationConfig

    default = GenerationConfig()

    def given(name: str) -> bool:
        return _value(cfg, f"generation.{name}") not in (None, getattr(default, name))

    beam, nbest = _value(cfg, "generation.beam"), _value(cfg, "generation.nbest")
    if beam is not None and nbest is not None and nbest > beam:
        raise OptionError(f"--nbest must be at most --beam {beam}, which is how many there are, got {nbest}")
    for option, other in NEEDS.items():
        if given(option) and not given(other):
            raise OptionError(f"{_flag(f'.{option}')}: has no effect without {_flag(f'.{other}')}")
    if given("sampling_topk") and given("sampling_topp"):
        raise OptionError("--sampling-topk: has no effect with --sampling-topp; give one of them")
    for option, most in (("sampling_topk", float("inf")), ("sampling_topp", 1), ("temperature", float("inf"))):
        value = _value(cfg, f"generation.{option}")
        if given(option) and not 0 < value <= most:
            allowed = "more than 0" if most > 1 else f"more than 0 and at most {most}"
            raise OptionError(f"{_flag(f'.{option}')} must be {allowed}, got {value}")


def _refuse_idle(cfg: Any, command: str) -> None:
    """Refuse options that the command takes but does not read; ``--eval-bleu`` is only warned of."""
    from fairseq.criterions import CRITERION_REGISTRY
    from fairseq.dataclass.configs import FairseqConfig

    program = f"fairseq-{command.replace('_', '-')}"
    default = FairseqConfig()
    for place, (commands, way) in UNREAD.items():
        group, name = place.split(".")
        usual = getattr(getattr(default, group), name)
        if isinstance(usual, str) and usual.startswith("${"):  # the value of another option, ${group.name}
            usual = _value(cfg, usual[2:-1])
        if command in commands and _value(cfg, place) not in (None, usual):
            raise OptionError(f"{_flag(place)}: has no effect in {program}; {way}")
    if command not in _DECODING:
        return
    if _value(cfg, "task.eval_captions"):
        raise OptionError(f"--eval-captions: has no effect in {program}; `fairseq-ext captions score` scores captions")
    if _value(cfg, "task.eval_bleu"):
        logger.warning("--eval-bleu: has no effect in %s; --scoring sacrebleu scores what it generates", program)
    criterion = _value(cfg, "criterion._name")
    if getattr(CRITERION_REGISTRY.get(criterion), "__module__", "").startswith("fairseq_ext."):
        raise OptionError(f"--criterion {criterion}: has no effect in {program}, which computes no loss")


def _check_texts(cfg: Any) -> None:
    for place in DICTIONARIES:
        text = _value(cfg, place)
        if isinstance(text, str) and not isinstance(_literal(text), dict):
            raise OptionError(
                f"{_flag(place)} must be a dictionary as Python writes it, such as {{'lr': 0.1}}, got {text}"
            )
    for place in OBJECTS:
        text = _value(cfg, place)
        if text and not isinstance(_json(text), dict):
            raise OptionError(f'{_flag(place)} must be an object as JSON writes it, such as {{"beam": 4}}, got {text}')
    betas = _value(cfg, "optimizer.adam_betas")
    if betas is not None:
        pair = _literal(betas) if isinstance(betas, str) else betas
        if not (
            _is_list(pair) and len(pair) == 2 and all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in pair)
        ):
            raise OptionError(f"--adam-betas must be two numbers below 1, such as (0.9, 0.98), got {betas}")
    if (tokenizer := _value(cfg, "task.eval_bleu_detok")) is not None:
        from fairseq.registry import REGISTRIES

        choose("--eval-bleu-detok", tokenizer, REGISTRIES["tokenizer"]["registry"])


def _value(cfg: Any, place: str) -> Any:
    """The value at ``group.name``; ``None`` if the command, with the parts it has chosen, has no such option."""
    group, name = place.split(".")
    holder = cfg.get(group) if hasattr(cfg, "get") else getattr(cfg, group, None)
    return getattr(holder, name, None) if isinstance(holder, argparse.Namespace) else (holder or {}).get(name)


def _is_list(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str)


def _flag(place: str) -> str:
    return flag(place.split(".")[1])


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
