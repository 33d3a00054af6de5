"""Refuses, by name and before anything is built, options of the suite that exclude each other."""

from __future__ import annotations

import logging
from typing import Any

from fairseq_ext.models.ext_options import ATTENTIONS, ExtOptions, selecting_attentions
from fairseq_ext.models.stock_options import refuse_unless
from fairseq_ext.modules.cross_view import check_cross_view, view_schedule
from fairseq_ext.modules.muse import parse_kernels
from fairseq_ext.training.errors import OptionError, choose
from fairseq_ext.training.options import check_fields, flag

__all__ = ["check_alignments", "check_options"]

logger = logging.getLogger(__name__)


def check_options(cfg: Any, *, encoder: Any, decoder: Any, cross_attention: bool) -> None:
    """Refuses by name options that cannot work or would do nothing, before anything is built; warns of surprising ones.

    Args:
        cfg: holder of the :class:`ExtOptions`.
        encoder: nested encoder options, or ``None`` for a language model.
        decoder: nested decoder options.
        cross_attention: whether decoder layers attend to an encoder.

    Raises:
        OptionError: one line that names the option, what it got and what is allowed.
    """
    check_fields(cfg, ExtOptions)
    for side, part in (("encoder", encoder), ("decoder", decoder)):
        if part is not None:
            refuse_unless(
                part.embed_dim % part.attention_heads == 0,
                f"--{side}-embed-dim: {part.embed_dim} is not divisible by "
                f"--{side}-attention-heads {part.attention_heads}",
            )
    _check_attention(cfg, encoder is not None, cross_attention)
    _check_span(cfg, encoder, decoder)
    _check_block(cfg, encoder, decoder)
    _check_norm(cfg, encoder, decoder)
    _check_views(cfg, encoder, decoder, cross_attention)


def check_alignments(cfg: Any, task: Any) -> None:
    """Refuses guided alignment of an attention that drops keys: its loss is the logarithm of aligned keys' weights.

    Args:
        cfg: holder of the :class:`ExtOptions`.
        task: fairseq's task; tasks that know alignments have ``cfg.load_alignments``.

    Raises:
        OptionError: names both options and the way out.
    """
    if not getattr(getattr(task, "cfg", None), "load_alignments", False):
        return
    refuse_unless(not cfg.no_cross_attention, "--load-alignments: there is nothing to align with --no-cross-attention")
    dropping = {
        f"--attention-topk {cfg.attention_topk}": cfg.attention_topk,
        f"--attention-topk-ratio {cfg.attention_topk_ratio}": cfg.attention_topk_ratio,
        f"--attention-normalizer {cfg.attention_normalizer}": cfg.attention_normalizer != "softmax",
    }
    for choice, on in dropping.items():
        refuse_unless(
            not on or "cross" not in selecting_attentions(cfg),
            f"--load-alignments: excludes {choice} in cross-attention, as the keys it drops have no logarithm; "
            "--attention-topk-in encoder-self,decoder-self keeps it out of there",
        )


def _check_attention(cfg: Any, self_attending_encoder: bool, cross_attention: bool) -> None:
    ratio = cfg.attention_topk_ratio
    refuse_unless(ratio == 0 or ratio >= 1, f"--attention-topk-ratio: must be 0 (off) or at least 1, got {ratio}")
    refuse_unless(
        not (cfg.attention_topk and ratio),
        f"--attention-topk {cfg.attention_topk} and --attention-topk-ratio {ratio} exclude each other: 0 turns one off",
    )
    refuse_unless(
        cfg.attention_normalizer == "softmax" or not (cfg.attention_topk or ratio),
        f"--attention-normalizer {cfg.attention_normalizer}: chooses keys itself and excludes --attention-topk",
    )
    _check_window(cfg, cross_attention)
    present = {"encoder-self": self_attending_encoder, "decoder-self": True, "cross": cross_attention}
    for name in selecting_attentions(cfg):
        choose("--attention-topk-in", name, ATTENTIONS)
        if cfg.attention_topk_in != ExtOptions.attention_topk_in:
            there = ", ".join(attention for attention in ATTENTIONS if present[attention])
            refuse_unless(present[name], f"--attention-topk-in {name}: this model has {there} alone")


def _check_window(cfg: Any, cross_attention: bool) -> None:
    if cfg.attention_topk_select != "window":
        return
    refuse_unless(
        not (cross_attention and "cross" in selecting_attentions(cfg)),
        "--attention-topk-select window: cross-attention has no keys around its query; give --attention-topk-in "
        "encoder-self, decoder-self or both",
    )
    refuse_unless(
        not (cfg.cross_self_attention and "decoder-self" in selecting_attentions(cfg)),
        "--attention-topk-select window: excludes --cross-self-attention, which has keys of both sides",
    )


