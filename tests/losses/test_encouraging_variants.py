"""Relatives of the encouraging loss: against the definition, the multi-class loss and torch's own; their limits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fairseq_ext.losses import (
    binary_encouraging_loss,
    encouraging_loss,
    halted_focal_loss,
    mirror_bonus_loss,
    softmax_focal_loss,
)

LOG_ENDS = [0.0, 0.25, 0.5, 0.75, 0.9, 1.0]
EXACT = dict(rtol=1e-10, atol=1e-10)


def draw(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return 4 * torch.randn(*shape, generator=generator, dtype=torch.float64), torch.rand(
        *shape, generator=generator
    ) < 0.5


@given(st.integers(0, 999), st.sampled_from(LOG_ENDS), st.sampled_from([None, 0.25]), st.sampled_from([0.0, 0.5, 2.0]))
def test_binary_encouraging_loss_is_its_definition(seed, log_end, alpha, gamma):
    logits, positive = draw(seed, 3, 4)
    options = dict(log_end=log_end, bonus_weight=0.7, bonus_alpha=alpha, bonus_gamma=gamma, bonus_clamp=0.0)
    got = binary_encouraging_loss(logits, positive.double(), reduction="none", **options)
    for z, t, value in zip(logits.flatten(), positive.flatten(), got.flatten(), strict=True):
        p = 1 / (1 + math.exp(-z if t else z))
        if p <= log_end:
            bonus = math.log(1 - p)
        else:
            bonus = math.log(1 - log_end) - (p - log_end) / (1 - log_end)
        share = 1 if alpha is None else alpha if t else 1 - alpha
        assert value.item() == pytest.approx(-math.log(p) + 0.7 * share * (1 - p) ** gamma * bonus, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("log_end", LOG_ENDS)
def test_binary_encouraging_loss_is_the_loss_of_two_classes(log_end):
    logits, positive = draw(0, 20)
    pair = torch.stack([torch.zeros_like(logits), logits], 1)
    expected = encouraging_loss(pair, positive.long(), reduction="none", log_end=log_end)
    got = binary_encouraging_loss(logits, positive.long(), reduction="none", log_end=log_end)
    torch.testing.assert_close(got, expected, **EXACT)


def test_without_bonus_it_is_binary_cross_entropy():
    logits, positive = draw(1, 5, 4)
    weight = torch.rand(4, dtype=torch.float64)
    for reduction in ("none", "mean", "sum"):
        options = dict(weight=weight, reduction=reduction)
        for target in (positive.double(), torch.rand(5, 4, dtype=torch.float64)):
            expected = F.binary_cross_entropy_with_logits(logits, target, **options)
            torch.testing.assert_close(binary_encouraging_loss(logits, target, bonus_weight=0.0, **options), expected)


def test_a_soft_target_mixes_both_sides():
    logits, _ = draw(2, 6)
    yes, no = (binary_encouraging_loss(logits, torch.full((6,), t), reduction="none") for t in (1.0, 0.0))
    got = binary_encouraging_loss(logits, torch.full((6,), 0.3), reduction="none")
    torch.testing.assert_close(got, 0.3 * yes + 0.7 * no, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("log_end", LOG_ENDS)
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_gradients_at_any_margin(log_end, gamma):
    logits, positive = draw(3, 3, 4)
    options = dict(log_end=log_end, bonus_gamma=gamma, bonus_clamp=0.0)
    assert torch.autograd.gradcheck(
        lambda z: binary_encouraging_loss(z, positive.double(), **options), logits.requires_grad_()
    )
    extreme = torch.tensor([-torch.inf, -300.0, 0.0, 300.0, torch.inf], requires_grad=True)
    for target in (0.0, 1.0):
        loss = binary_encouraging_loss(extreme, torch.full((5,), target), reduction="none", **options)
        (grad,) = torch.autograd.grad(loss[1:4].sum(), extreme)
        assert not loss.isnan().any() and loss[1:4].isfinite().all() and grad.isfinite().all()


def test_the_full_bonus_is_the_log_odds_up_to_the_clamp():
    margins = torch.tensor([1.0, 9.0, 40.0], dtype=torch.float64)
    exact = binary_encouraging_loss(margins, torch.ones(3), log_end=1.0, bonus_clamp=0.0, reduction="none")
    torch.testing.assert_close(exact, -margins, **EXACT)
    assert binary_encouraging_loss(margins[2], torch.tensor(1.0), log_end=1.0).item() == pytest.approx(math.log(1e-5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(log_end=1.5), r"log_end must be in \[0, 1\], got 1.5"),
        (dict(bonus_alpha=-1.0), "bonus_alpha must be in"),
        (dict(bonus_gamma=-1.0), "bonus_gamma must be at least 0"),
        (dict(bonus_clamp=0.7), "bonus_clamp must be in"),
        (dict(reduction="average"), "reduction must be one of"),
        (dict(target=torch.zeros(3)), r"target must hold one target for each logit, shape \(2, 3\), got \(3,\)"),
        (dict(weight=torch.ones(4, 2, 3)), r"weight must broadcast to the shape of input, \(2, 3\), got \(4, 2, 3\)"),
    ],
)
def test_binary_encouraging_loss_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        binary_encouraging_loss(**{"input": torch.zeros(2, 3), "target": torch.zeros(2, 3), **options})


@pytest.mark.parametrize("halt", ["correct", "positive"])
def test_fractional_exponents_keep_finite_gradients(halt):
    """The gradient of pow(0, gamma) is infinite, and infinity times 0 NaN."""
    logits = torch.tensor([-300.0, -20.0, 20.0, 300.0], requires_grad=True)
    for target in (0, 1):
        loss = halted_focal_loss(logits, torch.full((4,), target), gamma=0.5, halt=halt)
        assert torch.autograd.grad(loss, logits)[0].isfinite().all()
    pair = torch.stack([logits, -logits], 1)
    for bonus in (
        mirror_bonus_loss(pair, torch.zeros(4, dtype=torch.long), bonus_power=0.5),
        encouraging_loss(pair, torch.zeros(4, dtype=torch.long), bonus="power", bonus_power=0.5),
    ):
        assert torch.autograd.grad(bonus, logits, retain_graph=True)[0].isfinite().all()


@pytest.mark.parametrize("halt", ["correct", "positive"])
def test_halted_focal_loss(halt):
    x = torch.tensor([3.0, -3.0, 3.0, -3.0], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([1, 1, 0, 0])
    loss = halted_focal_loss(x, target, "none", alpha=0.25, gamma=2.0, halt=halt)
    alpha_t = torch.tensor([0.25, 0.25, 0.75, 0.75], dtype=torch.float64)
    p_t = torch.tensor([3.0, -3.0, -3.0, 3.0], dtype=torch.float64).sigmoid()
    focal = alpha_t * (1 - p_t) ** 2 * -p_t.log()
    halted = alpha_t * (-p_t.log() - math.log(2) * (1 - 0.5**2))
    where = torch.tensor([True, False, False, True] if halt == "correct" else [True, False, True, False])
    torch.testing.assert_close(loss, torch.where(where, halted, focal), **EXACT)
    assert torch.autograd.gradcheck(lambda z: halted_focal_loss(z, target, halt=halt), (x,))


def test_halted_focal_loss_is_continuous_where_it_halts():
    x, target = torch.tensor([-1e-9, 1e-9], dtype=torch.float64), torch.tensor([1, 1])
    below, above = halted_focal_loss(x, target, "none", gamma=1.5)
    assert below.item() == pytest.approx(above.item(), abs=1e-8)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_the_softmax_focal_loss_is_its_formula(gamma):
    logits = 3 * torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    labels = torch.arange(20) % 4
    p = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    assert (p > 0.5).any() and (p < 0.5).any()
    focal = -((1 - p) ** gamma) * p.log()
    halted = torch.where(p > 0.5, -p.log() - (1 - 0.5**gamma) * math.log(2), focal)
    for expected, options in ((focal, {}), (halted, {"halted": True})):
        torch.testing.assert_close(softmax_focal_loss(logits, labels, "none", gamma=gamma, **options), expected)
        assert torch.autograd.gradcheck(
            lambda z, options=options: softmax_focal_loss(z, labels, gamma=gamma, **options), (logits,)
        )
    grid = softmax_focal_loss(logits.view(4, 5, 4), labels.view(4, 5), "none", gamma=gamma)
    torch.testing.assert_close(grid.view(-1), focal)


def test_the_softmax_focal_loss_of_two_classes_is_the_binary_one():
    odds, target = torch.linspace(-8, 8, 11, dtype=torch.float64), torch.arange(11) % 2
    pair = torch.stack([torch.zeros_like(odds), odds], 1)
    binary = halted_focal_loss(odds, target, "none", alpha=0.5, gamma=1.5)
    torch.testing.assert_close(softmax_focal_loss(pair, target, "none", gamma=1.5, halted=True), 2 * binary)


def test_the_softmax_focal_loss_of_extreme_logits_has_a_gradient():
    logits = torch.tensor([[-1e-6, 0.0], [1e-6, 0.0], [500.0, 0.0], [-500.0, 0.0]], requires_grad=True)
    rows = softmax_focal_loss(logits, torch.zeros(4, dtype=torch.long), "none", gamma=1.5, halted=True)
    assert rows[0].item() == pytest.approx(rows[1].item(), abs=1e-5)
    rows.sum().backward()
    assert logits.grad.isfinite().all() and logits.grad[3].abs().sum() == pytest.approx(2.0)
