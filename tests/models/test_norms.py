"""``--norm`` reaches every norm of every layer class, before anything wraps a layer."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from fairseq_ext.models import transformer
from fairseq_ext.modules.normalization import AdaNorm
from tests.models.tiny import language_model, translation_model

BLOCKS = ("transformer", "muse", "muse-simple")
VIEWS: dict[str, dict[str, Any]] = {
    "none": {},
    "gca": {"cross_view": "gca"},
    "sequential": {"cross_view": "gca", "cross_view_fusion": "sequential"},
    "view-norms": {"cross_view": "gca", "cross_view_norm": "separate"},
}
PRE_NORM = {"encoder_normalize_before": True, "decoder_normalize_before": True}
CASES = [
    (block, views, pre_norm)
    for block, views, pre_norm in itertools.product(BLOCKS, VIEWS, (True, False))
    if not (block != "transformer" and views == "sequential") and not (views == "view-norms" and not pre_norm)
]


def paths(model: nn.Module, kind: type[nn.Module]) -> set[str]:
    return {path for path, module in model.named_modules() if type(module) is kind}


def assert_follows(stock: nn.Module, ours: nn.Module) -> None:
    """``ours`` has AdaNorm where ``stock`` has LayerNorms, but for those of the embeddings and of ``--scale-*``."""
    norms = paths(stock, nn.LayerNorm)
    kept = {path for path in norms if path.endswith(("layernorm_embedding", "attn_ln", "ffn_layernorm"))}
    assert norms > kept
    assert paths(ours, nn.LayerNorm) == kept
    assert paths(ours, AdaNorm) == norms - kept


@pytest.mark.parametrize(("block", "views", "pre_norm"), CASES)
def test_every_norm_follows_the_option(block: str, views: str, pre_norm: bool) -> None:
    options = {"block": block, "layernorm_embedding": True, **VIEWS[views], **(PRE_NORM if pre_norm else {})}
    assert_follows(translation_model(**options), translation_model(norm="adanorm", **options))


@pytest.mark.parametrize("pre_norm", [True, False])
def test_every_norm_of_a_language_model(pre_norm: bool) -> None:
    options = {"decoder_normalize_before": pre_norm, "scale_attn": True, "scale_fc": True, "layernorm_embedding": True}
    assert_follows(language_model(**options), language_model(norm="adanorm", **options))


@pytest.mark.parametrize("views", VIEWS)
def test_the_final_norms_alone(views: str) -> None:
    model = translation_model(norm="adanorm", norm_scope="final", **VIEWS[views], **PRE_NORM)
    after_stacks = {path for path in paths(model, AdaNorm) if ".layers." not in path}
    assert paths(model, AdaNorm) == after_stacks >= {"encoder.layer_norm", "decoder.layer_norm"}


def test_the_other_weights_are_those_without_the_option() -> None:
    """Norms draw no random numbers: a comparison of norms starts from the same model."""
    models = []
    for norm in ("layernorm", "adanorm"):
        torch.manual_seed(0)
        models.append(translation_model(norm=norm, **PRE_NORM).state_dict())
    stock, ours = models
    assert set(stock) - set(ours) == {name for name in stock if "layer_norm." in name}
    assert all(torch.equal(ours[name], stock[name]) for name in ours)


def test_a_layer_is_complete_when_it_is_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """FSDP takes the parameters of a layer when it wraps it; a norm that is put in later is not sharded with it."""
    wrapped: list[nn.Module] = []

    def wrap(layer: nn.Module, **arguments: Any) -> nn.Module:
        wrapped.append(layer)
        assert not paths(layer, nn.LayerNorm)
        return layer

    monkeypatch.setattr(transformer, "fsdp_wrap", wrap)
    translation_model(norm="layernorm-simple", layers=2)
    assert len(wrapped) == 4
