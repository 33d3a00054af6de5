"""Refuses fairseq's own options that do not work here, alone or beside one of the suite's."""

from __future__ import annotations

import itertools
import os
from typing import Any

from fairseq.modules import multihead_attention
from fairseq.tasks import TASK_REGISTRY

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.options import flag

__all__ = [
    "check_language_model_options",
    "check_stock_options",
    "check_task",
    "check_translation_options",
    "parse_layers",
    "refuse_unless",
]


def refuse_unless(condition: Any, message: str) -> None:
    """Raise ``OptionError(message)`` unless ``condition`` holds."""
    if not condition:
        raise OptionError(message)


def parse_layers(option: str, text: str) -> list[int]:
    """The numbers of ``--encoder-layers-to-keep`` or ``--decoder-layers-to-keep``, from 0 at the bottom."""
    numbers = [number.strip() for number in str(text).split(",")]
    if not all(number.isascii() and number.isdigit() for number in numbers) or len(set(numbers)) < len(numbers):
        raise OptionError(f"{option}: must be different layer numbers, like 0,2,4, got {text!r}")
    return sorted(int(number) for number in numbers)


def check_task(task: Any, kind: str, names: tuple[str, ...]) -> None:
    """Refuses fairseq's tasks that are for another kind of model; tasks that are not fairseq's are not judged."""
    name = next((name for name, registered in TASK_REGISTRY.items() if registered is type(task)), None)
    if name is not None and type(task).__module__.startswith("fairseq.tasks."):
        refuse_unless(name in names, f"--task {name}: not for {kind}, which works with {', '.join(names)}")


def check_stock_options(cfg: Any, *, encoder: Any, decoder: Any) -> None:
    """Refuses by name those of fairseq's options that cannot work in either kind of model, before anything is built.

    Args:
        cfg: nested config carrying :class:`~fairseq_ext.models.config.ExtOptions`.
        encoder: nested encoder options, or ``None`` for a language model.
        decoder: nested decoder options.

    Raises:
        OptionError: one line that names the option, what it got and what is allowed.
    """
    parts = [("encoder", encoder)] * (encoder is not None) + [("decoder", decoder)]
    refuse_unless(
        not cfg.base_layers, f"--base-layers {cfg.base_layers}: fairseq's libbase does not load on this PyTorch"
    )
    for side, part in parts:
        if part.xformers_att_config is not None:
            _check_xformers(f"--{side}-xformers-att-config", cfg)
        if part.layers_to_keep:
            refuse_unless(
                cfg.cross_view == "none",
                f"--{side}-layers-to-keep: excludes --cross-view {cfg.cross_view}, which counts layers",
            )
    _check_quantization_noise(cfg, parts)
    refuse_unless(
        decoder.output_dim == decoder.input_dim or not cfg.share_decoder_input_output_embed,
        f"--decoder-output-dim {decoder.output_dim}: excludes --share-decoder-input-output-embed "
        f"unless it is --decoder-input-dim {decoder.input_dim}",
    )


