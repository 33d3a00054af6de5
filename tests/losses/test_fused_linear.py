"""Projection and loss in one: the numbers of the two apart, a block of rows at a time."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from benchmarks.timing import forward_backward, peak_bytes
from fairseq_ext.losses import encouraging_loss, fused_linear, fused_linear_encouraging_loss

N, D, V = 13, 6, 11
OPTIONS = (
    {},
    {"label_smoothing": 0.1},
    {"label_smoothing": 0.1, "log_end": 0.25, "bonus_weight": 0.5},
    {"label_smoothing": 0.1, "smoothing_form": "off-target", "bonus_smoothing": 0.0},
    {"bonus": "power", "bonus_power": 0.5},
    {"log_end": 1.0, "bonus_clamp": 1e-3},
)


@pytest.fixture(autouse=True, params=[3, 1000], ids=["blocks", "one block"])
def rows_of_a_block(request, monkeypatch):
    monkeypatch.setattr(fused_linear, "block_elements", lambda device: request.param * V)


def inputs(dtype=torch.float64, bias=True):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias_ = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((N, D), (V, D), (V,))
    )
    target = torch.randint(V, (N,), generator=generator)
    target[[2, 7]] = -100
    leaves = [value.to(dtype).requires_grad_() for value in (hidden, weight, bias_)[: 3 if bias else 2]]
    return leaves, target


def apart(leaves, target, class_weight=None, **options):
    return encouraging_loss(F.linear(*leaves), target, class_weight, **options)


def fused(leaves, target, class_weight=None, **options):
    hidden, weight, *bias = leaves
    return fused_linear_encouraging_loss(hidden, weight, target, *bias, class_weight=class_weight, **options)


def value_and_grads(function, leaves, target, **options):
    loss = function(leaves, target, **options)
    upstream = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).view_as(loss)
    return loss.detach(), *torch.autograd.grad(loss, leaves, upstream)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("bias", [True, False])
def test_value_and_gradients_are_those_of_the_two_apart(options, reduction, bias):
    leaves, target = inputs(bias=bias)
    options = {**options, "reduction": reduction}
    for ours, theirs in zip(
        value_and_grads(fused, leaves, target, **options),
        value_and_grads(apart, leaves, target, **options),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_class_weights(reduction):
    leaves, target = inputs()
    options = {"class_weight": torch.linspace(0.0, 2.0, V, dtype=torch.float64), "reduction": reduction}
    ours, theirs = (value_and_grads(f, leaves, target, **options) for f in (fused, apart))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_no_bonus_is_the_cross_entropy_of_torch():
    leaves, target = inputs()
    loss = fused(leaves, target, label_smoothing=0.2, bonus_weight=0.0)
    torch.testing.assert_close(loss, F.cross_entropy(F.linear(*leaves), target, label_smoothing=0.2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_exact_as_the_two_apart(dtype):
    exact = value_and_grads(apart, *inputs(torch.float64), label_smoothing=0.1)
    halves = value_and_grads(fused, *inputs(dtype), label_smoothing=0.1)
    assert [value.dtype for value in halves] == [torch.float32, dtype, dtype, dtype]
    for ours, theirs in zip(halves, exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0.0, atol=0.05 * theirs.abs().max().item())


def test_float16_keeps_small_gradients():
    """Below 6e-8 float16 knows nothing; a mean over many rows of a large vocabulary gets there."""
    hidden = torch.full((4, 2), 1e-3, dtype=torch.float16, requires_grad=True)
    weight = torch.zeros(2**15, 2, dtype=torch.float16, requires_grad=True)
    target = torch.zeros(4, dtype=torch.long)
    loss = fused_linear_encouraging_loss(hidden, weight, target, bonus_weight=0.0)
    (grad,) = torch.autograd.grad(loss * 2.0**16, weight)
    torch.testing.assert_close(
        grad[1:].float(), torch.full((2**15 - 1, 2), 1e-3 * 2.0**16 / 2**15), rtol=0.05, atol=0.0
    )


def test_autocast_casts_what_it_would_cast():
    leaves, target = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = (value_and_grads(f, leaves, target, label_smoothing=0.1) for f in (fused, apart))
    assert [value.dtype for value in ours] == [torch.float32] * 4
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=0.02 * b.abs().max().item())


def test_only_the_wanted_gradients():
    leaves, target = inputs()
    frozen = [leaves[0], leaves[1].detach(), leaves[2].detach()]
    (ours,), (theirs,) = (torch.autograd.grad(f(frozen, target), frozen[0]) for f in (fused, apart))
    torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        assert not fused(leaves, target).requires_grad


def test_terms_of_the_rows():
    leaves, target = inputs()
    hidden, weight, bias = leaves
    terms = fused_linear.fused_linear_terms(hidden, weight, target, bias, label_smoothing=0.1, bonus_weight=0.5)
    logits = F.linear(*leaves)
    assert torch.equal(terms.prediction, logits.argmax(1).masked_fill(target == -100, 0))
    torch.testing.assert_close(terms.nll, F.cross_entropy(logits, target, reduction="none"))
    torch.testing.assert_close(terms.loss, (terms.cross_entropy + 0.5 * terms.bonus).sum())
    assert [term.requires_grad for term in terms] == [True, False, False, False, False]


@pytest.mark.parametrize("options", [{}, {"log_end": 1.0}], ids=str)
def test_classes_that_cannot_be(options):
    """A bias of -inf takes a class out; the last one left has probability 1."""
    leaves, target = inputs()
    for possible in (V // 2, 1):
        bias = torch.zeros(V, dtype=torch.float64).masked_fill(torch.arange(V) >= possible, -torch.inf).requires_grad_()
        target = target % possible
        ours, theirs = (value_and_grads(f, [*leaves[:2], bias], target, **options) for f in (fused, apart))
        assert all(value.isfinite().all() for value in theirs)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bonus_weight", [0.0, 1.0])
def test_peak_memory_is_that_of_blocks(bonus_weight, monkeypatch):
    """A block of logits, two of as many numbers to compute in, and the gradients twice."""
    rows, width, classes, block = 2048, 8, 1000, 100
    monkeypatch.setattr(fused_linear, "block_elements", lambda device: block * classes)
    hidden, weight = torch.randn(rows, width), torch.randn(classes, width)
    loss = partial(fused_linear_encouraging_loss, target=torch.arange(rows) % classes, label_smoothing=0.1)
    peak = peak_bytes(forward_backward(partial(loss, bonus_weight=bonus_weight), hidden, weight))
    assert peak < 4 * (3.2 * block * classes + 2 * width * (rows + classes) + 30 * rows)


def test_no_rows():
    hidden = torch.empty(0, D, requires_grad=True)
    weight = torch.randn(V, D, requires_grad=True)
    loss = fused_linear_encouraging_loss(hidden, weight, torch.empty(0, dtype=torch.long), reduction="sum")
    grads = torch.autograd.grad(loss, (hidden, weight))
    assert loss == 0 and grads[0].shape == (0, D) and not grads[1].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(V, D + 1)}, r"hidden and weight must have shapes \(N, D\) and \(V, D\)"),
        ({"target": torch.zeros(N, V)}, "target must be class indices"),
        ({"target": torch.zeros(N + 1, dtype=torch.long)}, "one class index for each row"),
        ({"reduction": "max"}, "reduction must be one of"),
        ({"log_end": 2.0}, "log_end must be in"),
        ({"bonus_weight": float("inf")}, "bonus_weight must be finite"),
    ],
)
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_what_does_not_fit_is_refused(change, message, reduction):
    values = {"hidden": torch.zeros(N, D), "weight": torch.zeros(V, D), "target": torch.zeros(N, dtype=torch.long)}
    with pytest.raises(ValueError, match=message):
        fused_linear_encouraging_loss(**{**values, "reduction": reduction, **change})
