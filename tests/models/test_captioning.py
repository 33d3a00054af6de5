"""``captioning_transformer_ext``: every option of ``transformer_ext`` composes with images, or is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.test_combinations import assert_reorders
from tests.models.tiny import PAD, decode_by_step
from tests.models.tiny_images import PREVIOUS, captioning_model, collate, image

TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}
PRE_NORM = {"encoder_normalize_before": True, "decoder_normalize_before": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "dense": {},
    "pre-norm": PRE_NORM,
    "top-2": {"attention_topk": 2},
    "top-2 of all heads": {"attention_topk": 2, "attention_topk_select": "heads"},
    "sparsemax": {"attention_normalizer": "sparsemax"},
    "entmax15": {"attention_normalizer": "entmax15"},
    "adanorm": {"norm": "adanorm", **PRE_NORM},
    "gca": {"cross_view": "gca"},
    "gca, sequential": {"cross_view": "gca", "cross_view_fusion": "sequential"},
    "gca, separate norms": {"cross_view": "gca", "cross_view_norm": "separate", **PRE_NORM},
    "muse": {"block": "muse", "muse_kernels": "3,5"},
    "muse-simple": {"block": "muse-simple", "attention_topk": 2, "cross_view": "fma"},
    "all": {"attention_topk": 2, "norm": "layernorm-simple", "cross_view": "gca", "init": "km"},
    "embedding norm": {"layernorm_embedding": True, "no_scale_embedding": True},
    "g5": {"visual_geometry": "g5"},
    "no geometry": {"visual_geometry": "none"},
    "classes": {"visual_classes": True},
    "learned": {"visual_position": "learned"},
    "sinusoid": {"visual_position": "sinusoid"},
    "no position": {"visual_position": "none"},
}
# whose kind of images an option is for
ALONE = {"classes": "labelled", "learned": "grid", "sinusoid": "grid", "no position": "grid"}
KINDS = ("regions", "grid", "classes")
CASES = [
    (kind, name)
    for name in OPTIONS
    for kind in ([ALONE[name]] if name in ALONE else KINDS)
    if (kind, name) != ("grid", "no geometry")
]


def build(kind: str, **options: Any) -> nn.Module:
    torch.manual_seed(1)
    model = captioning_model(kind, **options)
    for parameter in model.parameters():  # gates, mixes and gains must not sit at a symmetric initial value
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


def batch(kind: str) -> dict[str, Tensor]:
    return collate(image(kind, 6, seed=1), image(kind, 4, seed=2))


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_every_option_trains_decodes_and_ignores_padding(kind: str, name: str) -> None:
    model, inputs = build(kind, **OPTIONS[name]), batch(kind)
    logits, _ = model.train()(**inputs, prev_output_tokens=PREVIOUS)
    logits[PREVIOUS.ne(PAD)].log_softmax(-1)[:, 5].sum().backward()
    # the key bias shifts all scores of a query alike, which no softmax notices
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    silent = [name for name, gradient in gradients.items() if gradient is None or not gradient.any()]
    assert all(name.endswith("k_proj.bias") for name in silent), f"zero gradient: {silent}"

    model.eval()
    with torch.no_grad():
        full, extra = model(**inputs, prev_output_tokens=PREVIOUS)
        alone, _ = model(**image(kind, 4, seed=2), prev_output_tokens=PREVIOUS[1:, :4])
        torch.testing.assert_close(alone[0], full[1, :4], **TOLERANCE)
        encoder_out = model.encoder.forward_torchscript({**inputs, "prev_output_tokens": PREVIOUS})
        stepwise = decode_by_step(model, PREVIOUS, encoder_out)
        real = PREVIOUS.ne(PAD)
        torch.testing.assert_close(stepwise[real], full[real], **TOLERANCE)
        assert_reorders(model, full, encoder_out)
        assert not extra["attn"][0][inputs["src_tokens"].eq(PAD)[:, None].expand(-1, 5, -1)].any(), "reads padding"


def test_the_state_dict_of_a_captioning_model_has_stable_names() -> None:
    """Those of fairseq's Transformer but for the embedding."""
    stock = {name for name in captioning_model("regions").state_dict() if not name.startswith("encoder.visual.")}
    assert {name for name in stock if "layers" not in name} == {
        *("encoder.version", "decoder.version", "decoder.embed_tokens.weight", "decoder.output_projection.weight"),
    }
