"""With every option off the suite's models are fairseq's: same names, same initial values, same bits."""

from __future__ import annotations

import argparse
import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer_lm import TransformerLanguageModel
from torch import Tensor, nn

from fairseq_ext.models.config import TransformerExtConfig, option_values
from tests.models.tiny import (
    PAD,
    decode_by_step,
    language_model,
    language_model_config,
    task,
    translation_config,
    translation_model,
)

SOURCE = torch.tensor([[5, 6, 7, 8, 2], [PAD, PAD, 5, 6, 2]])
PREVIOUS = torch.tensor([[2, 5, 6, 7], [2, 9, 8, PAD]])
TARGET = torch.tensor([[5, 6, 7, 2], [9, 8, 2, PAD]])


def train_step(model: nn.Module, *inputs: Tensor | None) -> tuple[Tensor, dict[str, Tensor | None]]:
    """A loss with dropout and its gradients."""
    model.train()
    torch.manual_seed(5)
    logits, _ = model(*inputs)
    loss = F.cross_entropy(logits.flatten(0, 1), TARGET.flatten(), ignore_index=PAD)
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_bits(ours: dict[str, Any], stock: dict[str, Any]) -> None:
    assert list(ours) == list(stock)
    different = [name for name, value in ours.items() if not torch.equal(value, stock[name])]
    assert not different, different


VARIANTS = {
    "post-norm": {},
    "pre-norm": {"encoder_normalize_before": True, "decoder_normalize_before": True},
    "shared": {"share_all_embeddings": True, "layernorm_embedding": True, "decoder_learned_pos": True},
}


def translation_pair(**options: Any) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(3)
    ours = translation_model(width=16, ffn=32, **options)
    torch.manual_seed(3)
    values = option_values(translation_config(16, 32, **options), TransformerExtConfig)
    return ours, TransformerModel.build_model(argparse.Namespace(arch="transformer", **values), task())


@pytest.mark.parametrize("variant", VARIANTS)
def test_translation_model_is_fairseqs(variant: str) -> None:
    dropouts = {"dropout": 0.3, "attention_dropout": 0.2, "activation_dropout": 0.1}
    ours, stock = translation_pair(**VARIANTS[variant], **dropouts)
    assert_same_bits(ours.state_dict(), stock.state_dict())
    loss, gradients = train_step(ours, SOURCE, None, PREVIOUS)
    stock_loss, stock_gradients = train_step(stock, SOURCE, None, PREVIOUS)
    assert torch.equal(loss, stock_loss)
    assert_same_bits(gradients, stock_gradients)

    ours.eval(), stock.eval()
    with torch.no_grad():
        assert torch.equal(ours(SOURCE, None, PREVIOUS)[0], stock(SOURCE, None, PREVIOUS)[0])
        stepwise = [decode_by_step(model, PREVIOUS, model.encoder(SOURCE, None)) for model in (ours, stock)]
    assert torch.equal(*stepwise)


def test_dropout_is_active() -> None:
    """Guards the comparison above: without dropout, equal losses would say nothing about the random numbers."""
    ours, _ = translation_pair(dropout=0.3)
    ours.train()
    torch.manual_seed(5)
    first = ours(SOURCE, None, PREVIOUS)[0]
    assert not torch.equal(first, ours(SOURCE, None, PREVIOUS)[0])


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"decoder_normalize_before": True},
        {"share_decoder_input_output_embed": True, "no_scale_embedding": True},
        {"scale_fc": True, "scale_attn": True, "scale_heads": True, "scale_resids": True},
    ],
    ids=["post-norm", "pre-norm", "shared", "normformer"],
)
def test_language_model_is_fairseqs(variant: dict[str, Any]) -> None:
    options = {"dropout": 0.3, "attention_dropout": 0.2, **variant}
    torch.manual_seed(3)
    ours = language_model(width=16, **options)
    torch.manual_seed(3)
    stock = TransformerLanguageModel.build_model(language_model_config(16, **options), task())
    assert_same_bits(ours.state_dict(), stock.state_dict())
    loss, gradients = train_step(ours, PREVIOUS)
    stock_loss, stock_gradients = train_step(stock, PREVIOUS)
    assert torch.equal(loss, stock_loss)
    assert_same_bits(gradients, stock_gradients)
    ours.eval(), stock.eval()
    with torch.no_grad():
        assert torch.equal(ours(PREVIOUS)[0], stock(PREVIOUS)[0])


def test_state_dicts_are_exchangeable() -> None:
    """Also the options without parameters: top-k, and views read with shared projections."""
    _, stock = translation_pair()
    torch.manual_seed(4)
    for options in ({}, {"attention_topk": 2}, {"attention_normalizer": "entmax15"}, {"cross_view": "gca"}):
        other = translation_model(width=16, ffn=32, **options)
        other.load_state_dict(copy.deepcopy(stock.state_dict()))
        assert_same_bits(other.state_dict(), stock.state_dict())
        stock.load_state_dict(other.state_dict())


@pytest.mark.parametrize("strategy", ["gca", "gpa", "fga", "fma", "ama", "ama-static"])
def test_one_encoder_layer_leaves_nothing_to_choose(strategy: str) -> None:
    """Of a single layer every strategy reads that layer, so the outputs are the stock model's."""
    _, stock = translation_pair(encoder_layers=1, decoder_layers=2)
    other = translation_model(width=16, ffn=32, encoder_layers=1, decoder_layers=2, cross_view=strategy)
    missing, unexpected = other.load_state_dict(stock.state_dict(), strict=False)
    assert not unexpected and all(".fusion." in name for name in missing)
    stock.eval(), other.eval()
    with torch.no_grad():
        expected, actual = (model(SOURCE, None, PREVIOUS)[0] for model in (stock, other))
    torch.testing.assert_close(actual, expected)
