"""AdaNorm, LayerNorm-simple and DetachNorm: the kernel against the torch path."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fairseq_ext import kernels
from fairseq_ext.modules import AdaNorm
from fairseq_ext.modules.norm_function import normalize
from tests.helpers import refuses_batched_gradients, refuses_second_derivative
from tests.kernels.compiled import CAPABILITIES, Compiled, compile_launches
from tests.kernels.interpreted import DEVICE, kernel

VARIANTS: dict[str, dict[str, Any]] = {
    "simple": {"unbiased": True},
    "biased": {"unbiased": False},
    "adanorm": {"unbiased": True, "scale": 2.0, "k": 0.2},
    "adanorm, biased": {"unbiased": False, "scale": 0.8, "k": 0.1},
    "detach both": {"unbiased": True, "detach_mean": True, "detach_std": True},
    "detach mean": {"unbiased": False, "detach_mean": True},
    "detach std": {"unbiased": True, "detach_std": True},
}
HALF = (torch.float16, torch.bfloat16)


@pytest.fixture
def norm() -> ModuleType:
    return kernel("norm")


def run(function, x: Tensor, grad: Tensor, shape: list[int], eps: float = 1e-5, **options) -> tuple[Tensor, Tensor]:
    x = x.detach().clone().requires_grad_()  # keeps strides
    z = function(x, shape, eps, **options)
    return z.detach(), torch.autograd.grad(z, x, grad)[0]


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.randn(2, *shape, generator=generator)
    return (3 * x + 1).to(DEVICE, dtype), grad.to(DEVICE, dtype)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("size", [2, 8, 130, 1024])
def test_equals_the_torch_path(norm, options, size):
    x, grad = draw(3, size)
    got = run(norm.normalize, x, grad, [size], **options)
    expected = run(normalize, x.double(), grad.double(), [size], **options)
    for one, other in zip(got, expected, strict=True):
        # Terms of the order of 1 cancel in the gradient, all of them where a row has two numbers.
        torch.testing.assert_close(one.double(), other, rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("options", [VARIANTS["adanorm"], VARIANTS["detach mean"]], ids=["adanorm", "detach mean"])
def test_half_precision_is_computed_in_float32(norm, dtype, options):
    x, grad = draw(4, 96, dtype=dtype)
    got = run(norm.normalize, x, grad, [96], **options)
    expected = run(normalize, x, grad, [96], **options)
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == dtype
        # Both round a float32 number once, at worst to neighbours.
        torch.testing.assert_close(one, other, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps / 8)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_constant_rows(norm, dtype):
    """Padded positions: zeros, and a gradient of 1 / eps times that of the output, within the dtype's range."""
    x = torch.full((2, 96), 0.1, device=DEVICE, dtype=dtype)
    x[1] = 0
    grad = draw(2, 96, dtype=dtype)[1]
    z, dx = run(norm.normalize, x, grad, [96], unbiased=True)
    wide = grad.double()
    limit = torch.finfo(dtype).max
    assert not z.any()
    expected = ((wide - wide.mean(-1, keepdim=True)) / 1e-5).clamp(-limit, limit)
    torch.testing.assert_close(dx.double(), expected, rtol=torch.finfo(dtype).eps * 4, atol=1.0)


def test_large_offset_keeps_its_digits(norm):
    steps, grad = draw(1, 64)
    x = 1000 + (steps * 8).round() / 1024
    got = run(norm.normalize, x, grad, [64], unbiased=True)
    expected = run(normalize, x.double(), grad.double(), [64], unbiased=True)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-5 * other.abs().max().item())


def test_dimensions_layouts_and_nothing(norm):
    x, grad = draw(3, 5, 4)
    together = run(norm.normalize, x, grad, [5, 4], unbiased=True)
    flat = run(norm.normalize, x.flatten(1), grad.flatten(1), [20], unbiased=True)
    for one, other in zip(together, flat, strict=True):
        assert torch.equal(one.flatten(1), other)
    plain = run(norm.normalize, x.mT.contiguous(), grad.mT.contiguous(), [5], unbiased=True)
    turned = run(norm.normalize, x.mT, grad.mT, [5], unbiased=True)
    expanded = run(norm.normalize, x[:1].expand(3, 5, 4), grad[:1, :1, :1].expand(3, 5, 4), [4], unbiased=True)
    assert torch.equal(plain[0], turned[0]) and torch.equal(plain[1], turned[1])
    assert torch.equal(expanded[0][0], expanded[0][2])
    z, dx = run(norm.normalize, x[:0], grad[:0], [4], unbiased=True)
    assert z.shape == dx.shape == (0, 5, 4)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter computes with numpy
