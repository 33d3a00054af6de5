"""Second derivatives of every autograd function with a backward pass of its own: right, or refused."""

from __future__ import annotations

import ast
import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor

from fairseq_ext import losses, modules
from fairseq_ext.losses.bonus import Bonus, plain_terms
from fairseq_ext.losses.common import one_hot
from fairseq_ext.modules.norm_function import _plain_normalize, normalize
from fairseq_ext.modules.topk import _plain_topk_softmax
from tests.helpers import refuses_second_derivative

ROOT = Path(__file__).parents[1]
Function = Callable[[Tensor], Tensor]
TARGET = torch.tensor([0, 3, 4])


def loss(**options: float) -> tuple[Function, Function]:
    """The closed form of the log bonus, and the formula."""
    smoothing = options.pop("smoothing", 0.0) / 5

    def formula(z: Tensor) -> Tensor:
        return sum(plain_terms(z, one_hot(TARGET, z), smoothing, smoothing, Bonus(**options))).sum()

    return lambda z: losses.encouraging_loss(
        z, TARGET, reduction="sum", label_smoothing=5 * smoothing, **options
    ), formula


def norm(
    unbiased: bool, scale: float = 1.0, k: float = 0.0, detach_mean: bool = False, detach_std: bool = False
) -> tuple[Function, Function]:
    """A sum of few outputs, which is linear in them, so that no gradient comes in that depends on the input."""
    options = [5], 1e-5, unbiased, scale, k, detach_mean, detach_std
    return tuple(lambda z, f=f: f(z, *options)[:, :2].sum() for f in (normalize, _plain_normalize))


def softmax(k: int) -> tuple[Function, Function]:
    return (
        lambda z: modules.topk_softmax(z, k)[:, :2].sum(),
        lambda z: _plain_topk_softmax(z, k, -1, False)[:, :2].sum(),
    )


RIGHT = {
    ("losses/log_bonus.py", "LogBonusCrossEntropy"): [
        loss(), loss(log_end=0.4), loss(log_end=1.0, smoothing=0.1), loss(log_end=0.3, smoothing=0.2),
    ],
    ("modules/norm_function.py", "_Normalize"): [
        norm(True), norm(False), norm(True, 2.0, 0.2), norm(False, 1.0, 0.1), norm(True, 1.5),
        norm(True, 1.0, 0.0, True, True), norm(True, 1.0, 0.0, True), norm(False, 1.0, 0.0, False, True),
    ],
    ("modules/topk.py", "_TopKSoftmax"): [softmax(0), softmax(3)],
}  # fmt: skip
REFUSED = {("losses/fused_linear.py", "_FusedLinear")} | {
    (f"kernels/{name}.py", function)  # in tests/kernels
    for name, function in (
        ("norm", "_Normalize"), ("topk_attention", "_TopKAttention"), ("dynamic_convolution", "_DynamicConvolution")
    )
}  # fmt: skip
LINEAR = {
    ("precision.py", "_Widen"): "a cast",
    ("renode/propagation.py", "_FixedProduct"): "the product with a constant",
    ("losses/log_bonus.py", "_Gradient"): "without a backward pass",
    ("second_derivative.py", "_Gradient"): "what gives the others theirs",
}
CASES = [pytest.param(*case, id=f"{name}-{i}") for (_, name), cases in RIGHT.items() for i, case in enumerate(cases)]


def test_every_function_is_here() -> None:
    """And none asks torch's own decorator, which looks at the gradient that comes in alone."""
    found = set()
    for path in itertools.chain.from_iterable(
        ROOT.glob(f"{top}/**/*.py") for top in ("fairseq_ext", "graph", "vision_language")
    ):
        text = path.read_text(encoding="utf-8")
        assert path.name == "second_derivative.py" or "once_differentiable" not in text, path
        for node in ast.walk(ast.parse(text)) if "Function" in text else ():
            if isinstance(node, ast.ClassDef) and any("autograd.Function" in ast.unparse(base) for base in node.bases):
                found.add((path.relative_to(ROOT).as_posix().split("/", 1)[1], node.name))
    assert found == {*RIGHT, *REFUSED, *LINEAR}


