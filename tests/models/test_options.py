"""Every option that cannot work is refused before anything is built, with one line that names it."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest

from fairseq_ext.modules.cross_view import FUSIONS
from fairseq_ext.training.errors import OptionError
from tests.models.tiny import language_model, translation_model

REFUSED: list[tuple[dict[str, Any], str]] = [
    # unknown names; the nearest one is suggested
    ({"block": "mues"}, "--block: 'mues' is not one of transformer, muse, muse-simple; did you mean 'muse'?"),
    ({"norm": "adanrom"}, "--norm: 'adanrom' is not one of"),
    ({"norm": "adanrom"}, "did you mean 'adanorm'?"),
    (
        {"norm": "adanorm", "norm_scope": "finals"},
        "--norm-scope: 'finals' is not one of all, final; did you mean 'final'?",
    ),
    ({"norm_convention": "papers"}, "--norm-convention: 'papers' is not one of released, paper; did you mean 'paper'?"),
    ({"norm_detach": "means"}, "--norm-detach: 'means' is not one of both, mean, std; did you mean 'mean'?"),
    ({"cross_view": "ama_static"}, "did you mean 'ama-static'?"),
    ({"cross_view": "ama_static"}, "--cross-view: 'ama_static' is not one of"),
    ({"cross_view": "gca", "cross_view_fusion": "concatenate"}, "did you mean 'concat'?"),
    ({"cross_view_fusion": "concatenate"}, "--cross-view-fusion: 'concatenate' is not one of"),
    (
        {"cross_view_norm": "share"},
        "--cross-view-norm: 'share' is not one of shared, separate, none; did you mean 'shared'?",
    ),
    ({"attention_normalizer": "entmax1.5"}, "--attention-normalizer: 'entmax1.5' is not one of"),
    ({"attention_normalizer": "entmax1.5"}, "did you mean 'entmax15'?"),
    ({"attention_topk": 2, "attention_topk_in": "cross,encoder"}, "--attention-topk-in: 'encoder' is not one of"),
    ({"attention_topk": 2, "attention_topk_in": "cross,encoder"}, "did you mean 'encoder-self'?"),
    ({"attention_topk": 2, "attention_topk_in": ""}, "--attention-topk-in: '' is not one of"),
    ({"init": "xavier-uniform"}, "--init: 'xavier-uniform' is not one of fairseq"),
    # numbers out of range
    ({"attention_topk": -1}, "--attention-topk must be at least 0, got -1"),
    ({"attention_topk_ratio": 0.5}, "--attention-topk-ratio: must be 0 (off) or at least 1, got 0.5"),
    ({"attention_topk_ratio": -2.0}, "--attention-topk-ratio must be at least 0, got -2.0"),
    ({"attention_topk_ratio": math.inf}, "--attention-topk-ratio must be finite, got inf"),
    ({"attention_topk_min": -3, "attention_topk_ratio": 2.0}, "--attention-topk-min must be at least 0, got -3"),
    (
        {"block": "muse", "muse_weight_dropout": 1.0},
        "--muse-weight-dropout must be at least 0 and less than 1, got 1.0",
    ),
    ({"block": "muse", "muse_input_dropout": 2.0}, "--muse-input-dropout must be at least 0 and less than 1, got 2.0"),
    ({"norm": "adanorm", "adanorm_scale": math.nan}, "--adanorm-scale must be finite, got nan"),
    ({"norm": "adanorm", "adanorm_scale": 0.0}, "--adanorm-scale must be greater than 0, got 0.0"),
    ({"norm": "adanorm", "adanorm_k": -0.1}, "--adanorm-k must be at least 0, got -0.1"),
    ({"encoder_embed_dim": 9}, "--encoder-embed-dim: 9 is not divisible by --encoder-attention-heads 2"),
    ({"decoder_embed_dim": 9}, "--decoder-embed-dim: 9 is not divisible by --decoder-attention-heads 2"),
    ({"block": "muse", "muse_kernels": "3,4"}, "--muse-kernels: encoder kernels must be odd, got [4]"),
    ({"block": "muse", "muse_kernels": "3,x"}, "muse"),
    ({"block": "muse", "muse_kernels": "3/5"}, "muse"),
    # options that would do nothing
    ({"norm": "adanorm", "norm_scope": "final"}, "--norm-scope final: no adanorm would be built"),
    (
        {"norm": "adanorm", "norm_scope": "final", "decoder_normalize_before": True, "no_decoder_final_norm": True},
        "--norm-scope final: no adanorm would be built",
    ),
    ({"block": "muse", "muse_kernels": "3/5/7", "muse_no_gate": True}, "--muse-no-gate: has no effect with one kernel"),
    (
        {"no_cross_attention": True, "attention_topk": 2, "attention_topk_in": "cross"},
        "--attention-topk-in cross: this model has encoder-self, decoder-self alone",
    ),
    ({"cross_view": "gca", "cross_view_norm": "none"}, "--cross-view-norm none: has no effect without"),
    # options that exclude each other
    (
        {"attention_topk": 2, "attention_topk_ratio": 2.0},
        "--attention-topk 2 and --attention-topk-ratio 2.0 exclude each other",
    ),
    ({"attention_normalizer": "entmax15", "attention_topk": 2}, "--attention-normalizer entmax15"),
    ({"attention_normalizer": "sparsemax", "attention_topk_ratio": 2.0}, "--attention-normalizer sparsemax"),
    ({"block": "muse", "cross_self_attention": True}, "--block muse: no --cross-self-attention"),
    ({"cross_view": "gca", "no_cross_attention": True}, "--cross-view gca: needs cross-attention to an encoder"),
    ({"cross_view": "gca", "cross_self_attention": True}, "--cross-view gca: excludes --cross-self-attention"),
    ({"cross_view": "gca", "encoder_layerdrop": 0.1}, "--cross-view gca: excludes --encoder-layerdrop"),
    (
        {"cross_view": "gca", "encoder_embed_dim": 16},
        "--cross-view gca: needs --encoder-embed-dim 16 equal to --decoder-embed-dim 8",
    ),
    (
        {"cross_view": "gca", "cross_view_fusion": "sequential", "block": "muse"},
        "--cross-view-fusion sequential: has no meaning in the parallel branches of --block muse",
    ),
    ({"cross_view": "fma", "cross_view_fusion": "gate"}, "--cross-view-fusion: "),
    ({"cross_view": "ama", "cross_view_fusion": "sum"}, "--cross-view-fusion: "),
    ({"cross_view": "fma", "cross_view_no_global": True}, "has no global view to leave out"),
    *(
        ({"cross_view": "gca", "cross_view_no_global": True, "cross_view_fusion": fusion}, "needs two views")
        for fusion in FUSIONS
        if fusion != "mean"
    ),
    (
        {"cross_view": "gca", "encoder_layers": 0},
        "--cross-view gca: needs layers on both sides, got --encoder-layers 0 and --decoder-layers 3",
    ),
    (
        {"cross_view": "gpa", "decoder_layers": 0},
        "--cross-view gpa: needs layers on both sides, got --encoder-layers 3 and --decoder-layers 0",
    ),
    # what would not train
    *(
        (
            {"cross_view": strategy, "cross_view_no_global": True, "decoder_layers": layers},
            f"--cross-view-no-global: beside --cross-view {strategy}, --encoder-layers 3 and --decoder-layers {layers} "
            "no decoder layer reads above encoder layer 1, and what lies above would not train",
        )
        for strategy, layers in (("fga", 3), ("gca", 1), ("gpa", 1))
    ),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else None)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        translation_model(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_refusal_ends_a_command_and_is_a_value_error() -> None:
    with pytest.raises(SystemExit) as ended:
        translation_model(block="mues")
    assert isinstance(ended.value, ValueError)
    with pytest.raises(ValueError, match="--block"):
        translation_model(block="mues")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cross_view": "gca"}, "--cross-view gca: needs cross-attention"),
        ({"block": "muse-simple", "scale_fc": True}, "--block muse-simple: excludes --scale-fc"),
        ({"block": "muse", "scale_attn": True}, "--block muse: excludes --scale-attn"),
        ({"block": "muse", "scale_heads": True}, "--block muse: excludes --scale-heads"),
        ({"block": "muse", "scale_resids": True}, "--block muse: excludes --scale-resids"),
        ({"norm": "layer"}, "--norm: 'layer' is not one of"),
        ({"norm": "adanorm", "norm_scope": "final"}, "--norm-scope final: no adanorm would be built"),
        ({"attention_topk": 2, "attention_topk_in": "decoder-self,cross"}, "--attention-topk-in cross: this model has"),
        ({"block": "muse", "muse_no_padding_mask": True}, "--muse-no-padding-mask: has no effect in a language model"),
    ],
)
def test_language_model_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        language_model(**options)
    assert message in str(caught.value)


def test_a_hint_needs_a_resemblance() -> None:
    with pytest.raises(OptionError) as caught:
        translation_model(block="zzz")
    assert "did you mean" not in str(caught.value)


def test_a_language_model_takes_even_kernels() -> None:
    """Only symmetric (encoder) convolutions need an odd kernel."""
    language_model(block="muse", muse_kernels="2,4")


@pytest.mark.parametrize(("layers", "warned"), [(1, True), (2, False)])
def test_views_of_a_single_layer_are_reported(layers: int, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        translation_model(cross_view="gca", encoder_layers=layers)
    assert any("--cross-view gca" in record.getMessage() for record in caplog.records) is warned


def test_a_number_of_keys_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        translation_model(attention_topk=2)
        translation_model(attention_topk_ratio=2.0)
    assert not caplog.records