def check_translation_options(cfg: Any, source_dictionary: Any, target_dictionary: Any) -> None:
    """Refuses by name those of fairseq's options for translation models that cannot work.

    Args:
        cfg: as for :func:`check_stock_options`.
        source_dictionary, target_dictionary: dictionaries of the task.

    Raises:
        OptionError: one line that names the option, what it got and what is allowed.
    """
    encoder, decoder = cfg.encoder, cfg.decoder
    for name in ("adaptive_input", "tie_adaptive_weights", "tie_adaptive_proj", "char_inputs"):
        refuse_unless(not getattr(cfg, name), f"{flag(name)}: fairseq has no translation model with it")
    refuse_unless(
        decoder.input_dim == decoder.embed_dim,
        f"--decoder-input-dim {decoder.input_dim}: must be --decoder-embed-dim {decoder.embed_dim} in translation",
    )
    _check_bands("softmax", cfg, decoder.output_dim, target_dictionary)
    for side, part in (("encoder", encoder), ("decoder", decoder)):
        if part.embed_path:
            _check_embeddings(f"--{side}-embed-path {part.embed_path}", part)
    for name in ("share_all_embeddings", "merge_src_tgt_embed"):
        option = flag(name)
        if getattr(cfg, name):
            refuse_unless(
                encoder.embed_dim == decoder.embed_dim,
                f"{option}: needs --encoder-embed-dim {encoder.embed_dim} equal to "
                f"--decoder-embed-dim {decoder.embed_dim}",
            )
            refuse_unless(
                decoder.output_dim == decoder.embed_dim,
                f"{option}: excludes --decoder-output-dim {decoder.output_dim}",
            )
    if cfg.share_all_embeddings:
        refuse_unless(
            source_dictionary == target_dictionary,
            "--share-all-embeddings: needs one dictionary for both languages (fairseq-preprocess --joined-dictionary)",
        )
        refuse_unless(
            decoder.embed_path in (None, "", encoder.embed_path),
            "--decoder-embed-path: --share-all-embeddings reads --encoder-embed-path",
        )
    elif cfg.merge_src_tgt_embed:
        refuse_unless(
            not (encoder.embed_path or decoder.embed_path),
            "--merge-src-tgt-embed: fairseq reads no --encoder-embed-path or --decoder-embed-path with it",
        )


def check_language_model_options(cfg: Any, dictionary: Any) -> None:
    """Refuses by name those of fairseq's options for language models that cannot work.

    Args:
        cfg: as for :func:`check_stock_options`.
        dictionary: dictionary of the task.

    Raises:
        OptionError: one line that names the option, what it got and what is allowed.
    """
    inputs = [name for name in ("character_embeddings", "adaptive_input") if getattr(cfg, name)]
    refuse_unless(len(inputs) < 2, "--character-embeddings: excludes --adaptive-input")
    for name in [*inputs, *["adaptive_softmax_cutoff"] * bool(cfg.adaptive_softmax_cutoff)]:
        refuse_unless(
            not cfg.share_decoder_input_output_embed,
            f"--share-decoder-input-output-embed: excludes {flag(name)}; adaptive layers share with "
            "--tie-adaptive-weights",
        )
    if cfg.character_embeddings:
        _check_character_filters(cfg.character_filters)
    if cfg.adaptive_input:
        refuse_unless(cfg.adaptive_input_cutoff, "--adaptive-input: needs --adaptive-input-cutoff")
        widths = _check_bands("input", cfg, cfg.decoder.input_dim, dictionary)
        for width in widths if cfg.quant_noise.pq else []:
            refuse_unless(
                width % cfg.quant_noise.pq_block_size == 0,
                f"--quant-noise-pq-block-size: {cfg.quant_noise.pq_block_size} does not divide {width}, "
                f"of the widths {widths} that --adaptive-input has",
            )
    _check_bands("softmax", cfg, cfg.decoder.output_dim, dictionary)
    refuse_unless(
        cfg.tie_adaptive_weights or not cfg.tie_adaptive_proj,
        "--tie-adaptive-proj: has no effect without --tie-adaptive-weights",
    )
    if cfg.tie_adaptive_weights:
        _check_tied(cfg)


def _check_tied(cfg: Any) -> None:
    option = "--tie-adaptive-weights"
    refuse_unless(
        cfg.adaptive_input and cfg.adaptive_softmax_cutoff,
        f"{option}: needs --adaptive-input and --adaptive-softmax-cutoff",
    )
    for name in ("cutoff", "factor"):
        ours, others = (getattr(cfg, f"adaptive_{kind}_{name}") for kind in ("softmax", "input"))
        refuse_unless(
            ours == others,
            f"{option}: needs --adaptive-softmax-{name} {ours} equal to --adaptive-input-{name} {others}",
        )
    for name in ("input_dim", "output_dim"):
        width = getattr(cfg.decoder, name)
        refuse_unless(
            width == cfg.decoder.embed_dim,
            f"{option}: needs {flag(f'decoder_{name}')} {width} equal to --decoder-embed-dim {cfg.decoder.embed_dim}",
        )


