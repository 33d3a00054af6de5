r"""LayerNorm without gain and bias, and two variants that change only its gradient or its scale.

"Understanding and Improving Layer Normalization", Jingjing Xu, Xu Sun, Zhiyuan Zhang, Guangxiang Zhao, Junyang Lin,
NeurIPS 2019, `arXiv:1911.07013 <https://arxiv.org/abs/1911.07013>`_.

With :math:`y = (x - \mu) / s` over the last dimension(s), and :math:`\mathrm{sg}` the stop-gradient:

========================  =====================================  ============================================
class                     output                                 gradient
========================  =====================================  ============================================
:class:`LayerNormSimple`  :math:`y`                              full
:class:`DetachNorm`       :math:`y`                              not through :math:`\mu`, :math:`s` or both
:class:`AdaNorm`          :math:`C\,(1 - k\,\mathrm{sg}(y))\,y`  through the :math:`y` outside sg only
========================  =====================================  ============================================

Two conventions exist for :math:`s`, with :math:`H` the number of normalised elements:

* ``unbiased=True`` (default), the authors' released code:
  :math:`s = \sqrt{\tfrac{1}{H-1}\sum_i (x_i-\mu)^2} + \epsilon`.
* ``unbiased=False``, the paper: :math:`\sigma^2 = \tfrac{1}{H}\sum_i (x_i-\mu)^2`. The paper has no :math:`\epsilon`;
  :math:`s = \sqrt{\sigma^2 + \epsilon}` is our choice, so that :class:`LayerNormSimple` equals
  ``nn.LayerNorm(elementwise_affine=False)``.

None of them has a parameter or a running statistic: training and evaluation compute the same. Half-precision inputs are
normalised in float32 and the result is cast back, because a row of tiny variance has gradients of order
:math:`1/\epsilon`, beyond the range of float16; float16 gradients are cut at its largest number. As in
``nn.LayerNorm``, the square of an input must fit into float32.

The gradient of :class:`LayerNormSimple` and :class:`DetachNorm` is computed from their output, which most layers after
a norm keep anyway; ``nn.LayerNorm`` keeps its input instead. An operation that changes the output in place is therefore
an error in the backward pass.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fairseq_ext.modules.norm_function import normalize

__all__ = [
    "NORMS",
    "NORM_CLASSES",
    "AdaNorm",
    "DetachNorm",
    "LayerNormSimple",
    "create_norm",
]

_DETACH = ("both", "mean", "std")


def _check_numbers(eps: float, scale: float = 1.0, k: float = 0.0) -> None:
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be finite and at least 0, got {eps}")
    for name, value in (("scale", scale), ("k", k)):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")


def _as_shape(normalized_shape: int | Sequence[int], unbiased: bool) -> tuple[int, ...]:
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if unbiased and math.prod(shape) < 2:
        raise ValueError(f"normalized_shape must have at least 2 elements with unbiased=True, got {shape}")
    return shape


class _Norm(nn.Module):
    """What the norms share: the shape, the convention, and how old checkpoints load."""

    def __init__(self, normalized_shape: int | Sequence[int], eps: float, unbiased: bool) -> None:
        super().__init__()
        _check_numbers(eps)
        self.normalized_shape = _as_shape(normalized_shape, unbiased)
        self.eps = eps
        self.unbiased = unbiased

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, unbiased={self.unbiased}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # The authors' module registers a weight and a bias that its forward never reads: their checkpoints hold ones
        # (which weight decay may have shrunk together) and zeros. Any other value comes from a LayerNorm that used
        # it, and the model without it computes something else.
        weight, bias = (state_dict.pop(prefix + name, None) for name in ("weight", "bias"))
        if (weight is not None and weight.min() != weight.max()) or (bias is not None and bias.any()):
            warnings.warn(
                f"{type(self).__name__} has no parameters: dropped a trained {prefix}weight or {prefix}bias",
                stacklevel=2,
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class LayerNormSimple(_Norm):
    r"""Layer normalisation without gain and bias.

    .. math:: y = \frac{x - \mu}{s}

    LayerNorm-simple of Xu et al., "Understanding and Improving Layer Normalization" (arXiv:1911.07013).

    Args:
        normalized_shape: size(s) of the last dimension(s), as for :class:`torch.nn.LayerNorm`.
        eps: added for stability (default and released code: 1e-5).
        unbiased: True (default, released code) divides by the unbiased standard deviation plus ``eps``; False (paper)
            by the biased one, with ``eps`` inside the root (our choice).

    Shape:
        - Input: :math:`(*, \text{normalized\_shape})`
        - Output: the same shape and dtype

    Raises:
        ValueError: ``unbiased`` with fewer than two elements to normalise, or a number that is not finite.

    Example:
        >>> LayerNormSimple(512)(torch.randn(7, 4, 512)).shape
        torch.Size([7, 4, 512])
    """

    def __init__(self, normalized_shape: int | Sequence[int], eps: float = 1e-5, unbiased: bool = True) -> None:
        super().__init__(normalized_shape, eps, unbiased)

    def forward(self, x: Tensor) -> Tensor:
        return normalize(x, list(self.normalized_shape), self.eps, self.unbiased)


class AdaNorm(_Norm):
    r"""Adaptive normalisation: the gain and bias are replaced by a detached function of the normalised input.

    .. math:: z = \phi(y) \odot y, \qquad \phi(y) = C\,(1 - k\,\mathrm{sg}(y)), \qquad y = \frac{x - \mu}{s}

    AdaNorm of Xu et al., "Understanding and Improving Layer Normalization" (arXiv:1911.07013). The mean of
    :math:`\phi` is exactly :math:`C`. The output is not centred: its mean is :math:`-kC\,\overline{y^2}`. As a function
    of :math:`y` it peaks at :math:`y = 1/(2k)` and is negative beyond :math:`y = 1/k`: a strong positive outlier
    changes its sign. At most a share :math:`k^2` of a row can lie beyond :math:`1/k` (Chebyshev).

    Args:
        normalized_shape: size(s) of the last dimension(s), as for :class:`torch.nn.LayerNorm`.
        scale: :math:`C`. Default 1.0; the released code defaults to 2.0, its IWSLT14 De-En command uses 1, its scripts
            also 0.8 and 1.5.
        k: slope of :math:`\phi` (default, and constant in the paper and the released code: 0.1).
        eps: added for stability (default and released code: 1e-5).
        unbiased: True (default, released code) divides by the unbiased standard deviation plus ``eps``; False (paper)
            by the biased one, with ``eps`` inside the root (our choice).

    Shape:
        - Input: :math:`(*, \text{normalized\_shape})`
        - Output: the same shape and dtype

    Raises:
        ValueError: ``unbiased`` with fewer than two elements to normalise, or a number that is not finite.

    Example:
        >>> AdaNorm(512, scale=2.0)
        AdaNorm((512,), scale=2.0, k=0.1, eps=1e-05, unbiased=True)
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        scale: float = 1.0,
        k: float = 0.1,
        eps: float = 1e-5,
        unbiased: bool = True,
    ) -> None:
        super().__init__(normalized_shape, eps, unbiased)
        _check_numbers(eps, scale, k)
        self.scale = scale
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        return normalize(x, list(self.normalized_shape), self.eps, self.unbiased, self.scale, self.k)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, scale={self.scale}, k={self.k}, eps={self.eps}, unbiased={self.unbiased}"


