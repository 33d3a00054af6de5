"""fairseq's training features beside every block: each combination trains and decodes, or is refused by name."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.quantization_utils import quantize_model_scalar
from torch import Tensor, nn

from fairseq_ext.models.muse_layers import MuseDecoderLayer, MuseEncoderLayer
from fairseq_ext.training.errors import OptionError
from tests.models.tiny import EOS, PAD, decode_by_step, language_model, translation_config, translation_model

SOURCE = torch.tensor([[5, 6, 7, 8, EOS], [PAD, PAD, 5, 6, EOS]])
PREVIOUS = torch.tensor([[EOS, 5, 6, 7], [EOS, 9, 8, PAD]])
BLOCKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "top2": {"attention_topk": 2},
    "entmax15": {"attention_normalizer": "entmax15"},
    "adanorm": {"norm": "adanorm"},
    "km": {"init": "km"},
    "muse": {"block": "muse", "muse_kernels": "3,5"},
    "muse-simple": {"block": "muse-simple"},
    "gca": {"cross_view": "gca"},
    "ama": {"cross_view": "ama"},
    "sequential": {"cross_view": "gca", "cross_view_fusion": "sequential"},
    "muse-gca": {"block": "muse", "cross_view": "gca"},
}
FEATURES: dict[str, dict[str, Any]] = {
    "pq": {"quant_noise_pq": 0.1, "quant_noise_pq_block_size": 4},
    "scalar": {"quant_noise_scalar": 0.1, "layers": 1},  # its statistics take a second of three layers
    "encoder-layerdrop": {"encoder_layerdrop": 0.3},
    "decoder-layerdrop": {"decoder_layerdrop": 0.3},
    "checkpoint": {"checkpoint_activations": True},
    "offload": {"offload_activations": True},
    "cross+self": {"cross_self_attention": True, "no_cross_attention": True},
    "no-cross": {"no_cross_attention": True},
    "adaptive-softmax": {"adaptive_softmax_cutoff": [6, 10], "adaptive_softmax_factor": 2.0},
    "embedding-norm": {"layernorm_embedding": True},
    "learned-positions": {"encoder_learned_pos": True, "decoder_learned_pos": True},
    "no-positions": {"no_token_positional_embeddings": True},
    "merged-dictionaries": {"merge_src_tgt_embed": True},
    "gelu": {"activation_fn": "gelu"},
    "relu-dropout": {"relu_dropout": 0.3},
    "output-width": {"decoder_output_dim": 12},
}
REFUSED = {
    ("muse", "scalar"): "--quant-noise-scalar: excludes --block muse",
    ("muse-gca", "scalar"): "--quant-noise-scalar: excludes --block muse",
    ("ama", "scalar"): "--quant-noise-scalar: excludes --cross-view ama",
    ("ama", "pq"): "--quant-noise-pq: excludes --cross-view ama",
    ("muse", "cross+self"): "--block muse: no --cross-self-attention",
    ("muse-simple", "cross+self"): "--block muse-simple: no --cross-self-attention",
    ("muse-gca", "cross+self"): "--block muse: no --cross-self-attention",
    **{(block, "encoder-layerdrop"): "--encoder-layerdrop" for block in ("gca", "ama", "sequential", "muse-gca")},
    **{
        (block, feature): "--cross-view (gca|ama): needs cross-attention"
        for block, feature in product(("gca", "ama", "sequential", "muse-gca"), ("no-cross", "cross+self"))
        if (block, feature) != ("muse-gca", "cross+self")
    },
}


def build(block: str, feature: str) -> nn.Module:
    torch.manual_seed(0)
    options = {**BLOCKS[block], **FEATURES[feature]}
    return quantize_model_scalar(translation_model(**options), translation_config(**options))


def prepare(model: nn.Module) -> None:
    generation = SimpleNamespace(beam=2, no_beamable_mm=False, print_alignment=None, retain_dropout=False)
    model.prepare_for_inference_(SimpleNamespace(generation=generation))


@pytest.mark.parametrize(("block", "feature"), [pair for pair in product(BLOCKS, FEATURES) if pair not in REFUSED])
def test_works(block: str, feature: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "cuda", lambda tensor: tensor)  # fairseq quantizes on a GPU
    model = build(block, feature).train()
    model(SOURCE, None, PREVIOUS)[0].square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    model.eval()
    with torch.no_grad():
        before = model(SOURCE, None, PREVIOUS)[0]
        prepare(model)
        torch.testing.assert_close(model(SOURCE, None, PREVIOUS)[0], before, rtol=1e-4, atol=2e-5)
        stepwise = decode_by_step(model, PREVIOUS, model.encoder(SOURCE, None))
    if feature != "scalar":  # there fairseq quantizes what a step computes by the step's own range
        real = PREVIOUS.ne(PAD)
        torch.testing.assert_close(stepwise[real], before[real], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("block", "feature"), REFUSED)
def test_refused(block: str, feature: str) -> None:
    with pytest.raises(OptionError, match=REFUSED[block, feature]):
        build(block, feature)


@pytest.mark.parametrize("builder", [translation_model, language_model])
def test_noise_reaches_every_map_of_a_muse_layer(builder: Any) -> None:
    """fairseq's noise zeroes blocks of the weights themselves, whenever a map is used in training."""
    options = {"block": "muse", "quant_noise_pq": 0.5, "quant_noise_pq_block_size": 4}
    model = builder(**options).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(SOURCE, None, PREVIOUS) if builder is translation_model else model(PREVIOUS)
    layers = [path for path, part in model.named_modules() if isinstance(part, MuseEncoderLayer | MuseDecoderLayer)]
    maps = [
        f"{path}.{name}.weight"
        for path in layers
        for name, part in model.get_submodule(path).named_modules()
        if isinstance(part, nn.Linear)
    ]
    own = [name for name in maps if "encoder_attn" not in name]  # cross-attention is fairseq's own
    assert own and any("weight_linear" in name for name in own)
    for name in own:
        assert (model.state_dict()[name] == 0).sum() > (before[name] == 0).sum(), name


@pytest.mark.parametrize("option", ["encoder_embed_dim", "encoder_ffn_embed_dim", "decoder_ffn_embed_dim"])
def test_blocks_of_noise_that_do_not_fit(option: str) -> None:
    with pytest.raises(
        OptionError, match=f"--quant-noise-pq-block-size: 8 does not divide --{option.replace('_', '-')} 20"
    ):
        translation_model(width=16, ffn=24, quant_noise_pq=0.1, **{option: 20})
