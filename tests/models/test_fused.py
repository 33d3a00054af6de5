"""Fused MUSE layers give what the originals give."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor, nn

from fairseq_ext.models.fused import fuse_for_inference
from fairseq_ext.models.fused_muse import FusedMuseDecoderLayer, FusedMuseEncoderLayer
from fairseq_ext.models.muse_layers import MuseDecoderLayer, MuseEncoderLayer
from tests.models.tiny import EOS, PAD, decode_by_step, dictionary, language_model, translation_model

SOURCE = torch.tensor([[PAD, PAD, 4, 5, 6, EOS], [7, 8, 9, 10, 11, EOS], [PAD, 4, 9, 4, 13, EOS]])
TARGET = torch.tensor([[EOS, 4, 5, 6, PAD], [EOS, 7, 8, 9, 10], [EOS, 5, 5, PAD, PAD]])

BLOCKS = {
    "simple": {"block": "muse-simple"},
    "muse": {"block": "muse", "muse_kernels": "3,7"},
    "concatenated": {"block": "muse", "muse_kernels": "1,5", "muse_no_gate": True, "muse_no_padding_mask": True},
}
EXTRAS = {
    "plain": {},
    "topk": {"attention_topk": 2},
    "entmax": {"attention_normalizer": "entmax15"},
    "window": {
        "attention_topk": 3,
        "attention_topk_select": "window",
        "attention_topk_in": "encoder-self,decoder-self",
    },
    "heads": {"attention_topk": 2, "attention_topk_select": "heads"},
    "gca": {"cross_view": "gca"},
    "adanorm": {"norm": "adanorm"},
    "everything": {"cross_view": "gca", "norm": "adanorm", "attention_topk": 2},
}
COMBINATIONS = list(product(BLOCKS, EXTRAS, ("post", "pre")))


pytestmark = pytest.mark.usefixtures("exact_softmax")


def options(block: str, extra: str, norm: str) -> dict[str, Any]:
    pre = norm == "pre"
    return {**BLOCKS[block], **EXTRAS[extra], "encoder_normalize_before": pre, "decoder_normalize_before": pre}


def pair(dtype: torch.dtype = torch.float64, **chosen: Any) -> tuple[nn.Module, nn.Module]:
    """A model with every parameter random, and its fused twin."""
    models = [translation_model(layers=2, **chosen).to(dtype).eval() for _ in range(2)]
    torch.manual_seed(1)
    for parameter in models[0].parameters():
        nn.init.normal_(parameter, std=0.4)
    models[1].load_state_dict(models[0].state_dict())
    return models[0], fuse_for_inference(models[1])


def lengths(tokens: Tensor) -> Tensor:
    return tokens.ne(PAD).sum(1)


def close(result: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    limit = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(result, expected, atol=limit * max(1.0, expected.abs().max().item()), rtol=limit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("block", "extra", "norm"), COMBINATIONS)
def test_whole_sequences(block: str, extra: str, norm: str, dtype: torch.dtype) -> None:
    original, fused = pair(dtype, **options(block, extra, norm))
    kinds = {type(layer) for side in (fused.encoder, fused.decoder) for layer in side.layers}
    assert kinds == {FusedMuseEncoderLayer, FusedMuseDecoderLayer}
    with torch.no_grad():
        expected, result = (model.encoder(SOURCE, lengths(SOURCE)) for model in (original, fused))
        close(result["encoder_out"][0], expected["encoder_out"][0], dtype)
        logits, extra_out = original.decoder(TARGET, encoder_out=expected)
        fused_logits, fused_extra = fused.decoder(TARGET, encoder_out=expected)
    close(fused_logits, logits, dtype)
    torch.testing.assert_close(fused_extra["attn"][0].double(), extra_out["attn"][0].double(), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("block", "extra", "norm"), COMBINATIONS)
def test_step_by_step_with_reordering(block: str, extra: str, norm: str) -> None:
    """Two sentences with two hypotheses each; the hypotheses change places, then a sentence is finished."""
    torch.manual_seed(0)
    models = pair(**options(block, extra, norm))
    source = SOURCE[:2].repeat_interleave(2, dim=0)
    tokens = torch.randint(4, 16, (4, 9))
    orders = {3: torch.tensor([1, 0, 3, 3]), 6: torch.tensor([3, 2])}
    results = []
    with torch.no_grad():
        for model in models:
            encoded = model.encoder(source, lengths(source))
            state: dict[str, Any] = {}
            outputs, rows = [], tokens
            for step in range(tokens.size(1)):
                if step in orders:
                    model.decoder.reorder_incremental_state_scripting(state, orders[step])
                    encoded = model.encoder.reorder_encoder_out(encoded, orders[step])
                    rows = rows[orders[step]]
                logits, extras = model.decoder(rows[:, : step + 1], encoder_out=encoded, incremental_state=state)
                outputs += [logits.flatten(), extras["attn"][0].double().flatten()]
            results.append(outputs)
    for index, (expected, result) in enumerate(zip(*results, strict=True)):
        if index % 2 == 0:
            close(result, expected, torch.float64)
        else:
            torch.testing.assert_close(result, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("extra", ["plain", "topk"])
def test_steps_equal_the_whole_sequence(block: str, extra: str) -> None:
    _, fused = pair(**options(block, extra, "post"))
    tokens = torch.randint(4, 16, (3, 12))
    with torch.no_grad():
        encoded = fused.encoder(SOURCE, lengths(SOURCE))
        whole = fused.decoder(tokens, encoder_out=encoded)[0]
        close(decode_by_step(fused, tokens, encoded), whole, torch.float64)


@pytest.mark.parametrize("block", BLOCKS)
def test_padding_in_the_prefix(block: str) -> None:
    """fairseq caches the padding of a prefix with the keys."""
    models = pair(**BLOCKS[block])
    prefix = torch.tensor([[EOS, 4, PAD, 5, 6], [EOS, 7, 8, 9, 10], [EOS, PAD, PAD, 5, 6]])
    with torch.no_grad():
        encoded = models[0].encoder(SOURCE, lengths(SOURCE))
        expected, result = (decode_by_step(model, prefix, encoded) for model in models)
    close(result, expected, torch.float64)


@pytest.mark.parametrize("asked", [{"need_attn": True}, {"need_head_weights": True}, {}])
@pytest.mark.parametrize("need_attn", [True, False])
@pytest.mark.parametrize("extra", ["plain", "gca"])
def test_attention_maps(extra: str, need_attn: bool, asked: dict[str, bool]) -> None:
    models = pair(**options("muse", extra, "post"))
    layers = [model.decoder.layers[0] for model in models]
    views = 2 if extra == "gca" else 1
    x, memory = torch.randn(4, 2, 8, dtype=torch.float64), torch.randn(5, 2, 8 * views, dtype=torch.float64)
    maps = []
    for layer in layers:
        layer.make_generation_fast_(need_attn=need_attn, name="decoder.layers.0")
        with torch.no_grad():
            maps.append(layer(x, memory, **asked)[1])
    assert (maps[1] is None) == (maps[0] is None) == (not need_attn and not asked)
    if maps[0] is not None:
        assert maps[1].shape == maps[0].shape == ((2, 2, 4, 5) if "need_head_weights" in asked else (2, 4, 5))
        torch.testing.assert_close(maps[1].double(), maps[0].double(), atol=1e-6, rtol=1e-5)


def prepare(model: nn.Module, **generation: Any) -> nn.Module:
    settings = {"beam": 5, "no_beamable_mm": False, "print_alignment": None, "retain_dropout": False}
    model.prepare_for_inference_(SimpleNamespace(generation=SimpleNamespace(**{**settings, **generation})))
    return model


def generate(model: nn.Module, **arguments: Any) -> list[list[dict[str, Tensor]]]:
    generator = SequenceGenerator([model], dictionary(), beam_size=5, max_len_a=0, max_len_b=9)
    sample = {"net_input": {"src_tokens": SOURCE, "src_lengths": lengths(SOURCE)}}
    with torch.no_grad():
        return generator.generate([model], sample, **arguments)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("extra", ["plain", "topk", "gca"])
@pytest.mark.parametrize("block", BLOCKS)
def test_beam_search(block: str, extra: str, prefix: bool) -> None:
    """Through ``prepare_for_inference_`` in training mode, which is how ``fairseq-generate`` finds a loaded model."""
    chosen = options(block, extra, "post")
    models = [translation_model(**chosen, muse_no_fuse=no_fuse).double() for no_fuse in (True, False)]
    torch.manual_seed(3)
    for parameter in models[0].parameters():
        nn.init.normal_(parameter, std=0.5)
    models[1].load_state_dict(models[0].state_dict())
    arguments = {"prefix_tokens": torch.tensor([[4, 5], [6, 7], [8, 9]])} if prefix else {}
    expected, result = (generate(prepare(model), **arguments) for model in models)
    assert {type(layer) for layer in models[0].decoder.layers} == {MuseDecoderLayer}
    assert {type(layer) for layer in models[0].encoder.layers} == {MuseEncoderLayer}
    assert {type(layer) for layer in models[1].decoder.layers} == {FusedMuseDecoderLayer}
    assert {type(layer) for layer in models[1].encoder.layers} == {FusedMuseEncoderLayer}
    assert not any(layer.need_attn for layer in models[1].decoder.layers)
    for left, right in zip(expected, result, strict=True):
        assert [hypothesis["tokens"].tolist() for hypothesis in left] == [
            hypothesis["tokens"].tolist() for hypothesis in right
        ]
        for one, other in zip(left, right, strict=True):
            torch.testing.assert_close(one["score"], other["score"], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(one["attention"], other["attention"], atol=1e-5, rtol=1e-5)


def test_language_model() -> None:
    model = language_model(block="muse", muse_kernels="2,5").double().eval()
    tokens = torch.randint(4, 16, (2, 9))
    with torch.no_grad():
        expected = model.decoder(tokens)[0]
        prepare(model)
        assert {type(layer) for layer in model.decoder.layers} == {FusedMuseDecoderLayer}
        close(model.decoder(tokens)[0], expected, torch.float64)
        close(decode_by_step(model, tokens), expected, torch.float64)


def test_retained_dropout_keeps_the_layers() -> None:
    model = prepare(translation_model(**BLOCKS["muse"]), retain_dropout=True, retain_dropout_modules=None)
    assert {type(layer) for layer in model.decoder.layers} == {MuseDecoderLayer}


def test_the_original_is_left_alone() -> None:
    layer = translation_model(**BLOCKS["muse"]).decoder.layers[0]
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    fused = FusedMuseDecoderLayer(layer)
    assert layer.training and all(parameter.requires_grad for parameter in layer.parameters())
    assert fused.in_proj.weight.data_ptr() != layer.self_attn.q_proj.weight.data_ptr()
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])
    with pytest.raises(RuntimeError, match="fused"):
        fused.train()


def test_two_matrices_per_layer() -> None:
    _, fused = pair(**BLOCKS["simple"])
    layer = fused.decoder.layers[0]
    assert layer.in_proj.weight.shape == (4 * 8 + 12, 8)
    assert layer.out_proj.weight.shape == (8, 2 * 8 + 12)
    assert sum(isinstance(module, nn.Linear) for module in layer.modules()) == 3  # and the encoder's keys and values
