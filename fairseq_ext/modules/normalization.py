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
:math:`1/\epsilon`, beyond the range of float16; there they end at its largest number. As in ``nn.LayerNorm``, the
square of an input must fit into float32.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fairseq_ext.precision import widen

__all__ = [
    "NORMS",
    "AdaNorm",
    "DetachNorm",
    "LayerNormSimple",
    "ada_norm",
    "create_norm",
    "detach_norm",
    "layer_norm_simple",
]

NORMS = ("layernorm", "layernorm-simple", "adanorm", "detachnorm")

_DETACH = ("both", "mean", "std")


class _Normalize(torch.autograd.Function):
    r""":math:`z = C (1 - k\,\mathrm{sg}(y))\,y` and its closed-form gradient.

    With :math:`g = \partial L / \partial z`, :math:`h = C (1 - k y)\,g` and :math:`Y = (x - \mu) / \mathrm{std}`:

    .. math::
        \frac{\partial L}{\partial x_j} = \frac{1}{s} \Big[ h_j - \bar h - \frac{Y_j}{H-1} \sum_i h_i y_i \Big]

    (:math:`y` for :math:`Y` and :math:`H` for :math:`H-1` when ``unbiased=False``). Detaching the mean removes
    :math:`\bar h`, detaching the standard deviation removes the sum.

    Both directions run on torch's fused layer-norm kernels, whose convention is the biased one; two factors per row
    turn it into any other. ``stretch`` is :math:`t` with :math:`t^2 y / H = Y / (H-1)`: called on :math:`y` with mean 0
    and reciprocal deviation :math:`t`, the backward kernel computes :math:`t\,(h - \bar h - t^2 y\,\overline{h y})`,
    which is the bracket above times :math:`t`. It is given :math:`y` and not :math:`x` because the CPU kernel expands
    :math:`x - \mu` into differences of sums, which loses all digits of a row with a large offset and a tiny variance.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        normalized_shape: tuple[int, ...],
        scale: float,
        k: float,
        eps: float,
        unbiased: bool,
        detach_mean: bool,
        detach_std: bool,
    ) -> tuple[Tensor, ...]:
        """``z``, then what the backward pass needs: ``1 / s``, ``stretch``, and ``y`` where that is not ``z``."""
        # The CPU kernel is vectorised only with a gain and a bias: half the time for the same result.
        gain = x.new_ones(normalized_shape) if x.is_cpu else None
        bias = x.new_zeros(normalized_shape) if x.is_cpu else None
        if unbiased:
            # The smallest normal number for epsilon: invisible beside any variance, and it keeps constant rows at
            # y = 0 with a finite 1 / std, so that no division below needs a guard.
            y, _, rstd = torch.native_layer_norm(x, normalized_shape, gain, bias, torch.finfo(x.dtype).tiny)
            size = math.prod(normalized_shape)
            bessel = math.sqrt(size / (size - 1))
            ratio = bessel + eps * rstd  # s / (biased standard deviation)
            y /= ratio
            inv_s = rstd / ratio
            stretch = (bessel * ratio).sqrt()
        else:
            y, _, inv_s = torch.native_layer_norm(x, normalized_shape, gain, bias, eps)
            stretch = torch.ones_like(inv_s)
        z = torch.addcmul(y, y, y, value=-k) if k else y
        z = z if scale == 1 else z * scale
        return (z, inv_s, stretch) if z is y else (z, inv_s, stretch, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        z, inv_s, stretch, *y = output
        ctx.mark_non_differentiable(inv_s, stretch, *y)
        ctx.set_materialize_grads(False)  # zeros as large as y
        ctx.save_for_backward(y[0] if y else z, inv_s, stretch)
        _, normalized_shape, scale, k, _, _, detach_mean, detach_std = inputs
        ctx.constants = normalized_shape, scale, k, detach_mean, detach_std

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 8
        y, inv_s, stretch = ctx.saved_tensors
        normalized_shape, scale, k, detach_mean, detach_std = ctx.constants
        fused = not (detach_mean or detach_std)
        # h, already divided by s, and by the `stretch` that the fused kernel multiplies back.
        h = grad * (scale * (inv_s / stretch if fused else inv_s))
        if k:
            h = torch.addcmul(h, h, y, value=-k)
        if fused:
            mask = [True, False, False]
            h = torch.ops.aten.native_layer_norm_backward(
                h, y, normalized_shape, torch.zeros_like(stretch), stretch, None, None, mask
            )[0]
        else:
            dims = tuple(range(-len(normalized_shape), 0))
            if not detach_mean:
                h = h - h.mean(dims, keepdim=True)
            if not detach_std:
                h = h - y * stretch.square() * (h * y).mean(dims, keepdim=True)
        return h, None, None, None, None, None, None, None


def _normalize(
    x: Tensor,
    normalized_shape: list[int],
    eps: float,
    unbiased: bool,
    scale: float = 1.0,
    k: float = 0.0,
    detach_mean: bool = False,
    detach_std: bool = False,
) -> Tensor:
    wide = widen(x)
    if torch.jit.is_scripting() or torch.compiler.is_compiling():
        z = _plain_normalize(wide, normalized_shape, eps, unbiased, scale, k, detach_mean, detach_std)
    else:
        shape = tuple(normalized_shape)
        z = _Normalize.apply(wide, shape, scale, k, eps, unbiased, detach_mean, detach_std)[0]
    return z.to(x.dtype)


def _plain_normalize(
    x: Tensor,
    normalized_shape: list[int],
    eps: float,
    unbiased: bool,
    scale: float,
    k: float,
    detach_mean: bool,
    detach_std: bool,
) -> Tensor:
    """What :class:`_Normalize` computes, in operations that TorchScript and ``torch.export`` can differentiate."""
    dims = [i - len(normalized_shape) for i in range(len(normalized_shape))]
    mean = x.mean(dims, keepdim=True)
    centred = x - (mean.detach() if detach_mean else mean)
    variance = (centred - centred.mean(dims, keepdim=True)).square().mean(dims, keepdim=True)
    if unbiased:
        size = 1
        for length in normalized_shape:
            size *= length
        s = (variance * (size / (size - 1))).clamp(min=1.2e-38).sqrt() + eps
    else:
        s = (variance + eps).sqrt()
    y = centred / (s.detach() if detach_std else s)
    return scale * (1 - k * y.detach()) * y


def _check_numbers(eps: float, scale: float = 1.0, k: float = 0.0) -> None:
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps: found {eps}, allowed are finite numbers from 0 on")
    for name, value in (("scale", scale), ("k", k)):
        if not math.isfinite(value):
            raise ValueError(f"{name}: found {value}, allowed are finite numbers")


def _as_shape(normalized_shape: int | Sequence[int], unbiased: bool) -> tuple[int, ...]:
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if unbiased and math.prod(shape) < 2:
        raise ValueError(f"normalized_shape: unbiased=True needs at least 2 elements to normalise, found {shape}")
    return shape


def _check_detach(detach: str) -> None:
    if detach not in _DETACH:
        raise ValueError(f"detach: found {detach!r}, allowed are {', '.join(map(repr, _DETACH))}")


def layer_norm_simple(
    x: Tensor, normalized_shape: int | Sequence[int], eps: float = 1e-5, unbiased: bool = True
) -> Tensor:
    """Functional form of :class:`LayerNormSimple`."""
    _check_numbers(eps)
    return _normalize(x, list(_as_shape(normalized_shape, unbiased)), eps, unbiased)


def ada_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    scale: float = 1.0,
    k: float = 0.1,
    eps: float = 1e-5,
    unbiased: bool = True,
) -> Tensor:
    """Functional form of :class:`AdaNorm`."""
    _check_numbers(eps, scale, k)
    return _normalize(x, list(_as_shape(normalized_shape, unbiased)), eps, unbiased, scale, k)


def detach_norm(
    x: Tensor, normalized_shape: int | Sequence[int], detach: str = "both", eps: float = 1e-5, unbiased: bool = True
) -> Tensor:
    """Functional form of :class:`DetachNorm`."""
    _check_numbers(eps)
    _check_detach(detach)
    shape = list(_as_shape(normalized_shape, unbiased))
    return _normalize(x, shape, eps, unbiased, detach_mean=detach != "std", detach_std=detach != "mean")


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
        return _normalize(x, list(self.normalized_shape), self.eps, self.unbiased)


class AdaNorm(_Norm):
    r"""Adaptive normalisation: the gain and bias are replaced by a detached function of the normalised input.

    .. math:: z = \phi(y) \odot y, \qquad \phi(y) = C\,(1 - k\,\mathrm{sg}(y)), \qquad y = \frac{x - \mu}{s}

    AdaNorm of Xu et al., "Understanding and Improving Layer Normalization" (arXiv:1911.07013). The mean of
    :math:`\phi` is exactly :math:`C`. The output is not centred: its mean is :math:`-kC\,\overline{y^2}`. It peaks at
    :math:`y = 1/(2k)` and is negative beyond :math:`y = 1/k`: a strong positive outlier changes its sign. At most
    a share :math:`k^2` of a row can lie there (Chebyshev).

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
        return _normalize(x, list(self.normalized_shape), self.eps, self.unbiased, self.scale, self.k)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, scale={self.scale}, k={self.k}, eps={self.eps}, unbiased={self.unbiased}"


