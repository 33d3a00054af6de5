r"""Layers in a form for generation alone.

The branches of a MUSE layer read one input and are summed, so their input projections are one matrix of stacked rows
and their output projections one matrix of stacked columns (Zhao et al.; the journal version of arXiv 1911.09483 reports
31% more tokens per second than a Transformer for MUSE-simple at batch size 1):

.. math::
    [q ; k ; v ; q' ; f] &= W_{in} h + b_{in} \\
    y &= x + W_{out} \, [\mathrm{att}(q, k, v) ; D(v) ; \mathrm{att}(q', k', v') ; \sigma(f)] + b_{out}

with :math:`b_{out}` the sum of the branches' biases and :math:`k', v'` the encoder's keys and values, computed once per
sentence. In fairseq's own layers the sub-layers follow each other, and only :math:`[q ; k ; v]` can be merged.

Trained layers are converted: the results are those of the original up to rounding, and the matrices are copies.
"""

from __future__ import annotations

import functools
from typing import Any

from fairseq.modules import FairseqDropout, MultiheadAttention
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import nn

from fairseq_ext.models.attention import SelectiveAttention
from fairseq_ext.models.cross_view_attention import CrossViewAttention
from fairseq_ext.models.decoding_cache import DecodingCache, reorder_parts, reorder_sentences
from fairseq_ext.models.fused_layer import FusedDecoding
from fairseq_ext.models.fused_muse import FusedMuseDecoderLayer, FusedMuseEncoderLayer
from fairseq_ext.models.fused_transformer import FusedDecoderLayer, FusedEncoderLayer
from fairseq_ext.models.layers import DecoderLayer, EncoderLayer
from fairseq_ext.models.muse_attention import MuseSelfAttention
from fairseq_ext.models.muse_layers import MuseDecoderLayer, MuseEncoderLayer

__all__ = ["MUSE_FORMS", "TRANSFORMER_FORMS", "fuse_for_inference"]

MUSE_FORMS: dict[type[nn.Module], Any] = {
    MuseEncoderLayer: FusedMuseEncoderLayer,
    MuseDecoderLayer: FusedMuseDecoderLayer,
}
TRANSFORMER_FORMS: dict[type[nn.Module], Any] = {
    TransformerEncoderLayerBase: FusedEncoderLayer,
    EncoderLayer: FusedEncoderLayer,
    TransformerDecoderLayerBase: FusedDecoderLayer,
    DecoderLayer: FusedDecoderLayer,
}

_ATTENTIONS = (MultiheadAttention, SelectiveAttention, MuseSelfAttention)
# Parts that a layer may have although the fused forms do not compute them.
_EXTRAS = {
    "layer": ("attn_ln", "c_attn", "ffn_layernorm", "w_resid", "cross_self_attention", "return_fc"),
    "attention": ("bias_k", "add_zero_attn", "use_xformers"),
}


def fuse_for_inference(module: nn.Module, forms: dict[type[nn.Module], Any] = MUSE_FORMS) -> nn.Module:
    """Replaces the layers inside ``module`` by their fused forms, in place, and returns ``module``.

    Before generation, MUSE layers are fused unless ``--muse-no-fuse`` is given, fairseq's with ``--inference-dtype``.
    A fused model cannot be trained, and its state dict fits fused models only: save before fusing. A layer that does
    more than its fused form stays as it is: one with retained dropout, adaptive spans or fairseq's ``--scale-*``
    options, or one whose linear maps were replaced, as quantization does.

    Args:
        module: a model, an encoder or a decoder.
        forms: what to fuse, and to what: ``MUSE_FORMS`` or ``TRANSFORMER_FORMS``.
    """
    for parent in list(module.modules()):
        cache = DecodingCache()
        for name, child in list(parent.named_children()):
            form = forms.get(type(child))
            if form is not None and _is_covered(child):
                setattr(parent, name, form(child, cache) if issubclass(form, FusedDecoding) else form(child))
    if hasattr(module, "decoder"):
        _reorder_less_(module)
    return module


def _reorder_less_(model: nn.Module) -> None:
    """Makes a search reorder only modules with a state and sentences that change; fairseq reorders and copies all."""
    decoder = model.decoder
    stateful = [
        part for part in decoder.modules() if part is not decoder and hasattr(part, "reorder_incremental_state")
    ]
    decoder.reorder_incremental_state_scripting = functools.partial(reorder_parts, stateful)
    layers = list(decoder.layers.children())
    able = all(isinstance(layer, FusedDecoding) and layer.encoder_attn is None for layer in layers)
    reorder = getattr(getattr(model, "encoder", None), "reorder_encoder_out", None)
    if able and reorder is not None and not isinstance(reorder, functools.partial):
        model.encoder.reorder_encoder_out = functools.partial(reorder_sentences, reorder)


def _is_covered(layer: nn.Module) -> bool:
    """Whether the fused form of ``layer`` does all that it does."""
    attentions = [layer.self_attn]
    cross = getattr(layer, "encoder_attn", None)
    if cross is not None and type(cross) is not CrossViewAttention:
        attentions.append(cross)
    if any(type(attention) not in _ATTENTIONS for attention in attentions):
        return False
    projections = [getattr(part, name) for part in attentions for name in ("q_proj", "k_proj", "v_proj", "out_proj")]
    if any(type(linear) is not nn.Linear or linear.bias is None for linear in [*projections, layer.fc1, layer.fc2]):
        return False
    if any(isinstance(part, FairseqDropout) and part.apply_during_inference for part in layer.modules()):
        return False
    extras = [getattr(layer, name, None) for name in _EXTRAS["layer"]]
    extras += [getattr(attention, name) for attention in attentions for name in _EXTRAS["attention"]]
    return all(extra is None or extra is False for extra in extras)
