"""Initial weights: the laws of the released code of MUSE (arXiv 1911.09483) and AdaNorm (arXiv 1911.07013)."""

from __future__ import annotations

import math

from torch import nn

__all__ = ["INIT_LAWS", "init_attention_projection_", "init_ffn_"]

INIT_LAWS = ("km", "xavier", "xi", "fixup", "adanorm")


def _check_law(law: str) -> None:
    if law not in INIT_LAWS:
        raise ValueError(f"law must be one of {', '.join(INIT_LAWS)}, got {law!r}")


def _uniform_(linear: nn.Linear, bound: float) -> None:
    nn.init.uniform_(linear.weight, -bound, bound)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def init_attention_projection_(linear: nn.Linear, law: str, role: str) -> None:
    r"""Initialise a projection of self- or cross-attention as the released code does; the bias becomes 0.

    =========================  ========================================  =======================================
    law                        ``"in"``: query, key, value               ``"out"``: output
    =========================  ========================================  =======================================
    ``km``, ``xi``, ``fixup``  :math:`U(\pm\sqrt{1/f_{in}})`             :math:`U(\pm\sqrt{3/f_{in}})`
    ``xavier``                 :math:`U(\pm\sqrt{6/(f_{in}+3f_{out})})`  :math:`U(\pm\sqrt{6/(f_{in}+f_{out})})`
    ``adanorm``                :math:`U(\pm\sqrt{1/f_{in}})`             :math:`U(\pm\sqrt{1/f_{in}})`
    =========================  ========================================  =======================================

    The three input projections count as one matrix under ``xavier``, hence the 3. ``km`` is
    the default of MUSE's code; its authors call the step from Xavier to this smaller law essential. ``adanorm`` is what
    ``--init_method km`` means in AdaNorm's code.

    Args:
        linear: the projection, changed in place.
        law: one of :data:`INIT_LAWS`.
        role: ``"in"`` or ``"out"``.
    """
    _check_law(law)
    if role not in ("in", "out"):
        raise ValueError(f"role must be 'in' or 'out', got {role!r}")
    fan_in, fan_out = linear.in_features, linear.out_features
    if law == "xavier":
        bound = math.sqrt(6 / (fan_in + (3 * fan_out if role == "in" else fan_out)))
    else:
        bound = math.sqrt((1 if role == "in" or law == "adanorm" else 3) / fan_in)
    _uniform_(linear, bound)


def init_ffn_(linear: nn.Linear, law: str, layer_index: int) -> None:
    r"""Initialise a linear map of the feed-forward network as the released code does; the bias becomes 0.

    =======================  ================================================================
    law                      weight
    =======================  ================================================================
    ``km``                   :math:`U(\pm\sqrt{1/f_{in}})`
    ``xavier``, ``adanorm``  :math:`U(\pm g\sqrt{6/(f_{in}+f_{out})})` with :math:`g=1`
    ``xi``                   the same with :math:`g=1/\sqrt{l+1}` in layer :math:`l=0,1,\dots`
    ``fixup``                the same with :math:`g=1/\sqrt{6}`
    =======================  ================================================================

    Args:
        linear: the map, changed in place.
        law: one of :data:`INIT_LAWS`.
        layer_index: position :math:`l` of the layer in its stack; only ``xi`` depends on it.
    """
    _check_law(law)
    fan_in, fan_out = linear.in_features, linear.out_features
    if law == "km":
        bound = math.sqrt(1 / fan_in)
    else:
        gain = {"xi": 1 / math.sqrt(layer_index + 1), "fixup": 1 / math.sqrt(6)}.get(law, 1.0)
        bound = gain * math.sqrt(6 / (fan_in + fan_out))
    _uniform_(linear, bound)
