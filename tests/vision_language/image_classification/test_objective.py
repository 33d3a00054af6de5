"""The loss of every option, by its formula."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fairseq_ext.losses import class_weights, encouraging_loss, encouraging_loss_terms, mirror_bonus_loss
from fairseq_ext.training.errors import DataError
from tests.helpers import load_golden
from vision_language.image_classification.objective import Objective, ldam_margins
from vision_language.image_classification.options import LossOptions

COUNTS = [200, 40, 10]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(20, 3, generator=generator), torch.randint(3, (20,), generator=generator)


def loss(batch, epoch: int = 1, epochs: int = 10, **options) -> float:
    return float(Objective(LossOptions(**options), COUNTS, epochs)(*batch, epoch))


def test_cross_entropy_and_encouraging_loss(batch):
    smooth = {"label_smoothing": 0.1}
    assert loss(batch, loss="cross-entropy", **smooth) == pytest.approx(float(F.cross_entropy(*batch, **smooth)))
    assert loss(batch, log_end=1.0) == pytest.approx(float(encouraging_loss(*batch, log_end=1.0)), rel=1e-5)
    form = {"bonus": "power", "bonus_power": 2.0, "bonus_weight": 0.5, "label_smoothing": 0.1}
    assert loss(batch, **form) == pytest.approx(float(encouraging_loss(*batch, **form)), rel=1e-5)
    aggressive = {"log_end": 1.0, "bonus_start": 0.5}
    assert loss(batch, **aggressive) == pytest.approx(float(encouraging_loss(*batch, **aggressive)), rel=1e-5)


def test_the_bonus_starts_late_and_grows(batch):
    plain = loss(batch, loss="cross-entropy")
    assert loss(batch, 3, bonus_from=4) == plain
    assert loss(batch, 4, bonus_from=4) == loss(batch)
    assert loss(batch, 5, schedule="linear") == pytest.approx((plain + loss(batch)) / 2)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("base", ["mse", "mae"])
def test_errors_of_probabilities(batch, base, activation):
    form = {"activation": activation}
    plain = float(mirror_bonus_loss(*batch, base=base, bonus_weight=0, **form))
    assert loss(batch, loss=base, **form) == pytest.approx(plain)
    expected = float(mirror_bonus_loss(*batch, base=base, bonus_power=3.0, **form))
    assert loss(batch, loss=f"mirror-{base}", mirror_power=3.0, **form) == pytest.approx(expected)


def test_focal_losses(batch):
    logits, labels = batch
    p = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    focal = -((1 - p) ** 2) * p.log()
    assert loss(batch, loss="focal", gamma=2.0) == pytest.approx(float(focal.mean()), rel=1e-4)
    halted = torch.where(p > 0.5, -p.log() - 0.75 * math.log(2), focal)
    assert loss(batch, loss="halted-focal", gamma=2.0) == pytest.approx(float(halted.mean()), rel=1e-4)
    assert loss(batch, loss="focal", gamma=0.0) == pytest.approx(loss(batch, loss="cross-entropy"))


def test_weights_of_the_loss_divide_by_their_sum_those_of_the_bonus_do_not(batch):
    logits, labels = batch
    weight = class_weights(torch.tensor(COUNTS), 0.99).float()
    rows = weight[labels]
    cross_entropy, bonus = encouraging_loss_terms(logits, labels)
    weighted_loss, weighted_bonus = (rows * cross_entropy).sum() / rows.sum(), (rows * bonus).mean()
    shared = {"beta": 0.99}
    assert loss(batch, reweight="loss", **shared) == pytest.approx(float(weighted_loss + bonus.mean()), rel=1e-5)
    expected = float(cross_entropy.mean() + weighted_bonus)
    assert loss(batch, reweight="bonus", **shared) == pytest.approx(expected, rel=1e-5)
    assert loss(batch, reweight="both", **shared) == pytest.approx(float(weighted_loss + weighted_bonus), rel=1e-5)
    assert loss(batch, 4, reweight="both", reweight_from=5, **shared) == loss(batch)
    assert loss(batch, 5, reweight="both", reweight_from=5, **shared) == loss(batch, reweight="both", **shared)


@pytest.mark.parametrize("case", load_golden("encouraging_loss_images", "longtail_a")["cases"])
def test_margins_and_priors_are_those_of_the_fixture(case):
    data = load_golden("encouraging_loss_images", "longtail_a")
    counts = torch.from_numpy(data[f"{case}_counts"])
    torch.testing.assert_close(ldam_margins(counts), torch.from_numpy(data[f"{case}_ldam_margin"]))
    shift = Objective(LossOptions(adjust_logits="prior"), counts.tolist(), 1).shift
    torch.testing.assert_close(shift, torch.from_numpy(data[f"{case}_log_prior"]).float())


def test_adjusted_logits(batch):
    logits, labels = batch
    prior = torch.tensor(COUNTS).float().div(sum(COUNTS)).log()
    expected = float(F.cross_entropy(logits + prior, labels))
    assert loss(batch, loss="cross-entropy", adjust_logits="prior") == pytest.approx(expected)
    shifted = logits - F.one_hot(labels, 3) * ldam_margins(torch.tensor(COUNTS)).float() * 30
    objective = Objective(LossOptions(loss="cross-entropy", adjust_logits="ldam"), COUNTS, 10, scale=30)
    assert float(objective(logits, labels, 1)) == pytest.approx(float(F.cross_entropy(shifted, labels)), rel=1e-5)


@pytest.mark.parametrize("adjust_logits", ["ldam", "prior"])
def test_an_absent_class_has_no_margin_and_no_prior(adjust_logits):
    with pytest.raises(DataError, match=f"counts: class 1 has no image; --adjust-logits {adjust_logits} needs one"):
        Objective(LossOptions(adjust_logits=adjust_logits), [3, 0, 2], 1)


def test_the_bonus_sees_the_logits_without_margins(batch):
    bonus = encouraging_loss_terms(*batch)[1].mean()
    difference = loss(batch, adjust_logits="prior") - loss(batch, loss="cross-entropy", adjust_logits="prior")
    assert difference == pytest.approx(float(bonus), rel=1e-4)


@pytest.mark.parametrize("name", ["cross-entropy", "encouraging", "focal", "halted-focal", "mse", "mirror-mae"])
def test_half_precision_is_computed_in_float32(batch, name):
    logits, labels = batch
    half = logits.half()
    assert loss((half, labels), loss=name) == loss((half.float(), labels), loss=name)


@pytest.mark.parametrize("reweight", ["none", "loss", "bonus", "both"])
@pytest.mark.parametrize("shares", [2, 3])
def test_the_shares_of_processes_make_the_loss_of_the_batch(batch, reweight, shares):
    """Of unequal sizes and classes; the gradients too."""
    logits, labels = batch[0].requires_grad_(), batch[1]
    options = LossOptions(log_end=1.0, reweight=reweight, **({"beta": 0.99} if reweight != "none" else {}))
    objective = Objective(options, COUNTS, 10)
    whole = objective(logits, labels, 1)
    parts = [
        objective(logits[rank::shares], labels[rank::shares], 1, labels) * len(labels[rank::shares]) / len(labels)
        for rank in range(shares)
    ]
    torch.testing.assert_close(sum(parts), whole)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (whole, sum(parts))]
    torch.testing.assert_close(*gradients)
