"""``--retain-dropout``, for Monte-Carlo dropout: every block answers to fairseq's names and to its own."""

from __future__ import annotations

import argparse
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.models.transformer import TransformerModel
from fairseq.modules import FairseqDropout
from torch import nn

from fairseq_ext.models.config import TransformerExtConfig, option_values
from tests.models.tiny import PAD, language_model, task, translation_config, translation_model

SOURCE = torch.tensor([[5, 6, 7, 8, 2], [PAD, PAD, 5, 6, 2]])
PREVIOUS = torch.tensor([[2, 5, 6, 7], [2, 9, 8, PAD]])
DROPOUTS = {"dropout": 0.5, "attention_dropout": 0.5, "activation_dropout": 0.5}
BLOCKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "top2": {"attention_topk": 2},
    "cross": {"attention_topk": 2, "attention_topk_in": "cross"},
    "entmax15": {"attention_normalizer": "entmax15"},
    "adanorm": {"norm": "adanorm"},
    "km": {"init": "km"},
    "muse": {"block": "muse", "muse_input_dropout": 0.5},
    "muse-simple": {"block": "muse-simple", "muse_input_dropout": 0.5},
    "gca": {"cross_view": "gca"},
    "separate": {"cross_view": "gca", "cross_view_fusion": "separate"},
    "sequential": {"cross_view": "gca", "cross_view_fusion": "sequential"},
    "muse-gca-top2": {"block": "muse", "cross_view": "gca", "attention_topk": 2},
}
STOCK_NAMES = [
    "TransformerEncoder",
    "TransformerDecoder",
    "TransformerEncoderLayerBase",
    "TransformerDecoderLayerBase",
    "MultiheadAttention",
]


def prepare(model: nn.Module, modules: Any, retain: bool = True) -> nn.Module:
    """As ``fairseq-generate --retain-dropout --retain-dropout-modules``."""
    generation = {"beam": 2, "no_beamable_mm": False, "print_alignment": None}
    generation |= {"retain_dropout": retain, "retain_dropout_modules": modules}
    model.prepare_for_inference_(SimpleNamespace(generation=SimpleNamespace(**generation)))
    return model


def retained(model: nn.Module) -> set[str]:
    """Where dropout is applied."""
    modules = model.named_modules()
    return {path for path, module in modules if isinstance(module, FairseqDropout) and module.apply_during_inference}


@torch.no_grad()
def is_random(model: nn.Module) -> bool:
    first, second = (model(SOURCE, None, PREVIOUS)[0] for _ in range(2))
    return not torch.equal(first, second)


def stock() -> nn.Module:
    values = option_values(translation_config(**DROPOUTS), TransformerExtConfig)
    return TransformerModel.build_model(argparse.Namespace(**values), task())


@pytest.mark.parametrize("name", STOCK_NAMES)
@pytest.mark.parametrize("as_text", [False, True], ids=["list", "text"])
@pytest.mark.parametrize("block", BLOCKS)
def test_fairseqs_names(block: str, as_text: bool, name: str) -> None:
    """fairseq's command line gives a text, and then a name need only be part of it."""
    names: Any = name if as_text else [name]
    model = prepare(translation_model(**DROPOUTS, **BLOCKS[block]), names)
    paths = {path for path, module in model.named_modules() if isinstance(module, FairseqDropout)}
    expected = retained(prepare(stock(), names))
    assert expected and expected & paths == retained(model) & {path for path, _ in stock().named_modules()}
    assert is_random(model)


@pytest.mark.parametrize("block", BLOCKS)
def test_their_own_names(block: str) -> None:
    names: dict[str, set[str]] = {}
    for path, module in translation_model(**DROPOUTS, **BLOCKS[block]).named_modules():
        if isinstance(module, FairseqDropout):
            names.setdefault(module.module_name, set()).add(path)
    for name, paths in names.items():
        assert paths <= retained(prepare(translation_model(**DROPOUTS, **BLOCKS[block]), [name]))


@pytest.mark.parametrize("block", BLOCKS)
def test_all_and_none(block: str) -> None:
    options = {**DROPOUTS, **BLOCKS[block]}
    everywhere = prepare(translation_model(**options), None)
    dropouts = {path for path, module in everywhere.named_modules() if isinstance(module, FairseqDropout)}
    assert retained(everywhere) == dropouts
    assert not [path for path, module in everywhere.named_modules() if type(module) is nn.Dropout]
    assert is_random(everywhere)
    assert not is_random(prepare(translation_model(**options), None, retain=False))


@pytest.mark.parametrize("only", ["muse_weight_dropout", "muse_input_dropout"])
def test_the_dropouts_of_muse(only: str) -> None:
    options = {"muse_weight_dropout": 0.0, only: 0.5}
    assert is_random(prepare(translation_model(block="muse", **options), None))
    by_name = {"muse_weight_dropout": "DynamicConv", "muse_input_dropout": "MuseEncoderLayer"}[only]
    assert is_random(prepare(translation_model(block="muse", **options), [by_name]))


def test_a_language_model() -> None:
    for block in ("transformer", "muse"):
        model = prepare(language_model(**DROPOUTS, block=block), ["TransformerDecoderLayerBase"])
        with torch.no_grad():
            assert not torch.equal(model(PREVIOUS)[0], model(PREVIOUS)[0])


def test_modules_without_dropout(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        prepare(translation_model(**DROPOUTS), ["TransformerEncoder"], retain=False)
    assert "--retain-dropout-modules ['TransformerEncoder']: has no effect without --retain-dropout" in caplog.text


@pytest.mark.parametrize(
    "names", [["TransformerEncoder", "EncoderLayr"], "TransformerEncoder,EncoderLayr", "EncoderLayr"]
)
def test_a_name_that_nothing_has(names: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        prepare(translation_model(**DROPOUTS), names)
    assert "--retain-dropout-modules EncoderLayr: no such module, there are MultiheadAttention, " in caplog.text
