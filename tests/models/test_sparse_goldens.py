"""Top-k attention: fairseq's attention, layers and a whole model against golden values, forward and gradients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_ext.models.attention import SelectiveAttention
from fairseq_ext.models.config import nested_config
from fairseq_ext.models.layers import DecoderLayer, EncoderLayer
from fairseq_ext.modules.topk import effective_k
from tests.helpers import golden_names, load_golden
from tests.models.tiny import PAD, decode_by_step, translation_config, translation_model

TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}
NORMALIZERS = {0: "softmax", 1: "sparsemax", 2: "entmax15", 3: "entmax-bisect"}
ATTENTIONS = {"es": "encoder-self", "ds": "decoder-self", "dc": "cross"}


def selection(golden: dict[str, np.ndarray]) -> dict[str, Any]:
    """A negative ``div`` is a fixed number of keys, a positive one a ratio, zero keeps all."""
    div = int(golden["meta.div"])
    return {"topk": max(-div, 0), "topk_ratio": float(max(div, 0)), "topk_min": int(golden["meta.lb"])}


def released_selection(golden: dict[str, np.ndarray], num_keys: int) -> dict[str, Any]:
    """The number of keys of :func:`selection`: the release counts masked keys too, where we do not."""
    chosen = selection(golden)
    return {"topk": effective_k(num_keys, chosen["topk"], chosen["topk_ratio"], chosen["topk_min"])}


def set_weights(module: nn.Module, golden: dict[str, np.ndarray]) -> nn.Module:
    weights = {key.removeprefix("w."): torch.from_numpy(value) for key, value in golden.items() if key[:2] == "w."}
    module.load_state_dict(weights)
    return module.to(next(iter(weights.values())).dtype)


def check_gradients(module: nn.Module, golden: dict[str, np.ndarray]) -> None:
    for name, parameter in module.named_parameters():
        expected = torch.from_numpy(golden[f"gw.{name}"])
        torch.testing.assert_close(parameter.grad, expected, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")


def inputs(golden: dict[str, np.ndarray], *names: str) -> list[Tensor | None]:
    return [torch.from_numpy(golden[name].copy()) if name in golden else None for name in names]


# fairseq's own unfused attention, on which selection builds, does not count the key that add_bias_kv appends: refused,
# and the file is of the function alone (tests/modules)
ATTENTION_FILES = [name for name in golden_names("sparse", "mha_") if "biaskv" not in name]


@pytest.mark.parametrize("name", ATTENTION_FILES)
def test_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = load_golden("sparse", name)
    query, key, padding, mask, grad_out = inputs(golden, "query", "key", "key_padding_mask", "attn_mask", "grad_out")
    is_self, normalizer = str(golden["meta.mode"]) == "self", int(golden["meta.entmax"])
    active = str(golden["meta.attn_type"]) in str(golden["meta.use_att"]).split(",")
    options = released_selection(golden, len(query if key is None else key)) if active else {}
    if normalizer:  # a normalizer that selects keys itself; top-k stays off in all of these files
        options = {"normalizer": NORMALIZERS[normalizer]}
        assert not active or not int(golden["meta.div"])
    attention = SelectiveAttention(
        query.size(-1),
        int(golden["meta.num_heads"]),
        kdim=None if key is None else key.size(-1),
        vdim=None if key is None else key.size(-1),
        self_attention=is_self,
        encoder_decoder_attention=not is_self,
        dropout=float(golden["meta.dropout"]),
        **options,
    )
    set_weights(attention, golden)
    if "dropout_keep" in golden:
        keep = torch.from_numpy(golden["dropout_keep"]).transpose(0, 1).flatten(0, 1)
        monkeypatch.setattr(
            attention.dropout_module, "forward", lambda x: x * keep / (1 - float(golden["meta.dropout"]))
        )
    query.requires_grad_()
    if key is None:
        key = query
    else:
        key.requires_grad_()
    out, weights = attention(query, key, key, padding, attn_mask=mask, need_head_weights=True, static_kv=not is_self)
    torch.testing.assert_close(out, torch.from_numpy(golden["out"]), **TOLERANCE)
    torch.testing.assert_close(weights, torch.from_numpy(golden["attn"]).to(weights), **TOLERANCE)
    assert torch.equal(weights.ne(0).sum(-1), torch.from_numpy(golden["nnz"]))

    (out * grad_out).sum().backward()
    torch.testing.assert_close(query.grad, torch.from_numpy(golden["grad_query"]), **TOLERANCE)
    if not is_self:
        torch.testing.assert_close(key.grad, torch.from_numpy(golden["grad_key"]), **TOLERANCE)
    check_gradients(attention, golden)


@pytest.mark.parametrize("name", golden_names("sparse", "incr_"))
def test_one_position_at_a_time(name: str) -> None:
    golden = load_golden("sparse", name)
    query = torch.from_numpy(golden["query"])
    length, _, width = query.shape
    causal = torch.full((length, length), float("-inf")).triu(1)

    def build(**chosen: Any) -> nn.Module:
        attention = SelectiveAttention(width, int(golden["meta.num_heads"]), self_attention=True, **chosen).eval()
        return set_weights(attention, golden)

    released, attention = build(**released_selection(golden, length)), build(**selection(golden))
    with torch.no_grad():
        out, weights = released(query, query, query, attn_mask=causal, need_head_weights=True)
        torch.testing.assert_close(out, torch.from_numpy(golden["out_full"]), **TOLERANCE)
        torch.testing.assert_close(weights, torch.from_numpy(golden["attn_full"]), **TOLERANCE)
        # the release decodes with a ratio as it never trained; here both are what it decodes
        expected = torch.from_numpy(golden["out_incremental"])
        state: dict[str, Any] = {}
        steps = [attention(row, row, row, incremental_state=state)[0] for row in query.split(1)]
        torch.testing.assert_close(torch.cat(steps), expected, **TOLERANCE)
        torch.testing.assert_close(attention(query, query, query, attn_mask=causal)[0], expected, **TOLERANCE)


def layer_config(golden: dict[str, np.ndarray], ffn: int) -> SimpleNamespace:
    chosen = selection(golden)
    pre_norm = bool(golden["meta.normalize_before"])
    return nested_config(
        translation_config(
            ffn=ffn,
            attention_topk=chosen["topk"],
            attention_topk_ratio=chosen["topk_ratio"],
            attention_topk_min=chosen["topk_min"],
            attention_topk_in=",".join(ATTENTIONS[part] for part in str(golden["meta.use_att"]).split(",")),
            encoder_normalize_before=pre_norm,
            decoder_normalize_before=pre_norm,
        )
    )


@pytest.mark.parametrize("name", golden_names("sparse", "enclayer_"))
def test_encoder_layers(name: str) -> None:
    golden = load_golden("sparse", name)
    layer = EncoderLayer(layer_config(golden, ffn=16), 1)
    set_weights(layer, golden)
    x, padding, grad_out = inputs(golden, "x", "encoder_padding_mask", "grad_out")
    out = layer(x.requires_grad_(), padding)
    torch.testing.assert_close(out, torch.from_numpy(golden["out"]), **TOLERANCE)
    (out * grad_out).sum().backward()
    torch.testing.assert_close(x.grad, torch.from_numpy(golden["grad_x"]), **TOLERANCE)
    check_gradients(layer, golden)


@pytest.mark.parametrize("name", golden_names("sparse", "declayer_"))
def test_decoder_layers(name: str) -> None:
    golden = load_golden("sparse", name)
    layer = DecoderLayer(layer_config(golden, ffn=12), 1)
    set_weights(layer, golden)
    x, memory, padding, grad_out = inputs(golden, "x", "encoder_out", "encoder_padding_mask", "grad_out")
    causal = torch.full((x.size(0), x.size(0)), float("-inf")).triu(1)
    out, weights, _ = layer(
        x.requires_grad_(), memory.requires_grad_(), padding, self_attn_mask=causal, need_head_weights=True
    )
    torch.testing.assert_close(out, torch.from_numpy(golden["out"]), **TOLERANCE)
    torch.testing.assert_close(weights, torch.from_numpy(golden["attn"]), **TOLERANCE)
    (out * grad_out).sum().backward()
    torch.testing.assert_close(x.grad, torch.from_numpy(golden["grad_x"]), **TOLERANCE)
    torch.testing.assert_close(memory.grad, torch.from_numpy(golden["grad_encoder_out"]), **TOLERANCE)
    check_gradients(layer, golden)


def test_model() -> None:
    golden = load_golden("sparse", "model_tiny_k2")
    model = translation_model(symbols=16, layers=2, ffn=16, attention_topk=2, share_decoder_input_output_embed=True)
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter.data.copy_(torch.from_numpy(golden[f"w.{name}"]))
    source, previous, target = inputs(golden, "src_tokens", "prev_output_tokens", "target")
    logits, _ = model(source, None, previous)
    loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=PAD, reduction="sum")
    torch.testing.assert_close(logits, torch.from_numpy(golden["logits"]), **TOLERANCE)
    torch.testing.assert_close(loss.item(), golden["loss"].item(), **TOLERANCE)
    loss.backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, torch.from_numpy(golden[f"gw.{name}"]), **TOLERANCE)

    model.eval()
    with torch.no_grad():
        stepwise = decode_by_step(model, previous, model.encoder(source, None))
    real = target.ne(PAD)
    torch.testing.assert_close(stepwise[real], torch.from_numpy(golden["logits"])[real], **TOLERANCE)
