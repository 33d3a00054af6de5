"""Tiny models for the tests of this folder."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from fairseq.data import Dictionary
from torch import Tensor, nn

from fairseq_ext.models import TransformerExtModel, TransformerLanguageModelExt
from fairseq_ext.models.config import TransformerExtConfig, TransformerLanguageModelExtConfig

PAD, EOS = 1, 2


def dictionary(symbols: int = 12) -> Dictionary:
    """``symbols`` words after fairseq's four special symbols."""
    words = Dictionary()
    for index in range(symbols):
        words.add_symbol(f"t{index}")
    return words


def task(symbols: int = 12) -> SimpleNamespace:
    words = dictionary(symbols)
    return SimpleNamespace(source_dictionary=words, target_dictionary=words)


def set_options(config: Any, options: dict[str, Any]) -> Any:
    for name, value in options.items():
        assert hasattr(config, name), f"no option {name}"
        setattr(config, name, value)
    return config


def translation_config(width: int = 8, ffn: int = 12, layers: int = 3, **options: Any) -> TransformerExtConfig:
    sizes = {"embed_dim": width, "ffn_embed_dim": ffn, "layers": layers, "attention_heads": 2}
    flat = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sizes.items()}
    return set_options(TransformerExtConfig(), {**flat, "dropout": 0.0, **options})


def translation_model(symbols: int = 12, **options: Any) -> TransformerExtModel:
    return TransformerExtModel.build_model(translation_config(**options), task(symbols))


def language_model_config(
    width: int = 8, ffn: int = 12, layers: int = 2, **options: Any
) -> TransformerLanguageModelExtConfig:
    sizes = {"embed_dim": width, "ffn_embed_dim": ffn, "layers": layers, "attention_heads": 2}
    flat = {f"decoder_{name}": value for name, value in sizes.items()}
    return set_options(
        TransformerLanguageModelExtConfig(),
        {
            **flat,
            # 512 is fairseq's default, whatever the width
            "decoder_input_dim": width,
            "decoder_output_dim": width,
            "dropout": 0.0,
            "tokens_per_sample": 16,
            "max_target_positions": 16,
            **options,
        },
    )


def language_model(symbols: int = 12, **options: Any) -> TransformerLanguageModelExt:
    return TransformerLanguageModelExt.build_model(language_model_config(**options), task(symbols))


def decode_by_step(model: nn.Module, prev_output_tokens: Tensor, encoder_out: Any = None) -> Tensor:
    """Logits (B, T, V) of the incremental decoder, one token at a time."""
    state: dict[str, Any] = {}
    arguments = {} if encoder_out is None else {"encoder_out": encoder_out}
    steps = [
        model.decoder(prev_output_tokens[:, : step + 1], incremental_state=state, **arguments)[0][:, -1]
        for step in range(prev_output_tokens.size(1))
    ]
    return torch.stack(steps, dim=1)
