"""Divergences: against torch's own, their limits, and gradients where probabilities are exactly 0."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fairseq_ext.losses import distillation_kl, matrix_kl, soft_target_cross_entropy, soft_target_kl

SEEDS = st.integers(0, 2**16)


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(SEEDS, st.sampled_from([0.5, 1.0, 4.0]))
def test_soft_targets_agree_with_torch(seed, temperature):
    logits, target = draw(seed, 5, 4).requires_grad_(), draw(seed + 1, 5, 4).softmax(-1)
    log_p = (logits / temperature).log_softmax(-1)
    expected = F.kl_div(log_p, target, reduction="batchmean")
    torch.testing.assert_close(soft_target_kl(logits, target, temperature), expected)
    expected = F.cross_entropy(logits / temperature, target)
    torch.testing.assert_close(soft_target_cross_entropy(logits, target, temperature), expected)
    kl, ce = soft_target_kl(logits, target, temperature), soft_target_cross_entropy(logits, target, temperature)
    (kl_grad,), (ce_grad,) = torch.autograd.grad(kl, logits), torch.autograd.grad(ce, logits)
    torch.testing.assert_close(kl_grad, ce_grad)
    torch.testing.assert_close(kl_grad, ((logits / temperature).softmax(-1) - target) / (5 * temperature))


def test_a_one_hot_target_is_plain_cross_entropy_and_weights_are_not_renormalised():
    logits, labels, weight = draw(0, 3, 4), torch.tensor([1, 0, 3]), torch.tensor([1.0, 0.5, 0.0]).double()
    target = F.one_hot(labels, 4).double()
    each = F.cross_entropy(logits, labels, reduction="none")
    for function in (soft_target_kl, soft_target_cross_entropy):
        torch.testing.assert_close(function(logits, target, reduction="none"), each)
        torch.testing.assert_close(function(logits, target, weight=weight), (each * weight).sum() / 3)
        torch.testing.assert_close(function(logits, target, weight=weight, reduction="sum"), (each * weight).sum())
    with pytest.raises(ValueError, match="reduction must be one of"):
        soft_target_kl(logits, target, reduction="batchmean")


@given(SEEDS)
def test_distillation_leaves_the_teacher_alone_and_scales_by_the_square(seed):
    logits, teacher = draw(seed, 3, 4).requires_grad_(), draw(seed + 1, 3, 4).requires_grad_()
    loss = distillation_kl(logits, teacher, 3.0)
    torch.testing.assert_close(loss, 9 * soft_target_kl(logits, (teacher / 3).softmax(-1), 3.0))
    loss.backward()
    assert teacher.grad is None
    assert distillation_kl(teacher, teacher, 3.0).abs() < 1e-12


@given(SEEDS)
def test_matrix_kl_is_symmetric_and_ignores_padding(seed):
    p, q = draw(seed, 2, 3, 4).softmax(-1), draw(seed + 1, 2, 3, 4).softmax(-1)
    value = matrix_kl(p, q)
    torch.testing.assert_close(value, matrix_kl(q, p))
    one = F.kl_div(p[0].log(), q[0], reduction="batchmean") + F.kl_div(q[0].log(), p[0], reduction="batchmean")
    torch.testing.assert_close(value[0], one)
    padded = matrix_kl(F.pad(p, (0, 2, 0, 3)), F.pad(q, (0, 2, 0, 3)), rows=torch.tensor([3, 3]), eps=0.0)
    torch.testing.assert_close(padded, value)
    assert matrix_kl(p, p).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_matrix_kl_is_finite_where_a_probability_is_zero(dtype, eps):
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=dtype, requires_grad=True)
    q = torch.tensor([[0.0, 1.0], [0.5, 0.5]], dtype=dtype, requires_grad=True)
    loss = matrix_kl(p, q, eps=eps)
    loss.backward()
    assert loss.isfinite() and p.grad.isfinite().all() and q.grad.isfinite().all()
    assert matrix_kl(p[:0], q[:0], rows=torch.tensor(0)) == 0


@pytest.mark.parametrize("function", [soft_target_cross_entropy, soft_target_kl])
def test_a_masked_class_without_target_costs_nothing(function):
    logits = torch.tensor([[1.0, 2.0, -torch.inf]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[0.25, 0.75, 0.0]], dtype=torch.float64)
    loss = function(logits, target)
    torch.testing.assert_close(loss, function(logits[:, :2], target[:, :2]))
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_weights_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"one weight for each example, shape \(3,\), got \(3, 1\)"):
        soft_target_kl(torch.zeros(3, 4), torch.full((3, 4), 0.25), weight=torch.ones(3, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits, target = draw(0, 3, 4).to(dtype), draw(1, 3, 4).softmax(-1).to(dtype)
    for function in (soft_target_cross_entropy, soft_target_kl, distillation_kl):
        value = function(logits, target, 0.1)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, function(logits.float(), target.float(), 0.1))
    maps = draw(2, 2, 3, 4).softmax(-1).to(dtype)
    torch.testing.assert_close(matrix_kl(*maps), matrix_kl(*maps.float()))