def _check_character_filters(filters: list[Any]) -> None:
    def is_pair(pair: Any) -> bool:
        return isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(n, int) and n > 0 for n in pair)

    refuse_unless(
        filters and all(map(is_pair, filters)),
        f"--character-filters: must be pairs of width and channels like [(1, 64), (2, 128)], got {filters}",
    )


def _check_bands(kind: str, cfg: Any, width: int, dictionary: Any) -> list[int]:
    """The widths of fairseq's adaptive layers: one per band of ever rarer words, each narrower by a factor."""
    cutoff, factor = getattr(cfg, f"adaptive_{kind}_cutoff"), getattr(cfg, f"adaptive_{kind}_factor")
    if cutoff is None:
        return []
    option, entries = f"--adaptive-{kind}-cutoff", len(dictionary)
    least = dictionary.pad() + 1
    numbers = bool(cutoff) and all(isinstance(end, int) for end in cutoff)
    refuse_unless(
        numbers and cutoff[0] >= least and all(low < high for low, high in itertools.pairwise(cutoff)),
        f"{option}: must be numbers that increase from at least {least}, like 20000,60000, got {cutoff}",
    )
    refuse_unless(cutoff[-1] <= entries, f"{option}: {cutoff[-1]} is more than the {entries} entries of the dictionary")
    bands = len(cutoff) + (cutoff[-1] < entries)
    widths = [int(width // factor**band) for band in range(bands)] if factor > 0 else [0]
    refuse_unless(
        widths[-1], f"--adaptive-{kind}-factor: {factor} leaves nothing of width {width} for the last of {bands} bands"
    )
    return widths


def _check_xformers(option: str, cfg: Any) -> None:
    others = {
        f"--block {cfg.block}": cfg.block != "transformer",
        "--attention-span": cfg.attention_span,
        "--attention-topk": cfg.attention_topk or cfg.attention_topk_ratio,
        f"--attention-normalizer {cfg.attention_normalizer}": cfg.attention_normalizer != "softmax",
        f"--cross-view {cfg.cross_view}": cfg.cross_view != "none",
    }
    for other, on in others.items():
        refuse_unless(not on, f"{option}: excludes {other}, which has an attention of its own")
    refuse_unless(
        multihead_attention._xformers_available, f"{option}: xFormers with xformers.components is not installed"
    )


def _check_quantization_noise(cfg: Any, parts: list[tuple[str, Any]]) -> None:
    noise = cfg.quant_noise
    for name, on in (("pq", noise.pq), ("scalar", noise.scalar)):
        refuse_unless(
            not (on and cfg.cross_view == "ama"),
            f"--quant-noise-{name}: excludes --cross-view ama, whose projection is shared by all layers",
        )
    refuse_unless(
        not (noise.scalar and cfg.block == "muse"),
        "--quant-noise-scalar: excludes --block muse, as fairseq cannot quantize a module called weight_linear",
    )
    for side, part in parts if noise.pq else []:
        for name in ("embed_dim", "ffn_embed_dim"):
            width = getattr(part, name)
            refuse_unless(
                width % noise.pq_block_size == 0,
                f"--quant-noise-pq-block-size: {noise.pq_block_size} does not divide {flag(f'{side}_{name}')} {width}",
            )


def _check_embeddings(option: str, part: Any) -> None:
    if not os.path.isfile(part.embed_path):
        raise OptionError(f"{option}: no such file (a trained model needs none: override the option with None)")
    with open(part.embed_path, encoding="utf-8", errors="replace") as lines:
        next(lines, "")
        width = len(next(lines, "").split()) - 1
    refuse_unless(width == part.embed_dim, f"{option}: has vectors of width {width}, the model has {part.embed_dim}")
