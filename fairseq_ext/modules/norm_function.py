"""What the norms of :mod:`fairseq_ext.modules.normalization` compute, with its closed-form gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fairseq_ext import kernels
from fairseq_ext.precision import widen
from fairseq_ext.second_derivative import link, of_formula

__all__ = ["normalize"]


def normalize(
    x: Tensor,
    normalized_shape: list[int],
    eps: float,
    unbiased: bool,
    scale: float = 1.0,
    k: float = 0.0,
    detach_mean: bool = False,
    detach_std: bool = False,
) -> Tensor:
    r""":math:`z = C (1 - k\,\mathrm{sg}(y))\,y` with :math:`y = (x - \mu) / s`, in the dtype of ``x``: see the norms"""
    if list(x.shape[-len(normalized_shape) :]) != normalized_shape:
        raise RuntimeError(f"input must end with the normalized_shape {normalized_shape}, got shape {list(x.shape)}")
    if not torch.jit.is_scripting():  # alone: TorchScript would compile the rest of a longer condition
        if kernels.usable(x) and kernels.load("norm").takes(x, normalized_shape):
            arguments = normalized_shape, eps, unbiased, scale, k, detach_mean, detach_std
            return kernels.load("norm").normalize(x, *arguments)
    wide = widen(x)
    if torch.jit.is_scripting() or torch.compiler.is_compiling():
        z = _plain_normalize(wide, normalized_shape, eps, unbiased, scale, k, detach_mean, detach_std)
    else:
        shape = tuple(normalized_shape)
        z = _Normalize.apply(wide, shape, eps, unbiased, scale, k, detach_mean, detach_std)[0]
    return z.to(x.dtype)


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
        eps: float,
        unbiased: bool,
        scale: float,
        k: float,
        detach_mean: bool,
        detach_std: bool,
    ) -> tuple[Tensor, ...]:
        """``z``, a link to ``x``, then what the backward pass needs: ``1 / s``, ``stretch``, and ``y`` if not ``z``."""
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
            y *= 1 / ratio
            inv_s = rstd / ratio
            stretch = (bessel * ratio).sqrt()
        else:
            y, _, inv_s = torch.native_layer_norm(x, normalized_shape, gain, bias, eps)
            stretch = torch.ones_like(inv_s)
        z = torch.addcmul(y, y, y, value=-k) if k else y
        if scale != 1:
            z = z * scale if z is y else z.mul_(scale)
        return (z, link(x), inv_s, stretch) if z is y else (z, link(x), inv_s, stretch, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        z, to_x, inv_s, stretch, *y = output
        ctx.mark_non_differentiable(inv_s, stretch, *y)
        ctx.set_materialize_grads(False)  # they would be zeros as large as y
        ctx.save_for_backward(y[0] if y else z, to_x, inv_s, stretch)
        ctx.constants = inputs[1:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_link: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        dx = grad_link
        if grad is not None:
            y, to_x, inv_s, stretch = _saved(ctx)
            with torch.no_grad():
                h = _gradient(grad, y, inv_s, stretch, ctx.constants)
            if torch.is_grad_enabled():
                # This is x less its mean. No output and no gradient depends on the mean: all derivatives are as at x.
                h = of_formula(h, lambda x: _plain_normalize(x, *ctx.constants), (y / inv_s).detach() + to_x, (grad,))
            dx = h if grad_link is None else h + grad_link
        return dx, *(None,) * 7


def _saved(ctx: Any) -> tuple[Tensor, ...]:
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "inplace operation" not in str(error):
            raise
        raise RuntimeError(
            "the output of LayerNormSimple or DetachNorm was changed in place, but their gradient needs it: write "
            "x = norm(x) + y for x = norm(x); x += y, and inplace=False where an activation follows"
        ) from error


def _gradient(grad: Tensor, y: Tensor, inv_s: Tensor, stretch: Tensor, constants: tuple[Any, ...]) -> Tensor:
    """The gradient of the input, given ``grad`` of the output; ``constants`` are the arguments after the input."""
    normalized_shape, _, _, scale, k, detach_mean, detach_std = constants
    h = torch.addcmul(grad, grad, y, value=-k) if k else grad
    factor = scale * inv_s
    if not (detach_mean or detach_std):
        factor /= stretch  # the fused kernel multiplies by it
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
    # Scaled last, where a new tensor can be changed in place: a third of the time that another tensor would take.
    return h * factor if h is grad else h.mul_(factor)


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