def test_rows_do_not_see_each_other(norm):
    x, grad = draw(9, 8)  # one program
    x[4] = torch.nan
    grad[6] = torch.inf
    got = run(norm.normalize, x, grad, [8], unbiased=True, k=0.1)
    alone = run(norm.normalize, x[3:4], grad[3:4], [8], unbiased=True, k=0.1)
    assert torch.equal(got[0][3:4], alone[0]) and torch.equal(got[1][3:4], alone[1])
    assert got[0][4].isnan().all() and got[1][4].isnan().all() and got[1][6].isnan().all()
    again = run(norm.normalize, x, grad, [8], unbiased=True, k=0.1)
    assert all(torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in zip(got, again, strict=True))


def test_nan_is_not_taken_for_a_large_gradient(norm):
    x, grad = draw(1, 8, dtype=torch.float16)
    grad[0, 2] = torch.nan
    assert run(norm.normalize, x, grad, [8], unbiased=True)[1].isnan().all()


def test_the_modules_hand_over(norm, monkeypatch):
    x, _ = draw(2, 8)
    expected = norm.normalize(x, [8], 1e-5, True, 2.0, 0.1)
    monkeypatch.setattr(kernels, "usable", lambda *tensors: True)
    monkeypatch.setattr(norm, "normalize", lambda *arguments: (arguments, expected))
    arguments, z = AdaNorm(8, scale=2.0)(x)
    assert z is expected and arguments[1:] == ([8], 1e-5, True, 2.0, 0.1, False, False)
    with pytest.raises(RuntimeError, match="normalized_shape"):
        AdaNorm(8)(torch.zeros(2, 7))
    assert AdaNorm((2, 8193))(torch.zeros(1, 2, 8193)).shape == (1, 2, 8193)  # longer than a program's registers


def launches(norm: ModuleType) -> Iterator[str]:
    """Short rows, odd ones, powers of two, the longest; each dtype and each detachment once."""
    cases = [(size, torch.bfloat16, "adanorm") for size in (3, 1000, 16384)]
    cases += [(size, torch.float32, "adanorm") for size in (512, 16384)]
    cases += [(512, torch.float16, name) for name in ("simple", "detach both", "detach mean", "detach std")]
    for size, dtype, name in cases:
        x = torch.zeros(40, size, dtype=dtype, requires_grad=True)
        norm.normalize(x, [size], 1e-5, **VARIANTS[name]).sum().backward()
        yield f"{name}, {size} x {dtype}"


@pytest.fixture(scope="module")
def compiled() -> list[Compiled]:
    return compile_launches("norm", launches)


def test_every_launch_fits_its_card(compiled):
    functions = {(one.kernel, one.capability) for one in compiled}
    assert functions == set(itertools.product(("_normalize_forward", "_normalize_backward"), CAPABILITIES))
    for one in compiled:
        one.assert_fits()


def test_rows_are_read_and_written_in_pieces_of_16_bytes(compiled):
    wide = [one for one in compiled if "512 x" in one.case]
    assert wide
    for one in wide:
        tiles = 2 if one.kernel.endswith("forward") else 3
        numbers = 16 * 4 if "float32" in one.case else 16 * 2
        pieces = one.ptx.count("ld.global.v4.b32") + one.ptx.count("st.global.v4.b32")
        assert pieces == tiles * numbers // 16, one.case


def test_there_is_no_second_derivative_and_none_of_many_outputs_at_once(norm: ModuleType) -> None:
    x = draw(6, 4)[0].t().requires_grad_()  # not contiguous
    refuses_second_derivative(lambda x: norm.normalize(x, [6], 1e-5, True), x, match="kernels.disabled")
    refuses_batched_gradients(lambda x: norm.normalize(x, [6], 1e-5, True), x, match="kernels.disabled")