def _check_span(cfg: Any, encoder: Any, decoder: Any) -> None:
    if not cfg.attention_span:
        return
    span = f"--attention-span {cfg.attention_span}"
    refuse_unless(encoder is None, f"{span}: for language models alone, transformer_lm_ext")
    refuse_unless(decoder.layers, f"{span}: needs at least one layer, got --decoder-layers {decoder.layers}")
    for name, allowed in (
        ("block", "transformer"),
        ("attention_normalizer", "softmax"),
        ("attention_topk_select", "scores"),
    ):
        value = getattr(cfg, name)
        refuse_unless(value == allowed, f"{span}: excludes {flag(name)} {value}, needs {allowed}")
    if cfg.attention_span > cfg.max_target_positions:
        logger.warning(
            "%s: a sample has at most %d tokens (--tokens-per-sample, --max-target-positions), and nothing before them",
            *(span, cfg.max_target_positions),
        )


def _check_block(cfg: Any, encoder: Any, decoder: Any) -> None:
    if cfg.block == "transformer":
        return
    refuse_unless(not cfg.cross_self_attention, f"--block {cfg.block}: no --cross-self-attention")
    for name in ("scale_fc", "scale_attn", "scale_heads", "scale_resids"):
        refuse_unless(not getattr(cfg, name, False), f"--block {cfg.block}: excludes {flag(name)}")
    if cfg.block == "muse-simple":
        return
    refuse_unless(
        encoder is not None or not cfg.muse_no_padding_mask,
        "--muse-no-padding-mask: has no effect in a language model, whose convolutions read no padding",
    )
    try:
        kernels = parse_kernels(cfg.muse_kernels, decoder.layers)
        if encoder is not None:
            kernels += parse_kernels(cfg.muse_kernels, encoder.layers)
            even = sorted({kernel for layer in kernels for kernel in layer if kernel % 2 == 0})
            refuse_unless(not even, f"--muse-kernels: encoder kernels must be odd, got {even}")
    except ValueError as error:
        raise OptionError(str(error)) from None
    refuse_unless(
        not cfg.muse_no_gate or any(len(layer) > 1 for layer in kernels),
        f"--muse-no-gate: has no effect with one kernel size a layer, --muse-kernels {cfg.muse_kernels}",
    )


def _check_norm(cfg: Any, encoder: Any, decoder: Any) -> None:
    after_encoder = encoder is not None and encoder.normalize_before
    after_decoder = decoder.normalize_before and not cfg.no_decoder_final_norm
    refuse_unless(
        cfg.norm_scope != "final" or after_encoder or after_decoder,
        f"--norm-scope final: no {cfg.norm} would be built, as a post-norm model has no norm after its stacks; "
        "needs --encoder-normalize-before or --decoder-normalize-before",
    )


def _check_views(cfg: Any, encoder: Any, decoder: Any, cross_attention: bool) -> None:
    if cfg.cross_view == "none":
        return
    views = f"--cross-view {cfg.cross_view}"
    refuse_unless(cross_attention, f"{views}: needs cross-attention to an encoder, there is none")
    refuse_unless(not cfg.cross_self_attention, f"{views}: excludes --cross-self-attention")
    layers = f"--encoder-layers {encoder.layers} and --decoder-layers {decoder.layers}"
    refuse_unless(encoder.layers and decoder.layers, f"{views}: needs layers on both sides, got {layers}")
    if encoder.layers == 1:
        logger.warning("%s: the only encoder layer is the only view, as without this option", views)
    refuse_unless(encoder.layerdrop == 0, f"{views}: excludes --encoder-layerdrop, which changes the number of views")
    refuse_unless(
        encoder.embed_dim == decoder.embed_dim,
        f"{views}: needs --encoder-embed-dim {encoder.embed_dim} equal to --decoder-embed-dim {decoder.embed_dim}",
    )
    refuse_unless(
        encoder.normalize_before or cfg.cross_view_norm == "shared",
        f"--cross-view-norm {cfg.cross_view_norm}: has no effect without --encoder-normalize-before",
    )
    refuse_unless(
        cfg.block == "transformer" or cfg.cross_view_fusion != "sequential",
        f"--cross-view-fusion sequential: has no meaning in the parallel branches of --block {cfg.block}",
    )
    use_global = not cfg.cross_view_no_global
    try:
        check_cross_view(cfg.cross_view, cfg.cross_view_fusion, use_global=use_global)
    except ValueError as error:
        raise OptionError(f"--cross-view-fusion: {error}") from None
    highest = max(map(max, view_schedule(cfg.cross_view, encoder.layers, decoder.layers, use_global)))
    refuse_unless(
        highest == encoder.layers,
        f"--cross-view-no-global: beside {views}, {layers} no decoder layer reads above encoder layer {highest}, and "
        "what lies above would not train; gca and gpa with several decoder layers read the last",
    )
