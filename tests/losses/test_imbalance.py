"""Losses for unequal classes: fixtures of the released code, gradients, limits, extreme logits, refusals."""

from __future__ import annotations

import contextlib
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fairseq_ext.losses import (
    class_balanced_softmax_loss,
    class_weights,
    focal_loss,
    logit_adjusted_cross_entropy,
    reduce_weighted,
    reweighted_cross_entropy,
)
from tests.helpers import load_golden


def cross_entropy(input, target, class_counts, sample_weight=None, reduction="mean"):
    return reduce_weighted(F.cross_entropy(input, target, reduction="none"), sample_weight, reduction)


RELEASED = {
    "ce": cross_entropy,
    "re_weight": reweighted_cross_entropy,
    "focal": focal_loss,
    "focal_g0.0": partial(focal_loss, gamma=0.0),
    "focal_g1.0": partial(focal_loss, gamma=1.0),
    "cb_softmax": class_balanced_softmax_loss,
    "cb_softmax_b0.9": partial(class_balanced_softmax_loss, beta=0.9),
    "cb_softmax_b0.99": partial(class_balanced_softmax_loss, beta=0.99),
}
LOSSES = [reweighted_cross_entropy, focal_loss, class_balanced_softmax_loss, logit_adjusted_cross_entropy]
every_loss = pytest.mark.parametrize("loss", LOSSES)


@pytest.mark.parametrize("name", ["loss_bal", "loss_step"])
@pytest.mark.parametrize("tag", RELEASED)
def test_released_losses(name, tag):
    data = {key: torch.as_tensor(value) for key, value in load_golden("renode", name).items()}
    logits, target = data["logits"].requires_grad_(), data["target"]
    loss = partial(RELEASED[tag], logits, target, data["train_size_per_class"])
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    close(loss(reduction="none"), data[f"{tag}_per"])
    close(loss(), data[f"{tag}_total_plain"])
    total = loss(data["rn_weight"])
    close(total, data[f"{tag}_total_renode"])
    total.backward()
    close(logits.grad, data[f"{tag}_grad_renode"])


def problem(rows=5, classes=4, scale=3.0, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, classes, generator=generator, dtype=dtype)
    target = torch.randint(classes, (rows,), generator=generator)
    counts = torch.randint(1, 30, (classes,), generator=generator)
    return logits, target, counts


@every_loss
def test_gradients(loss):
    logits, target, counts = problem()
    weight = torch.rand(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: loss(z, target, counts, weight), logits.requires_grad_())


@every_loss
@given(seed=st.integers(0, 1000), weight=st.floats(0.25, 1.75))
def test_weights_multiply_and_do_not_renormalise(loss, seed, weight):
    logits, target, counts = problem(seed=seed)
    each = loss(logits, target, counts, reduction="none")
    weights = torch.full((5,), weight, dtype=torch.float64)
    torch.testing.assert_close(loss(logits, target, counts, weights), weight * each.mean())
    torch.testing.assert_close(loss(logits, target, counts, weights, "sum"), weight * each.sum())


@given(seed=st.integers(0, 1000))
def test_textbook_forms(seed):
    logits, target, counts = problem(seed=seed)
    one_hot = F.one_hot(target, 4).double()
    inverse = (counts.double().mean() / counts)[target]
    binary = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none").sum(1)
    torch.testing.assert_close(focal_loss(logits, target, counts, reduction="none", gamma=0.0), inverse * binary)

    softmax_binary = F.binary_cross_entropy(logits.softmax(1), one_hot, reduction="none").mean(1)
    plain = class_balanced_softmax_loss(logits, target, counts, reduction="none", beta=0.0)
    torch.testing.assert_close(plain, softmax_binary)
    limit = (1 / counts.double()) * 4 / (1 / counts.double()).sum()
    near_one = class_balanced_softmax_loss(logits, target, counts, reduction="none", beta=1 - 1e-9)
    torch.testing.assert_close(near_one, limit[target] * softmax_binary, rtol=1e-6, atol=0)

    # as the paper's log(1 + Σ (n_c / n_y)^τ exp(z_c - z_y)) over the other classes
    ratio = (counts.double() / counts[target, None]).sqrt() * (logits - logits.gather(1, target[:, None])).exp()
    expected = ((1 - one_hot) * ratio).sum(1).log1p()
    shifted = logit_adjusted_cross_entropy(logits, target, counts, reduction="none", tau=0.5)
    torch.testing.assert_close(shifted, expected)


def test_equal_classes_give_plain_cross_entropy():
    logits, target, _ = problem()
    for loss in (reweighted_cross_entropy, logit_adjusted_cross_entropy):
        torch.testing.assert_close(loss(logits, target, torch.full((4,), 20)), F.cross_entropy(logits, target))


