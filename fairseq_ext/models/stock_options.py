"""fairseq's own options: which of them do not work here, alone or beside one of the suite's."""

from __future__ import annotations

import os
from typing import Any

from fairseq.modules import multihead_attention

from fairseq_ext.errors import OptionError


def parse_layers(option: str, text: str) -> list[int]:
    """The numbers of ``--encoder-layers-to-keep`` or ``--decoder-layers-to-keep``, from 0 at the bottom."""
    numbers = [number.strip() for number in str(text).split(",")]
    if not all(number.isascii() and number.isdigit() for number in numbers) or len(set(numbers)) < len(numbers):
        raise OptionError(f"{option}: must be different layer numbers, like 0,2,4, got {text!r}")
    return sorted(int(number) for number in numbers)


def check_stock_options(cfg: Any, *, encoder: Any, decoder: Any) -> None:
    """Refuses by name what cannot work among fairseq's options for either kind of model, before anything is built.

    Args:
        cfg: nested config carrying :class:`~fairseq_ext.models.config.ExtOptions`.
        encoder: nested encoder options, or ``None`` for a language model.
        decoder: nested decoder options.

    Raises:
        OptionError: one line that names the option, what was found and what is allowed.
    """
    parts = [("encoder", encoder)] * (encoder is not None) + [("decoder", decoder)]
    _require(not cfg.base_layers, f"--base-layers {cfg.base_layers}: fairseq's libbase does not load on this PyTorch")
    for side, part in parts:
        if part.xformers_att_config is not None:
            _check_xformers(f"--{side}-xformers-att-config", cfg)
        if part.layers_to_keep is not None:
            _require(
                cfg.cross_view == "none",
                f"--{side}-layers-to-keep: excludes --cross-view {cfg.cross_view}, which counts layers",
            )
    _check_quantization_noise(cfg, parts)
    _require(
        decoder.output_dim == decoder.embed_dim or not cfg.share_decoder_input_output_embed,
        f"--decoder-output-dim {decoder.output_dim}: excludes --share-decoder-input-output-embed "
        f"unless it is --decoder-embed-dim {decoder.embed_dim}",
    )


def check_translation_options(cfg: Any, source_dictionary: Any, target_dictionary: Any) -> None:
    """Refuses by name what cannot work among fairseq's options for translation models.

    Args:
        cfg: as for :func:`check_stock_options`.
        source_dictionary, target_dictionary: the task's.

    Raises:
        OptionError: one line that names the option, what was found and what is allowed.
    """
    encoder, decoder = cfg.encoder, cfg.decoder
    for name in ("adaptive_input", "tie_adaptive_weights", "tie_adaptive_proj", "char_inputs"):
        _require(not getattr(cfg, name), f"--{name.replace('_', '-')}: fairseq has no translation model with it")
    _require(
        decoder.input_dim == decoder.embed_dim,
        f"--decoder-input-dim {decoder.input_dim}: must be --decoder-embed-dim {decoder.embed_dim} in translation",
    )
    for side, part in (("encoder", encoder), ("decoder", decoder)):
        if part.embed_path:
            _check_embeddings(f"--{side}-embed-path {part.embed_path}", part)
    for name in ("share_all_embeddings", "merge_src_tgt_embed"):
        option = f"--{name.replace('_', '-')}"
        if getattr(cfg, name):
            _require(
                encoder.embed_dim == decoder.embed_dim,
                f"{option}: needs --encoder-embed-dim {encoder.embed_dim} equal to "
                f"--decoder-embed-dim {decoder.embed_dim}",
            )
            _require(
                decoder.output_dim == decoder.embed_dim,
                f"{option}: excludes --decoder-output-dim {decoder.output_dim}",
            )
    if cfg.share_all_embeddings:
        _require(
            source_dictionary == target_dictionary,
            "--share-all-embeddings: needs one dictionary for both languages (fairseq-preprocess --joined-dictionary)",
        )
        _require(
            decoder.embed_path in (None, "", encoder.embed_path),
            "--decoder-embed-path: --share-all-embeddings reads --encoder-embed-path",
        )
    elif cfg.merge_src_tgt_embed:
        _require(
            not (encoder.embed_path or decoder.embed_path),
            "--merge-src-tgt-embed: fairseq reads no --encoder-embed-path or --decoder-embed-path with it",
        )


def _check_xformers(option: str, cfg: Any) -> None:
    others = {
        f"--block {cfg.block}": cfg.block != "transformer",
        "--attention-topk": cfg.attention_topk or cfg.attention_topk_ratio,
        f"--attention-normalizer {cfg.attention_normalizer}": cfg.attention_normalizer != "softmax",
        f"--cross-view {cfg.cross_view}": cfg.cross_view != "none",
    }
    for other, on in others.items():
        _require(not on, f"{option}: excludes {other}, which has an attention of its own")
    _require(multihead_attention._xformers_available, f"{option}: xFormers with xformers.components is not installed")


def _check_quantization_noise(cfg: Any, parts: list[tuple[str, Any]]) -> None:
    noise = cfg.quant_noise
    for name, on in (("pq", noise.pq), ("scalar", noise.scalar)):
        _require(
            not (on and cfg.cross_view == "ama"),
            f"--quant-noise-{name}: excludes --cross-view ama, whose projection is shared by all layers",
        )
    _require(
        not (noise.scalar and cfg.block == "muse"),
        "--quant-noise-scalar: excludes --block muse, as fairseq cannot quantize a module called weight_linear",
    )
    for side, part in parts if noise.pq else []:
        for name in ("embed_dim", "ffn_embed_dim"):
            width = getattr(part, name)
            _require(
                width % noise.pq_block_size == 0,
                f"--quant-noise-pq-block-size: {noise.pq_block_size} does not divide "
                f"--{side}-{name.replace('_', '-')} {width}",
            )


def _check_embeddings(option: str, part: Any) -> None:
    if not os.path.isfile(part.embed_path):
        raise OptionError(f"{option}: no such file (a trained model needs none: override the option with None)")
    with open(part.embed_path, encoding="utf-8", errors="replace") as lines:
        next(lines, "")
        width = len(next(lines, "").split()) - 1
    _require(width == part.embed_dim, f"{option}: has vectors of width {width}, the model has {part.embed_dim}")


def _require(holds: Any, message: str) -> None:
    if not holds:
        raise OptionError(message)