def penalty(function: Function, x: Tensor, weight: Tensor) -> list[Tensor]:
    """The derivatives of the squared gradient of the inputs, and of the third order."""
    (grad,) = torch.autograd.grad(function(x @ weight), x, create_graph=True)
    seconds = torch.autograd.grad(grad.square().sum(), [x, weight], create_graph=True, materialize_grads=True)
    if not seconds[0].requires_grad:
        return [grad, *seconds]
    thirds = torch.autograd.grad(seconds[0].square().sum(), [x, weight], materialize_grads=True, allow_unused=True)
    return [grad, *seconds, *thirds]


@pytest.mark.parametrize(("function", "formula"), CASES)
def test_derivatives_are_those_of_the_formula(function: Function, formula: Function) -> None:
    torch.manual_seed(0)
    z = torch.randn(3, 5, dtype=torch.double) * 2
    x, weight = (torch.randn(*shape, dtype=torch.double, requires_grad=True) for shape in ((3, 4), (4, 5)))
    torch.testing.assert_close(penalty(function, x, weight), penalty(formula, x, weight))

    def derivatives(f: Function) -> list[Tensor]:
        twice = torch.func.jacrev(torch.func.jacrev(f))
        product = torch.func.grad(lambda z: (torch.func.grad(f)(z) * z).sum())
        each = torch.func.vmap(lambda s: product(s * z))(torch.tensor([1.0, 0.5]).double())
        return [twice(z), torch.autograd.functional.hessian(f, z), product(z), each]

    expected = derivatives(formula)
    torch.testing.assert_close(derivatives(function), expected)
    torch.testing.assert_close(expected[0], expected[1])


def test_half_precision_has_second_derivatives() -> None:
    """They go through the cast."""
    z = torch.randn(3, 5).bfloat16()
    for function in (lambda z: losses.encouraging_loss(z, TARGET), lambda z: modules.AdaNorm(5)(z)[:, 0].sum()):
        for x in (z, z.float()):
            x.requires_grad_()
            (grad,) = torch.autograd.grad(function(x), x, create_graph=True)
            (second,) = torch.autograd.grad(grad.square().sum(), x)
            assert second.dtype == x.dtype and second.any()


def test_a_checkpoint_gives_saved_tensors_once() -> None:
    """With a graph of the gradient and without."""
    for function in (cases[0][0] for cases in RIGHT.values()):
        z = torch.randn(3, 5, requires_grad=True)
        for graph in (False, True):
            again = torch.utils.checkpoint.checkpoint(function, z, use_reentrant=False)
            assert torch.autograd.grad(again, z, create_graph=graph)[0].requires_grad == graph


def test_what_has_none_says_so() -> None:
    hidden, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((3, 4), (5, 4), (5,)))
    function = functools.partial(losses.fused_linear_encouraging_loss, target=TARGET)
    refuses_second_derivative(
        lambda hidden, weight, bias: function(hidden, weight, bias=bias), hidden, weight, bias, match="encouraging_loss"
    )
    plain = F.linear(hidden, weight, bias)
    expected = torch.autograd.grad(losses.encouraging_loss(plain, TARGET), (hidden, weight, bias))
    many = torch.stack([torch.tensor(1.0), torch.tensor(2.0)])  # outputs' gradients at once, which only kernels refuse
    twice = torch.autograd.grad(function(hidden, weight, bias=bias), hidden, many, is_grads_batched=True)[0]
    torch.testing.assert_close(twice, torch.stack([expected[0], 2 * expected[0]]))
    once = torch.autograd.grad(function(hidden, weight, bias=bias), (hidden, weight, bias), create_graph=True)
    torch.testing.assert_close(once, expected)
