r"""MUSE layers merged into two matrices for generation.

The branches of a MUSE layer read one input and are summed, so their input projections are one matrix of stacked rows
and their output projections one matrix of stacked columns (Zhao et al., arXiv 1911.09483, who report 31% more tokens
per second than a Transformer):

.. math::
    [q ; k ; v ; q' ; f] &= W_{in} h + b_{in} \\
    y &= x + W_{out} \, [\mathrm{att}(q, k, v) ; D(v) ; \mathrm{att}(q', k', v') ; \sigma(f)] + b_{out}

with :math:`b_{out}` the sum of the branches' biases and :math:`k', v'` the encoder's, computed once a sentence. It is
a conversion of trained layers: the results are those of the original up to rounding, the matrices are copies.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fairseq_ext.models.fused_decoder_layer import FusedMuseDecoderLayer
from fairseq_ext.models.fused_layer import FusedMuseEncoderLayer
from fairseq_ext.models.muse_layers import MuseDecoderLayer, MuseEncoderLayer

FUSED_FORMS: dict[type[nn.Module], Any] = {
    MuseEncoderLayer: FusedMuseEncoderLayer,
    MuseDecoderLayer: FusedMuseDecoderLayer,
}


def _has_plain_projections(layer: MuseEncoderLayer | MuseDecoderLayer) -> bool:
    attention = layer.self_attn
    linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj, layer.fc1, layer.fc2]
    return all(type(linear) is nn.Linear for linear in linears)


def fuse_for_inference(module: nn.Module) -> nn.Module:
    """Replaces every MUSE layer inside ``module`` by its fused form, in place, and returns ``module``.

    fairseq's ``prepare_for_inference_`` does so for ``transformer_ext`` models unless ``--muse-no-fuse`` is given. What
    remains cannot be trained, and its state dict fits fused models only: save before fusing. A layer whose linear maps
    were replaced, as quantization does, keeps them and stays as it is.

    Args:
        module: a model, an encoder or a decoder.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in FUSED_FORMS and _has_plain_projections(child):
                setattr(parent, name, FUSED_FORMS[type(child)].from_layer(child))
    return module
