"""Dynamic convolution: the kernel against the torch path."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from fairseq_ext.modules import dynamic_convolution as module
from fairseq_ext.modules.muse import MultiScaleConv
from tests.helpers import refuses_batched_gradients, refuses_second_derivative
from tests.kernels.compiled import CAPABILITIES, Compiled, compile_launches
from tests.kernels.interpreted import DEVICE, kernel


@pytest.fixture
def convolution() -> ModuleType:
    return kernel("dynamic_convolution")


def run(function, x: Tensor, kernels: Tensor, grad: Tensor, first: int) -> tuple[Tensor, ...]:
    x, kernels = (tensor.detach().clone().requires_grad_() for tensor in (x, kernels))
    y = function(x, kernels, first)
    return y.detach(), *torch.autograd.grad(y, (x, kernels), grad.to(y.dtype))


def draw(
    steps: int, batch: int, heads: int, size: int, width: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE, dtype)

    return normal(steps, batch, heads * size), normal(steps, batch, heads, width), normal(steps, batch, heads * size)


def assert_near(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], bound: float) -> None:
    """Within ``bound`` of the largest number of each tensor."""
    for one, other in zip(got, expected, strict=True):
        largest = other.abs().max().item()
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=bound * largest)


@pytest.mark.parametrize(
    ("steps", "width", "first"),
    [
        pytest.param(37, 3, -1, id="centred"),
        pytest.param(70, 15, -14, id="causal, several blocks"),
        pytest.param(34, 17, -8, id="the widest of a short halo"),
        pytest.param(66, 31, -15, id="centred and wide"),
        pytest.param(65, 33, -32, id="the widest, causal"),
        pytest.param(5, 9, -4, id="wider than the sequence"),
        pytest.param(40, 4, 2, id="ahead"),
        pytest.param(2, 1, 0, id="one tap"),
    ],
)
def test_equals_the_torch_path(convolution, steps, width, first):
    tensors = draw(steps, 2, 2, 8, width)
    got = run(convolution.dynamic_convolution, *tensors, first)
    expected = run(module.dynamic_convolution, *(tensor.double() for tensor in tensors), first)
    assert_near(got, expected, 1e-6)


def test_many_channels(convolution):
    """More than a program has at once, and not a multiple of it."""
    tensors = draw(10, 1, 2, 72, 3)
    got = run(convolution.dynamic_convolution, *tensors, -1)
    assert_near(got, run(module.dynamic_convolution, *(tensor.double() for tensor in tensors), -1), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(convolution, dtype):
    tensors = draw(80, 1, 2, 24, 15, dtype)
    got = run(convolution.dynamic_convolution, *tensors, -14)
    assert all(tensor.dtype == dtype for tensor in got)
    exact = run(module.dynamic_convolution, *(tensor.double() for tensor in tensors), -14)
    assert_near(got, exact, torch.finfo(dtype).eps)  # one rounding


def test_kernels_are_in_float32_under_autocast(convolution):
    x, kernels, grad = draw(20, 1, 2, 8, 3)
    tensors = x.bfloat16(), kernels, grad
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        got = run(convolution.dynamic_convolution, *tensors, -1)
        expected = run(module.dynamic_convolution, *tensors, -1)
    assert [tensor.dtype for tensor in got] == [tensor.dtype for tensor in expected]
    assert_near(got, expected, 2 * torch.finfo(torch.bfloat16).eps)  # the torch path rounds the gradient of kernels


def test_layouts_and_nothing(convolution):
    x, kernels, grad = draw(9, 2, 2, 8, 3)
    expected = run(convolution.dynamic_convolution, x, kernels, grad, -1)
    turned = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in (x, kernels, grad)]
    got = run(convolution.dynamic_convolution, *turned, -1)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    for shape in ((0, 2), (9, 0)):
        empty = [tensor[: shape[0], : shape[1]] for tensor in (x, kernels, grad)]
        y, dx, dkernels = run(convolution.dynamic_convolution, *empty, -1)
        assert y.shape == dx.shape == (*shape, 16) and dkernels.shape == (*shape, 2, 3)


def test_sequences_and_heads_do_not_see_each_other(convolution):
    x, kernels, grad = draw(40, 2, 2, 8, 3)
    x[:, 1] = torch.nan
    x[:, 0, 8:] = torch.nan
    got = run(convolution.dynamic_convolution, x, kernels, grad, -1)
    expected = run(convolution.dynamic_convolution, x[:, :1, :8], kernels[:, :1, :1], grad[:, :1, :8], -1)
    assert torch.equal(got[0][:, :1, :8], expected[0])
    assert torch.equal(got[1][:, :1, :8], expected[1])
    assert torch.equal(got[2][:, :1, :1], expected[2])


def test_what_the_kernel_takes(convolution):
    def takes(x=(8, 1, 16), kernels=(8, 1, 2, 3), dtypes=(torch.float32, torch.float32)) -> bool:
        return convolution.takes(torch.zeros(x, dtype=dtypes[0]), torch.zeros(kernels, dtype=dtypes[1]))

    assert takes() and takes(kernels=(8, 1, 2, 33)) and takes(kernels=(8, 1, 2, 1)) and takes(kernels=(8, 1, 1, 3))
    assert not takes(kernels=(1, 1, 2, 3)) and not takes((1, 1, 16), (1, 1, 2, 3)), "steps of a decoder"
    assert not takes(kernels=(8, 1, 2, 34)) and not takes(kernels=(8, 1, 4, 3))
    large = torch.zeros(1).expand(8, 2**25 // 16 + 1, 16), torch.zeros(1).expand(8, 2**25 // 16 + 1, 2, 3)
    assert not convolution.takes(*large) and convolution.takes(*(tensor[:, 1:] for tensor in large))
    half, single = torch.bfloat16, torch.float32
    assert takes(dtypes=(half, half)) and not takes(dtypes=(half, single)) and not takes(dtypes=(single, half))
    with torch.autocast("cpu", dtype=half):
        assert takes(dtypes=(half, single)) and takes(dtypes=(half, half)) and takes()
        assert not takes(dtypes=(single, half))
        assert not takes(dtypes=(torch.float16, torch.float16))


@pytest.mark.parametrize("gate", [True, False])
def test_muse_hands_over_whole_sequences(convolution, monkeypatch, gate):
    torch.manual_seed(0)
    branch = MultiScaleConv(16, 2, [3, 15], causal=True, gate=gate).to(DEVICE).eval()
    x = torch.randn(20, 2, 16, device=DEVICE, requires_grad=True)

    def run() -> list[Tensor]:
        y = branch(x)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *branch.parameters()])]

    expected = run()
    launches = []
    launch = convolution.dynamic_convolution
    monkeypatch.setattr(convolution, "dynamic_convolution", lambda *args: launches.append(args) or launch(*args))
    monkeypatch.setattr(module, "usable", lambda *tensors: True)
    assert_near(tuple(run()), tuple(expected), 2e-6)
    assert len(launches) == (1 if gate else 2)  # the gate mixes kernels of all widths into one
    steps, state = [], None
    for position in x:
        y, state = branch.step(position[None], state)
        steps.append(y)
    assert len(launches) == (1 if gate else 2)
    torch.testing.assert_close(torch.cat(steps), expected[0])


def launches(convolution: ModuleType) -> Iterator[str]:
    """Each dtype and each width of the halo; two dtypes, as under autocast; channels in more than one piece."""
    half, single = torch.bfloat16, torch.float32
    cases = [(single, single, 31, 64), (torch.float16, torch.float16, 15, 64)]
    cases += [(half, half, 31, 96), (half, single, 31, 64)]
    for x_dtype, dtype, width, size in cases:
        x = torch.zeros(130, 2, 4 * size, dtype=x_dtype, requires_grad=True)
        kernels = torch.zeros(130, 2, 4, width, dtype=dtype, requires_grad=True)
        convolution.dynamic_convolution(x, kernels, 1 - width).sum().backward()
        yield f"x {x_dtype}, kernels {dtype}, {width} taps, {size} channels"


@pytest.fixture(scope="module")
def compiled() -> list[Compiled]:
    return compile_launches("dynamic_convolution", launches)


def test_every_launch_fits_its_card(compiled):
    names = ("_dynamic_convolution_forward", "_dynamic_convolution_backward")
    assert {(one.kernel, one.capability) for one in compiled} == set(itertools.product(names, CAPABILITIES))
    for one in compiled:
        one.assert_fits()


def test_half_precision_is_multiplied_by_tensor_cores(compiled):
    for one in compiled:
        products = {80: "mma.sync", 90: "wgmma.mma_async"}[one.capability]
        assert (products in one.ptx) == ("x torch.float32" not in one.case), one.case


def test_there_is_no_second_derivative_and_none_of_many_outputs_at_once(convolution: ModuleType) -> None:
    x, weight, _ = draw(5, 1, 2, 4, 3)
    inputs = [tensor.requires_grad_() for tensor in (x, weight)]
    function = lambda x, weight: convolution.dynamic_convolution(x, weight, -1)  # noqa: E731
    refuses_second_derivative(function, *inputs, match="kernels.disabled")
    refuses_batched_gradients(function, *inputs, match="kernels.disabled")