class DetachNorm(_Norm):
    r"""LayerNorm-simple whose statistics are constants to the gradient.

    .. math:: y = \frac{x - \mathrm{sg}(\mu)}{\mathrm{sg}(s)}

    DetachNorm of Xu et al., "Understanding and Improving Layer Normalization" (arXiv:1911.07013): the control
    that shows how much of layer normalisation's benefit lies in the derivatives of its mean and variance. Not a norm to
    train large models with; the authors report that it diverges on WMT14 En-De.

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
        _check_detach(detach)
        self.detach = detach

    def forward(self, x: Tensor) -> Tensor:
        detach_mean, detach_std = self.detach != "std", self.detach != "mean"
        return _normalize(x, list(self.normalized_shape), self.eps, self.unbiased, 1.0, 0.0, detach_mean, detach_std)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, detach={self.detach!r}, eps={self.eps}, unbiased={self.unbiased}"


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
        unbiased: convention of the standard deviation, of every norm but ``"layernorm"``.

    Returns:
        A new module; only ``"layernorm"`` has parameters.

    Raises:
        ValueError: ``kind`` is not in :data:`NORMS`, or what the class itself refuses.

    Example:
        >>> create_norm("adanorm", 512, adanorm_scale=2.0)
        AdaNorm((512,), scale=2.0, k=0.1, eps=1e-05, unbiased=True)
    """
    _check_numbers(eps, adanorm_scale, adanorm_k)
    if kind == "layernorm":
        return nn.LayerNorm(normalized_shape, eps=eps)
    if kind == "layernorm-simple":
        return LayerNormSimple(normalized_shape, eps=eps, unbiased=unbiased)
    if kind == "adanorm":
        return AdaNorm(normalized_shape, scale=adanorm_scale, k=adanorm_k, eps=eps, unbiased=unbiased)
    if kind == "detachnorm":
        return DetachNorm(normalized_shape, detach=detach, eps=eps, unbiased=unbiased)
    nearest = difflib.get_close_matches(str(kind).lower(), NORMS, n=1, cutoff=0.0)[0]
    raise ValueError(f"norm: unknown kind {kind!r}, did you mean {nearest!r}? Allowed are {', '.join(NORMS)}")