@every_loss
@pytest.mark.parametrize("size", [90.0, 1e4])
def test_extreme_logits_stay_exact(loss, size):
    """One confidently right and one confidently wrong node: a float32 ``1 - p`` would be 0 in both."""
    logits = torch.tensor([[size, 0.0, 0.0], [size, 0.0, 0.0]], requires_grad=True)
    value = loss(logits, torch.tensor([0, 1]), torch.ones(3, dtype=torch.long), reduction="none")
    wrong = {
        reweighted_cross_entropy: size,
        # the wrong sigmoid costs `size`; sigmoids at 0 cost a quarter of log 2 (gamma 2), one in row 1 two of them
        focal_loss: size + 2 * 0.25 * math.log(2),
        # -log p_y is `size`, and so is -log(1 - p) of the wrong class, less log 2
        class_balanced_softmax_loss: (2 * size - math.log(2)) / 3,
        logit_adjusted_cross_entropy: size,
    }[loss]
    torch.testing.assert_close(value[1].item(), wrong, rtol=1e-5, atol=0)
    value.sum().backward()
    assert logits.grad.isfinite().all() and logits.grad[1, 0] > 0.3


def test_fractional_gamma_keeps_a_finite_gradient():
    logits = torch.tensor([[300.0, -300.0]], requires_grad=True)
    focal_loss(logits, torch.tensor([0]), torch.tensor([1, 1]), gamma=0.5).backward()
    assert logits.grad.isfinite().all()


@every_loss
def test_half_precision_computes_in_float32(loss):
    logits, target, counts = problem(dtype=torch.float32)
    value = loss(logits.bfloat16(), target, counts)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(logits.bfloat16().float(), target, counts))


@every_loss
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(target=torch.zeros(3, dtype=torch.long)), "input must be"),
        (dict(input=torch.zeros(5)), "input must be"),
        (dict(target=torch.tensor([0, 1, 4, 2, 3])), "target must be classes from 0 to 3, got 0 to 4"),
        (dict(target=torch.tensor([0, 1, -100, 2, 3])), "target must be classes from 0 to 3, got -100 to 3"),
        (dict(class_counts=torch.ones(3)), "class_counts must hold one number for each of 4 classes"),
        (dict(class_counts=torch.tensor([1, 2, 0, 3])), "class_counts: class 2 has no example"),
        (dict(sample_weight=torch.ones(5, 1)), "sample_weight must hold one weight"),
        (dict(reduction="avg"), "reduction must be"),
    ],
)
def test_refusals(loss, change, message):
    logits, target, counts = problem()
    with pytest.raises(ValueError, match=message):
        loss(**(dict(input=logits, target=target, class_counts=counts) | change))


@every_loss
def test_a_gpu_is_not_waited_for(loss):
    """A meta tensor has no value that could be asked for."""
    logits, target, counts = problem()
    assert loss(*(value.to("meta") for value in (logits, target, counts))).device.type == "meta"


@every_loss
@pytest.mark.parametrize(
    "change", [{"class_counts": torch.tensor([1, 2, 0, 3])}, {"target": torch.tensor([0, 1, -100, 2, 3])}], ids=str
)
def test_where_no_value_is_asked_for_the_loss_is_nan(monkeypatch, loss, change):
    logits, target, counts = problem()
    right = dict(input=logits, target=target, class_counts=counts)
    expected = loss(**right)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(loss(**right), expected)
    with contextlib.suppress(IndexError, RuntimeError):  # what torch itself asks
        assert loss(**right | change).isnan()


def test_option_refusals():
    logits, target, counts = problem()
    with pytest.raises(ValueError, match="gamma must be at least 0"):
        focal_loss(logits, target, counts, gamma=-1)
    with pytest.raises(ValueError, match="beta must be in"):
        class_balanced_softmax_loss(logits, target, counts, beta=1.0)
    with pytest.raises(ValueError, match="tau must be at least 0"):
        logit_adjusted_cross_entropy(logits, target, counts, tau=-1.0)
    with pytest.raises(ValueError, match="at least 2 classes"):
        class_balanced_softmax_loss(logits[:, :1], torch.zeros(5, dtype=torch.long), counts[:1])


def test_class_weights_of_long_tails():
    """Recorded weights of long-tailed and stepwise data sets."""
    data = load_golden("encouraging_loss_images", "longtail_a")
    for case in data["cases"]:
        for beta in ("0", "0.99", "0.999", "0.9999"):
            expected = torch.from_numpy(data[f"{case}_w_{beta}"])
            torch.testing.assert_close(
                class_weights(torch.from_numpy(data[f"{case}_counts"]).double(), float(beta)), expected
            )


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=20), st.floats(0, 1 - 1e-12))
def test_class_weights_sum_to_the_classes_and_favour_the_rare(counts, beta):
    weight = class_weights(torch.tensor(counts), beta)
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight.sum().item(), float(len(counts)), rtol=1e-5, atol=0)
    order = torch.tensor(counts).argsort(stable=True)
    assert (weight[order].diff() <= 1e-5 * len(counts)).all()


def test_class_weights_refuse():
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\), got 1"):
        class_weights(torch.tensor([1, 2]), beta=1)
    with pytest.raises(ValueError, match="class_counts: class 1 has no example"):
        class_weights(torch.tensor([1, 0]))


def test_a_masked_class_costs_nothing():
    logits = torch.tensor([[2.0, -torch.inf]], requires_grad=True)
    for loss in LOSSES:
        value = loss(logits, torch.tensor([0]), torch.tensor([3, 1]))
        (grad,) = torch.autograd.grad(value, logits)
        assert value.isfinite() and grad.isfinite().all(), loss.__name__