class DetachNorm(_Norm):
    r"""LayerNorm-simple whose statistics are constants to the gradient.

    .. math:: y = \frac{x - \mathrm{sg}(\mu)}{\mathrm{sg}(s)}

    DetachNorm of Xu et al., "Understanding and Improving Layer Normalization" (arXiv:1911.07013): the control
    that shows how much of layer normalisation's benefit lies in the derivatives of its mean and variance. It is not a
    norm to train large models with: the authors report that it diverges on WMT14 En-De.

    Args:
        normalized_shape: size(s) of the last dimension(s), as for :class:`torch.nn.LayerNorm`.
        detach: what is detached: ``"both"`` (default: DetachNorm), ``"mean"`` or ``"std"`` (the paper's ablations).
        eps: added for stability (default and released code: 1e-5).
        unbiased: True (default, released code) divides by the unbiased standard deviation plus ``eps``; False (paper)
            by the biased one, with ``eps`` inside the root (our choice).

    Shape:
        - Input: :math:`(*, \text{normalized\_shape})`
        - Output: the same shape and dtype

    Raises:
        ValueError: unknown ``detach``, or ``unbiased`` with fewer than two elements to normalise.

    Example:
        >>> DetachNorm(512, detach="std")
        DetachNorm((512,), detach='std', eps=1e-05, unbiased=True)
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        detach: str = "both",
        eps: float = 1e-5,
        unbiased: bool = True,
    ) -> None:
        super().__init__(normalized_shape, eps, unbiased)
        if detach not in _DETACH:
            raise ValueError(f"detach must be one of {', '.join(map(repr, _DETACH))}, got {detach!r}")
        self.detach = detach

    def forward(self, x: Tensor) -> Tensor:
        detach_mean, detach_std = self.detach != "std", self.detach != "mean"
        return normalize(x, list(self.normalized_shape), self.eps, self.unbiased, 1.0, 0.0, detach_mean, detach_std)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, detach={self.detach!r}, eps={self.eps}, unbiased={self.unbiased}"


NORM_CLASSES: dict[str, type[nn.Module]] = {
    "layernorm": nn.LayerNorm,
    "layernorm-simple": LayerNormSimple,
    "adanorm": AdaNorm,
    "detachnorm": DetachNorm,
}
NORMS = tuple(NORM_CLASSES)


def create_norm(
    kind: str,
    normalized_shape: int | Sequence[int],
    *,
    eps: float = 1e-5,
    adanorm_scale: float = 1.0,
    adanorm_k: float = 0.1,
    detach: str = "both",
    unbiased: bool = True,
) -> nn.Module:
    """The norm called ``kind``, one of :data:`NORMS`.

    Args:
        kind: ``"layernorm"`` (:class:`torch.nn.LayerNorm`, with gain and bias), ``"layernorm-simple"``, ``"adanorm"``
            or ``"detachnorm"``.
        normalized_shape: as for :class:`torch.nn.LayerNorm`.
        eps: every norm's epsilon.
        adanorm_scale: ``scale`` of :class:`AdaNorm`; the other norms have none.
        adanorm_k: ``k`` of :class:`AdaNorm`; the other norms have none.
        detach: ``detach`` of :class:`DetachNorm`; the other norms have none.
        unbiased: convention of the standard deviation, for every norm but ``"layernorm"``.

    Returns:
        A new module; only ``"layernorm"`` has parameters.

    Raises:
        ValueError: ``kind`` is not in :data:`NORMS`, or what the class itself refuses.

    Example:
        >>> create_norm("adanorm", 512, adanorm_scale=2.0)
        AdaNorm((512,), scale=2.0, k=0.1, eps=1e-05, unbiased=True)
    """
    _check_numbers(eps, adanorm_scale, adanorm_k)
    if kind not in NORMS:
        nearest = difflib.get_close_matches(str(kind).lower(), NORMS, n=1, cutoff=0.0)[0]
        raise ValueError(f"norm: unknown kind {kind!r}, did you mean {nearest!r}? Allowed are {', '.join(NORMS)}")
    options: dict[str, dict[str, Any]] = {
        "layernorm": {},
        "layernorm-simple": {"unbiased": unbiased},
        "adanorm": {"scale": adanorm_scale, "k": adanorm_k, "unbiased": unbiased},
        "detachnorm": {"detach": detach, "unbiased": unbiased},
    }
    return NORM_CLASSES[kind](normalized_shape, eps=eps, **options[kind])
