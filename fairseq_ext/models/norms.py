"""The norms of ``--norm`` in place of fairseq's LayerNorms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fairseq_ext.modules.normalization import create_norm

__all__ = ["build_norm", "rebuild_norms_"]


def build_norm(cfg: Any, normalized_shape: int | Sequence[int], final: bool = False) -> nn.Module:
    """The norm that ``--norm`` asks for, or a LayerNorm where ``--norm-scope final`` leaves one.

    Args:
        cfg: holder of the :class:`~fairseq_ext.models.ext_options.ExtOptions`.
        normalized_shape: as for :class:`torch.nn.LayerNorm`.
        final: whether the norm stands after a stack of layers, rather than in a layer.
    """
    return create_norm(
        _kind(cfg, final),
        normalized_shape,
        adanorm_scale=cfg.adanorm_scale,
        adanorm_k=cfg.adanorm_k,
        detach=cfg.norm_detach,
        unbiased=cfg.norm_convention == "released",
    )


def rebuild_norms_(module: nn.Module, cfg: Any, *names: str, final: bool = False) -> None:
    """Puts the norm of :func:`build_norm` in place of the LayerNorms ``names``; an attribute that is None stays None.

    It is the last step of a constructor that extends one of fairseq's. fairseq's constructors call ``LayerNorm`` by its
    module-level name: there is no method to override, and another function under that name would reach every model in
    the process.
    """
    for name in names if _kind(cfg, final) != "layernorm" else ():
        layer_norm = getattr(module, name)
        if layer_norm is not None:
            setattr(module, name, build_norm(cfg, layer_norm.normalized_shape, final))


def _kind(cfg: Any, final: bool) -> str:
    return cfg.norm if final or cfg.norm_scope == "all" else "layernorm"
