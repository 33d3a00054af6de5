"""What compiles with ``torch.jit.script`` computes the same; what does not is refused by name."""

from __future__ import annotations

import argparse
import io
from typing import Any

import pytest
import torch
from fairseq.models.transformer import TransformerDecoderBase, TransformerEncoderBase
from fairseq.modules import MultiheadAttention
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from fairseq.sequence_generator import EnsembleModel, SequenceGenerator
from torch import Tensor, nn

from fairseq_ext.models import TransformerExtModel
from fairseq_ext.models.attention import SelectiveAttention
from fairseq_ext.models.fused import fuse_for_inference
from fairseq_ext.training.errors import OptionError
from tests.models.tiny import EOS, PAD, dictionary, language_model, task, translation_model

SOURCE = torch.tensor([[5, 6, 7, 8, EOS], [PAD, PAD, 5, 6, EOS]])
PREVIOUS = torch.tensor([[EOS, 5, 6, 7], [EOS, 9, 8, PAD]])
SAMPLE = {"net_input": {"src_tokens": SOURCE, "src_lengths": SOURCE.ne(PAD).sum(1)}}
SCRIPTED: dict[str, dict[str, Any]] = {
    "plain": {},
    "pre-norm": {"encoder_normalize_before": True, "decoder_normalize_before": True},
    "no-positions": {"no_token_positional_embeddings": True},
    "top2": {"attention_topk": 2},
    "cross": {"attention_topk": 2, "attention_topk_in": "cross"},
    "ratio": {"attention_topk_ratio": 2.0, "attention_topk_min": 2, "attention_topk_in": "encoder-self,cross"},
    "km": {"init": "km"},
    "adanorm": {"norm": "adanorm"},
    "layernorm-simple": {"norm": "layernorm-simple", "norm_convention": "paper"},
    "detachnorm": {"norm": "detachnorm"},
    "adanorm-top2": {"norm": "adanorm", "attention_topk": 2},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "muse": ({"block": "muse"}, "--block muse"),
    "muse-simple": ({"block": "muse-simple"}, "--block muse"),
    "gca": ({"cross_view": "gca"}, "--cross-view"),
    "sequential": ({"cross_view": "gca", "cross_view_fusion": "sequential"}, "--cross-view"),
    **{
        select: (
            {"attention_topk": 2, "attention_topk_in": "encoder-self,decoder-self", "attention_topk_select": select},
            f"--attention-topk-select {select}",
        )
        for select in ("window", "heads")
    },
    "entmax15": ({"attention_normalizer": "entmax15"}, "--attention-normalizer entmax15"),
}


def build(options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    model = translation_model(layers=2, **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


def script(module: nn.Module) -> torch.jit.ScriptModule:
    """Compiled, saved and loaded."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module), file)
    file.seek(0)
    return torch.jit.load(file)


@pytest.mark.parametrize("name", SCRIPTED)
def test_a_compiled_model_computes_the_same(name: str) -> None:
    model = build(SCRIPTED[name])
    with torch.no_grad():
        expected, extra = model(SOURCE, None, PREVIOUS)
        compiled, compiled_extra = script(model)(SOURCE, None, PREVIOUS)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(compiled_extra["attn"][0], extra["attn"][0])


@pytest.mark.parametrize("name", ["plain", "top2", "cross", "adanorm"])
def test_a_compiled_beam_search_finds_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the caches of incremental decoding, reordered, and keys that the hypotheses of a sentence share."""
    # torch-geometric, once imported, puts a Python function in its place that TorchScript does not compile.
    monkeypatch.setattr(torch, "index_select", torch._C._VariableFunctions.index_select)
    generator = SequenceGenerator(
        [build(SCRIPTED[name])], dictionary(), beam_size=3, max_len_b=6, no_repeat_ngram_size=2
    )
    with torch.no_grad():
        expected, compiled = generator.forward(SAMPLE), torch.jit.script(generator)(SAMPLE)
    for left, right in zip(expected, compiled, strict=True):
        assert [hypothesis["tokens"].tolist() for hypothesis in left] == [
            hypothesis["tokens"].tolist() for hypothesis in right
        ]
        for one, other in zip(left, right, strict=True):
            torch.testing.assert_close(one["positional_scores"], other["positional_scores"])


def test_an_ensemble_compiles() -> None:
    torch.jit.script(EnsembleModel([build(SCRIPTED["plain"]), build(SCRIPTED["top2"])]))


def test_arguments_that_nobody_gave_have_defaults() -> None:
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    TransformerExtModel.add_args(parser)
    arguments = parser.parse_args(["--encoder-layers", "1", "--decoder-layers", "1", "--encoder-embed-dim", "16"])
    model = TransformerExtModel.build_model(arguments, task())
    assert model.decoder.embed_dim == 16
    torch.jit.script(model)


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_compile_says_so(name: str) -> None:
    options, message = REFUSED[name]
    model = build(options)
    for module in (model, model.decoder, EnsembleModel([model]), fuse_for_inference(build(options)).decoder):
        with pytest.raises(OptionError, match=message) as caught:
            torch.jit.script(module)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(REFUSED.keys() - {"entmax15", "window", "heads"}))
def test_onnx_is_refused(name: str) -> None:
    options, message = REFUSED[name]
    with pytest.raises(OptionError, match=f"{message}.*ONNX"):
        build(options).prepare_for_onnx_export_()


STOCK = (TransformerEncoderLayerBase, TransformerDecoderLayerBase, MultiheadAttention)


@pytest.mark.parametrize(
    ("options", "own"),
    [
        ({}, set()),
        ({"norm": "adanorm"}, {"encoder", "decoder"}),
        ({"attention_topk": 2, "attention_topk_in": "encoder-self"}, {"encoder", "encoder.layers.0.self_attn"}),
        ({"attention_topk": 2, "attention_topk_in": "cross"}, {"decoder", "decoder.layers.0.encoder_attn"}),
        ({"attention_topk": 2, "attention_topk_in": "decoder-self"}, {"decoder", "decoder.layers.0.self_attn"}),
        ({"block": "muse-simple"}, {"encoder", "decoder"}),
    ],
)
def test_what_no_option_touches_is_fairseqs_own(options: dict[str, Any], own: set[str]) -> None:
    model = translation_model(layers=1, **options)
    assert type(model.encoder) is TransformerEncoderBase or "encoder" in own
    assert type(model.decoder) is TransformerDecoderBase or "decoder" in own
    selective = {path for path, module in model.named_modules() if isinstance(module, SelectiveAttention)}
    assert selective == {path for path in own if path.endswith("attn")}
    for side in ("encoder", "decoder"):
        if side not in own:
            assert type(getattr(model, side).layers[0]) in STOCK


def test_a_plain_language_model_is_fairseqs_own() -> None:
    kinds = {type(module) for module in language_model().modules() if type(module).__module__.startswith("fairseq_ext")}
    assert {kind.__name__ for kind in kinds} == {"TransformerLanguageModelExt"}


def test_attention_maps_of_a_compiled_layer() -> None:
    layer = build(SCRIPTED["top2"]).decoder.layers[0]
    x, memory = torch.randn(4, 2, 8), torch.randn(5, 2, 8)
    compiled = torch.jit.script(layer)
    with torch.no_grad():
        for asked in ({}, {"need_attn": True}, {"need_head_weights": True}):
            maps: list[Tensor] = [module(x, memory, **asked)[1] for module in (layer, compiled)]
            torch.testing.assert_close(*maps)
