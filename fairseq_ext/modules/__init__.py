"""Building blocks in plain torch, with torch's own signatures; none of them knows fairseq."""

from fairseq_ext.modules.adaptive_span import AdaptiveSpan, AdaptiveSpanAttention
from fairseq_ext.modules.cross_view import CrossViewFusion, view_schedule
from fairseq_ext.modules.dynamic_convolution import DynamicConv
from fairseq_ext.modules.muse import KernelGate, MultiScaleConv
from fairseq_ext.modules.normalization import AdaNorm, DetachNorm, LayerNormSimple, create_norm
from fairseq_ext.modules.packed_linear import pack_linears_
from fairseq_ext.modules.sparse_attention import attention_weights, topk_attention
from fairseq_ext.modules.sparse_variants import out_of_window_softmax
from fairseq_ext.modules.topk import topk_softmax
from fairseq_ext.modules.visual import VisualEmbedding, box_geometry, grid_geometry, grid_sinusoid

__all__ = [
    "AdaNorm",
    "AdaptiveSpan",
    "AdaptiveSpanAttention",
    "CrossViewFusion",
    "DetachNorm",
    "DynamicConv",
    "KernelGate",
    "LayerNormSimple",
    "MultiScaleConv",
    "VisualEmbedding",
    "attention_weights",
    "box_geometry",
    "create_norm",
    "grid_geometry",
    "grid_sinusoid",
    "out_of_window_softmax",
    "pack_linears_",
    "topk_attention",
    "topk_softmax",
    "view_schedule",
]
