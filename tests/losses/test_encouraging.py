"""Encouraging loss: fixtures of the released code, gradients, limits, and the manners of F.cross_entropy."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fairseq_ext.losses import (
    EncouragingLoss,
    bonus_schedule,
    encouraging_loss,
    encouraging_loss_terms,
    fused_linear_encouraging_loss,
    halted_focal_loss,
    mirror_bonus_loss,
    softmax_focal_loss,
)
from tests.helpers import golden_names, load_golden

METHOD = "encouraging_loss"
EXACT = dict(rtol=1e-10, atol=1e-10)
LOG_ENDS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)


def fixture(name):
    return {key: torch.as_tensor(value) for key, value in load_golden(METHOD, name).items()}


def leaf(tensor):
    return tensor.detach().clone().requires_grad_()


def assert_golden(loss, logits, data, key, name="loss"):
    torch.testing.assert_close(loss.detach(), data[f"{key}_{name}"], **EXACT)
    if f"{key}_grad" in data:
        torch.testing.assert_close(logits.grad, data[f"{key}_grad"], **EXACT)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", golden_names(METHOD, "plain_"))
def test_released_loss(name, reduction):
    data = fixture(name)
    for i, log_end in enumerate(data["log_end"].tolist()):
        logits = leaf(data["logits"])
        loss = encouraging_loss(logits, data["target"], reduction=reduction, log_end=log_end)
        (loss * data["upstream"] if reduction == "none" else loss).sum().backward()
        assert_golden(loss, logits, data, f"le{i}_{reduction}")


@pytest.mark.parametrize("name", golden_names(METHOD, "ls_"))
def test_released_label_smoothing_with_padding(name):
    data = fixture(name)
    for i, log_end in enumerate(data["log_end"].tolist()):
        for j, epsilon in enumerate(data["epsilon"].tolist()):
            logits = leaf(data["logits"])
            loss = encouraging_loss(
                logits.flatten(0, 1), data["target"].flatten(), None, int(data["pad"]), "none", epsilon, log_end
            )
            loss.sum().backward()
            assert_golden(loss.view_as(data["target"]), logits, data, f"le{i}_eps{j}", "pertoken")


@pytest.mark.parametrize("name", golden_names(METHOD, "ls_"))
def test_exact_form_without_clamp(name):
    data, exact = fixture(name), fixture("derived_unclamped")
    for j, epsilon in enumerate(data["epsilon"].tolist()):
        logits = leaf(data["logits"])
        loss = encouraging_loss(
            logits.movedim(-1, 1), data["target"], None, int(data["pad"]), "none", epsilon, 1.0, bonus_clamp=0.0
        )
        loss.sum().backward()
        assert_golden(loss, logits, exact, f"{name[-1]}_eps{j}", "pertoken")


def test_released_image_loss():
    data = fixture("timm_a")
    for i, log_end in enumerate(data["log_end"].tolist()):
        logits = leaf(data["logits"])
        loss = encouraging_loss(logits, data["target"], label_smoothing=float(data["smoothing"]), log_end=log_end)
        loss.backward()
        assert_golden(loss, logits, data, f"le{i}")


TRANSLATION = {
    "ce_only": dict(bonus_weight=0.0),
    "log_le05_lb_mask": dict(log_end=0.5, bonus_smoothing=0.1),
    "power1": dict(bonus="power", bonus_power=1.0),
    "power2": dict(bonus="power", bonus_power=2.0),
    "power2_start05": dict(bonus="power", bonus_power=2.0, bonus_start=0.5),
    "cosine": dict(bonus="cosine"),
    "aggressive_start05": dict(log_end=1.0, bonus_start=0.5),
    "abrupt075": dict(log_end=0.5, bonus_end=0.75),
    "subrho09": dict(log_end=1.0, subsample=0.9),
}


@pytest.mark.parametrize("case", TRANSLATION)
def test_released_research_variants(case):
    data = fixture("variants_translation")
    logits = leaf(data["logits"])
    options = dict(bonus_smoothing=0.0) | TRANSLATION[case]
    loss = encouraging_loss(
        logits.flatten(0, 1),
        data["target"].flatten(),
        ignore_index=int(data["pad"]),
        reduction="sum",
        label_smoothing=float(data["label_smoothing"]),
        **options,
    )
    loss.backward()
    assert_golden(loss, logits, data, case)


@pytest.mark.parametrize(
    ("case", "log_end", "bonus_smoothing"),
    [
        ("log_le1", 1.0, 0.0),
        ("log_le05", 0.5, 0.0),
        ("log_le05_lb_nomask", 0.5, 0.1),
        ("log_le05_rho05_lb_mask", 0.5, 0.1),
    ],
)
def test_released_quirks_follow_from_the_terms(case, log_end, bonus_smoothing):
    """The released trainer gives padding a bonus unless told otherwise, and does not scale the smoothed share of it."""
    data = fixture("variants_translation")
    logits, pad = leaf(data["logits"]), int(data["pad"])
    flat, target = logits.flatten(0, 1), data["target"].flatten()
    ce, bonus = encouraging_loss_terms(flat, target, None, pad, 0.1, log_end, bonus_smoothing=bonus_smoothing)
    if case.endswith("_mask"):
        _, unsmoothed = encouraging_loss_terms(flat, target, None, pad, 0.1, log_end, bonus_smoothing=0.0)
        bonus = bonus + (0.5 - 1) * (1 - 0.1) * unsmoothed
    else:
        _, bonus = encouraging_loss_terms(flat, target, None, -100, 0.1, log_end, bonus_smoothing=bonus_smoothing)
    loss = (ce + bonus).sum()
    loss.backward()
    assert_golden(loss, logits, data, case)


@pytest.mark.parametrize(
    ("case", "schedule", "ratio"),
    [("linear", "linear", 5.0), ("exp5", "exp", 5.0), ("expm5", "exp", -5.0), ("cos", "cos", 5.0)],
)
def test_released_schedules(case, schedule, ratio):
    data = fixture("variants_translation")
    criterion = EncouragingLoss(
        ignore_index=int(data["pad"]),
        reduction="sum",
        label_smoothing=0.1,
        log_end=0.5,
        bonus_smoothing=0.0,
        schedule=schedule,
        schedule_ratio=ratio,
        max_epoch=10,
    )
    criterion.set_epoch(int(data["epoch"]))
    logits = leaf(data["logits"])
    loss = criterion(logits.flatten(0, 1), data["target"].flatten())
    loss.backward()
    assert_golden(loss, logits, data, f"sched_{case}")


@pytest.mark.parametrize("log_end", [0.75, 1.0])
def test_released_soft_targets(log_end):
    data = fixture("variants_soft")
    logits = leaf(data["logits"])
    loss = encouraging_loss(logits, data["soft_target"], log_end=log_end)
    loss.backward()
    assert_golden(loss, logits, data, f"le{log_end}")


def test_released_deferred_start_on_log_probabilities():
    data = fixture("variants_graph")
    criterion = EncouragingLoss(log_end=0.5, defer_start=25)
    for epoch in (25, 26):
        criterion.set_epoch(epoch)
        torch.testing.assert_close(criterion(data["lprobs"], data["target"]), data[f"epoch{epoch}_loss"], **EXACT)


@pytest.mark.parametrize("base", ["mse", "mae"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_released_mirror_bonus(base, activation):
    data = fixture("variants_mirror")
    for power in (0, 1, 2):
        logits = leaf(data["logits"])
        options = dict(base=base, activation=activation, bonus_power=power, bonus_weight=float(power > 0))
        loss = mirror_bonus_loss(logits, data["target"], **options)
        loss.backward()
        assert_golden(loss, logits, data, f"{base}{'_sigmoid' * (activation == 'sigmoid')}_bg{power}_ls0")


@pytest.mark.parametrize("epsilon", ["0", "0.1"])
@pytest.mark.parametrize("power", ["0", "-1"])
def test_released_cross_entropy_base(epsilon, power):
    data = fixture("variants_mirror")
    logits = leaf(data["logits"])
    loss = encouraging_loss(
        logits, data["target"], label_smoothing=float(epsilon), log_end=1.0, bonus_weight=float(power == "-1")
    )
    loss.backward()
    assert_golden(loss, logits, data, f"ce_bg{power}_ls{epsilon}")


def plain_formula(logits, target, epsilon, log_end, bonus_clamp=1e-5):
    """The definition, written without any care for memory or rounding."""
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    bonus = (1 - p).clamp(min=bonus_clamp).log()
    if log_end < 1:
        bonus = torch.where(p > log_end, math.log(1 - log_end) - (p - log_end) / (1 - log_end), bonus)
    a = (1 - epsilon) * F.one_hot(target, logits.size(-1)).to(p) + epsilon / logits.size(-1)
    return (a * (bonus - log_p)).sum(-1)


@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(2, 30),
    scale=st.sampled_from([0.1, 2.0, 6.0]),
    epsilon=st.sampled_from([0.0, 0.1, 1.0]),
    log_end=st.sampled_from(LOG_ENDS),
)
def test_matches_the_definition(seed, classes, scale, epsilon, log_end):
    generator = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(9, classes, generator=generator, dtype=torch.float64)
    target = torch.randint(0, classes, (9,), generator=generator)
    expected, actual = leaf(x), leaf(x)
    reference = plain_formula(expected, target, epsilon, log_end)
    loss = encouraging_loss(actual, target, reduction="none", label_smoothing=epsilon, log_end=log_end)
    torch.testing.assert_close(loss, reference, **EXACT)
    reference.sum().backward()
    loss.sum().backward()
    torch.testing.assert_close(actual.grad, expected.grad, **EXACT)


@pytest.mark.parametrize("log_end", LOG_ENDS)
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("smoothing_form", ["uniform", "off-target"])
def test_fused_and_dense_paths_agree(log_end, epsilon, smoothing_form):
    """Unit class weights take the path of plain autograd operations."""
    data = fixture("ls_b")
    target, options = data["target"].flatten(), dict(smoothing_form=smoothing_form, bonus_clamp=0.0)
    results = []
    for weight in (None, torch.ones(data["logits"].size(-1), dtype=torch.float64)):
        logits = leaf(data["logits"].flatten(0, 1))
        ce, bonus = encouraging_loss_terms(logits, target, weight, 1, epsilon, log_end, **options)
        # Different factors: the two gradients must not be mixed up.
        (ce.sum() + 0.3 * (bonus * bonus).sum()).backward()
        results.append((ce.detach(), bonus.detach(), logits.grad))
    for fused, dense in zip(*results, strict=True):
        torch.testing.assert_close(fused, dense, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("log_end", LOG_ENDS)
@pytest.mark.parametrize(
    "options",
    [{}, dict(label_smoothing=0.1), dict(label_smoothing=0.1, bonus_smoothing=0.0), dict(bonus_smoothing=0.2)],
    ids=["hard", "smooth", "smooth-ce", "smooth-bonus"],
)
def test_gradcheck_fused(log_end, options):
    logits = leaf(3 * torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    target = torch.tensor([0, 5, -100, 2, 3])
    assert torch.autograd.gradcheck(
        lambda x: encouraging_loss_terms(x, target, log_end=log_end, bonus_clamp=0.0, **options), (logits,)
    )


@pytest.mark.parametrize(
    "options",
    [
        dict(bonus="power", bonus_power=1.5),
        dict(bonus="cosine"),
        dict(bonus_start=0.3, log_end=0.4),
        dict(bonus_end=0.4),
        dict(subsample=0.8),
        dict(weight=torch.tensor([0.5, 1.0, 2.0, 1.5, 0.1, 0.9], dtype=torch.float64)),
    ],
    ids=["power", "cosine", "start", "end", "subsample", "weight"],
)
def test_gradcheck_dense(options):
    logits = leaf(2 * torch.randn(5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    target = torch.tensor([0, 5, -100, 2, 3])
    assert torch.autograd.gradcheck(lambda x: encouraging_loss(x, target, label_smoothing=0.1, **options), (logits,))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(4,), (7, 4), (3, 4, 5), (2, 4, 3, 2)])
def test_without_bonus_is_cross_entropy(reduction, epsilon, weighted, shape):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 4, shape[:1] + shape[2:] if len(shape) > 1 else (), generator=generator)
    if target.dim():
        target.view(-1)[1] = -100
    weight = torch.tensor([0.5, 1.0, 2.0, 1.5], dtype=torch.float64) if weighted else None
    arguments = (target, weight)
    options = dict(ignore_index=-100, reduction=reduction, label_smoothing=epsilon)
    expected, actual = leaf(x), leaf(x)
    reference = F.cross_entropy(expected, *arguments, **options)
    loss = encouraging_loss(actual, *arguments, **options, bonus_weight=0.0)
    torch.testing.assert_close(loss, reference, **EXACT)
    reference.sum().backward()
    loss.sum().backward()
    torch.testing.assert_close(actual.grad, expected.grad, **EXACT)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(4,), (7, 4), (3, 4, 5)])
def test_soft_targets_without_bonus_are_cross_entropy(reduction, shape):
    x, target = torch.randn(2, *shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    target = target.softmax(1 if len(shape) > 1 else 0)
    options = dict(reduction=reduction, label_smoothing=0.1)
    expected = F.cross_entropy(x, target, **options)
    torch.testing.assert_close(encouraging_loss(x, target, **options, bonus_weight=0.0), expected, **EXACT)


def test_one_hot_probabilities_equal_indices():
    x, target = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0])
    for log_end in LOG_ENDS:
        options = dict(label_smoothing=0.1, log_end=log_end)
        soft = encouraging_loss(x, F.one_hot(target, 5).double(), **options)
        torch.testing.assert_close(soft, encouraging_loss(x, target, **options), **EXACT)


def test_trailing_dimensions_are_rows():
    x, target = torch.randn(3, 5, 4, dtype=torch.float64), torch.randint(0, 5, (3, 4))
    rows = encouraging_loss(x.transpose(1, 2).reshape(-1, 5), target.flatten(), reduction="none")
    torch.testing.assert_close(encouraging_loss(x, target, reduction="none"), rows.view(3, 4), **EXACT)


def test_ignored_targets_add_nothing():
    x, target = torch.randn(4, 5), torch.tensor([1, 7, 2, 7])
    logits = leaf(x)
    loss = encouraging_loss(logits, target, ignore_index=7, label_smoothing=0.1)
    loss.backward()
    torch.testing.assert_close(loss, encouraging_loss(x[::2], target[::2], label_smoothing=0.1))
    assert not logits.grad[1::2].any() and logits.grad[::2].all()


def test_log_probabilities_are_logits():
    x, target = 5 * torch.randn(6, 9, dtype=torch.float64), torch.randint(0, 9, (6,))
    for log_end in LOG_ENDS:
        options = dict(label_smoothing=0.1, log_end=log_end, bonus_clamp=0.0)
        torch.testing.assert_close(
            encouraging_loss(x.log_softmax(-1), target, **options), encouraging_loss(x, target, **options)
        )


@pytest.mark.parametrize("classes", [2, 1000, 32000])
@pytest.mark.parametrize("margin", [2.0, 9.0, 16.0, 40.0, 110.0])
def test_exact_form_is_the_negative_log_odds_at_any_margin(classes, margin):
    """L = logsumexp_{j != y} z_j - z_y, whose gradient on the target is -1, where 1 - p underflows in float32."""
    logits = torch.zeros(1, classes)
    logits[0, 1] = margin + math.log(classes - 1)
    logits.requires_grad_()
    loss = encouraging_loss(logits, torch.tensor([1]), log_end=1.0, bonus_clamp=0.0)
    loss.backward()
    assert loss.item() == pytest.approx(-margin, abs=2e-5)
    assert logits.grad[0, 1].item() == pytest.approx(-1, abs=1e-5)
    assert logits.grad.abs().sum().item() == pytest.approx(2, abs=1e-4)


@pytest.mark.parametrize("log_end", LOG_ENDS)
@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("fused", [True, False])
def test_masked_classes_stay_finite(log_end, target, fused):
    """One class left: p = 1 to the last bit."""
    logits = torch.tensor([[4.0, -math.inf, -math.inf], [1.0, 2.0, -math.inf]], requires_grad=True)
    weight = None if fused else torch.ones(3)
    loss = encouraging_loss(logits, torch.tensor([0, target]), weight, log_end=log_end)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize("log_end", LOG_ENDS)
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_an_offset_of_all_logits_changes_nothing(log_end, epsilon):
    """In float32 too, where a logsumexp of logits near 1e6 has lost its fraction."""
    logits, target = (8 * torch.randn(50, 6)).round(), torch.randint(6, (50,))
    options = dict(reduction="none", label_smoothing=epsilon, log_end=log_end)
    outcomes = []
    for offset in (0.0, 2.0**20, -(2.0**20)):
        moved = leaf(logits + offset)
        loss = encouraging_loss(moved, target, **options)
        outcomes.append((loss.detach(), *torch.autograd.grad(loss.sum(), moved)))
    torch.testing.assert_close(outcomes[1], outcomes[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(outcomes[2], outcomes[0], rtol=1e-5, atol=1e-6)


def test_lower_bound_and_clamp():
    logits, target = torch.tensor([[60.0, 0.0]]), torch.tensor([0])
    for log_end in (0.0, 0.25, 0.5, 0.75, 0.9):
        loss = encouraging_loss(logits, target, log_end=log_end)
        assert loss.item() == pytest.approx(math.log(1 - log_end) - 1, abs=1e-6)
    assert encouraging_loss(logits, target, log_end=1.0).item() == pytest.approx(math.log(1e-5), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [dict(log_end=0.9), dict(log_end=0.9, label_smoothing=0.1), dict(bonus="cosine")], ids=str
)
def test_half_precision_is_computed_in_float32(dtype, options):
    x = (4 * torch.randn(6, 50, generator=torch.Generator().manual_seed(5))).to(dtype)
    target = x.argmax(-1)
    half, reference = leaf(x), leaf(x.float())
    losses = [encouraging_loss(logits, target, **options) for logits in (half, reference)]
    for loss in losses:
        loss.backward()
    assert losses[0].dtype == torch.float32 and half.grad.dtype == dtype
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(half.grad, reference.grad.to(dtype))


def test_blocks_of_rows_do_not_show():
    """More rows than one block holds, the last block not full."""
    x, target = torch.randn(201, 3000, dtype=torch.float64), torch.randint(0, 3000, (201,))
    logits = leaf(x)
    encouraging_loss(logits, target, reduction="sum", label_smoothing=0.1).backward()
    for rows in (slice(0, 2), slice(85, 90), slice(200, 201)):
        part = leaf(x[rows])
        encouraging_loss(part, target[rows], reduction="sum", label_smoothing=0.1).backward()
        torch.testing.assert_close(logits.grad[rows], part.grad, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_memory_saves_no_copy_of_the_logits(dtype):
    logits = leaf(torch.randn(64, 500).to(dtype))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        loss = encouraging_loss(logits, torch.randint(0, 500, (64,)), label_smoothing=0.1)
    large = [tensor for tensor in saved if tensor.numel() >= logits.numel()]
    assert [tensor.data_ptr() for tensor in large] == [logits.data_ptr()]
    loss.backward(retain_graph=True)
    first = logits.grad.clone()
    logits.grad = None
    loss.backward()
    assert torch.equal(first, logits.grad)


UNBOUNDED = {"label_smoothing": 0.1, "log_end": 1.0, "bonus_clamp": 0.0}
FORMS = {
    "function": encouraging_loss,
    "terms": encouraging_loss_terms,
    "module": lambda logits, target, **options: EncouragingLoss(**options)(logits, target),
    "fused": lambda logits, target, **options: fused_linear_encouraging_loss(
        logits, torch.eye(logits.size(1)), target, **options
    ),
}


def told(*calls):
    logits, target = 100 * torch.eye(3), torch.arange(3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # what a process starts with
        for call, options in calls:
            call(logits, target, **options)
    return [str(warning.message).partition(":")[0] for warning in caught]


@pytest.mark.parametrize("form", FORMS)
def test_a_loss_without_end_is_told_of_once(form):
    first, second, third = (
        encouraging_loss(scale * torch.eye(3), torch.arange(3), **UNBOUNDED) for scale in (100.0, 1000.0, 1900.0)
    )
    torch.testing.assert_close(first - second, second - third)
    expected = ["log_end=1 with label smoothing and bonus_clamp=0"]
    assert told((FORMS[form], UNBOUNDED)) == expected
    assert told(*[(call, UNBOUNDED) for call in FORMS.values()] * 2) == expected
    assert told((FORMS[form], UNBOUNDED | {"label_smoothing": 0.0, "bonus_smoothing": 0.1})) == expected
    assert told((encouraging_loss, UNBOUNDED | {"bonus_end": 1.0})) == expected


def test_the_bonus_ends_above_its_end():
    logits, target = torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    at_the_end, beyond = (encouraging_loss(logits, target, bonus_end=end) for end in (0.5, 0.4999))
    torch.testing.assert_close(at_the_end, encouraging_loss(logits, target))
    torch.testing.assert_close(beyond, F.cross_entropy(logits, target))


@pytest.mark.parametrize(
    "bounded",
    [
        {"bonus_clamp": 1e-5},
        {"log_end": 0.9},
        {"label_smoothing": 0.0},  # the negative log-odds, as is asked for
        {"label_smoothing": 0.8},  # what it takes from the target weighs more than the bonus
        {"bonus_end": 0.9},
        {"subsample": 0.9},
    ],
    ids=str,
)
def test_other_losses_are_silent(bounded):
    assert told((encouraging_loss, UNBOUNDED | bounded)) == []


def test_empty_batch():
    logits = torch.zeros(0, 5, requires_grad=True)
    encouraging_loss(logits, torch.zeros(0, dtype=torch.long), reduction="sum").backward()
    assert logits.grad.shape == (0, 5)


def test_class_weighted_bonus_from_the_terms():
    x, target = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    ce, bonus = encouraging_loss_terms(x, target, log_end=1.0)
    torch.testing.assert_close(ce, F.cross_entropy(x, target, reduction="none"), **EXACT)
    expected = (1 - x.softmax(-1)[torch.arange(5), target]).log()
    torch.testing.assert_close(bonus, expected, **EXACT)


def test_schedules():
    for schedule in ("linear", "exp", "cos"):
        shares = [bonus_schedule(epoch, 10, schedule) for epoch in range(11)]
        assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0)
        assert bonus_schedule(50, 10, schedule) == pytest.approx(1.0)
    assert bonus_schedule(0, 10, "none") == 1.0


@pytest.mark.parametrize("start", [0.5, 0.999, 0.999995, 1 - 1e-9])
@pytest.mark.parametrize("options", [{}, {"log_end": 1.0}, {"log_end": 1.0, "bonus_clamp": 0.0}, {"bonus": "power"}])
def test_a_bonus_that_starts_late_is_never_a_penalty(start, options):
    logits = torch.stack([torch.linspace(0, 30, 200), torch.zeros(200)], 1)
    for x in (logits, logits.double()):
        _, bonus = encouraging_loss_terms(x, torch.zeros(200, dtype=torch.long), bonus_start=start, **options)
        assert bonus.max() == 0 and (bonus.diff() <= 0).all()


@pytest.mark.parametrize("log_end", [0.0, 0.25, 0.75, 0.99, 1 - 1e-4, 1 - 1e-6, 1 - 1e-9])
@pytest.mark.parametrize("options", [{}, {"bonus_start": 1e-30}], ids=["closed form", "plain operations"])
def test_the_tangent_has_all_digits(log_end, options):
    """Up to ``log_end`` and beyond it, in float32 and in double."""
    margin = torch.tensor([-20.0, -9.0, -1.0, 0.5, 3.0, 8.0, 12.0, 15.0, 20.0])
    target = torch.zeros(9, dtype=torch.long)
    p, q = margin.double().sigmoid(), (-margin.double()).sigmoid()
    beyond = torch.where(p < 0.5, (p - log_end) / (1 - log_end), 1 - q / (1 - log_end))
    linear = (p > log_end) & (q < 1 - log_end)
    expected = torch.where(linear, math.log1p(-log_end) - beyond, torch.where(p < 0.5, torch.log1p(-p), q.log()))
    slope = -p * torch.where(linear, q / (1 - log_end), 1.0)  # of the margin
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-11)):
        x = leaf(torch.stack([margin, torch.zeros(9)], 1).to(dtype))
        _, bonus = encouraging_loss_terms(x, target, log_end=log_end, **options)
        bonus.sum().backward()
        torch.testing.assert_close(bonus.detach().double(), expected, rtol=tolerance, atol=0)
        torch.testing.assert_close(x.grad[:, 0].double(), slope, rtol=tolerance, atol=0)


@pytest.mark.parametrize(("schedule", "ratio", "epochs"), [("cos", 5.0, 500), ("exp", -15.0, 100)])
def test_a_schedule_of_log_end_passes_all_values_below_1(schedule, ratio, epochs):
    criterion = EncouragingLoss(
        log_end=1.0, schedule=schedule, schedule_of="log_end", schedule_ratio=ratio, max_epoch=epochs
    )
    losses = []
    for epoch in range(1, epochs + 1):
        criterion.set_epoch(epoch)
        losses.append(criterion(torch.tensor([[9.0, 0.0]]), torch.tensor([0])).item())
    assert losses == sorted(losses, reverse=True) and len(set(losses)) > 50


def test_module():
    x, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    weight = torch.tensor([1.0, 2.0, 3.0])
    criterion = EncouragingLoss(weight, log_end=0.5, bonus_clamp=0.0, defer_start=3)
    full = encouraging_loss(x, target, weight, log_end=0.5)
    torch.testing.assert_close(criterion(x, target), full)
    criterion.set_epoch(3)
    torch.testing.assert_close(criterion(x, target), F.cross_entropy(x, target, weight))
    criterion.set_epoch(4)
    torch.testing.assert_close(criterion(x, target), full)
    assert "log_end=0.5" in repr(criterion) and "defer_start=3" in repr(criterion)


def test_module_schedules_log_end():
    x, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    criterion = EncouragingLoss(log_end=0.8, schedule="linear", schedule_of="log_end", max_epoch=4)
    criterion.set_epoch(2)
    torch.testing.assert_close(criterion(x, target), encouraging_loss(x, target, log_end=0.4))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (dict(log_end=1.2), "log_end"),
        (dict(log_end=-0.1), "log_end"),
        (dict(label_smoothing=1.5), "label_smoothing"),
        (dict(bonus_smoothing=-0.5), "bonus_smoothing"),
        (dict(bonus="linear"), "bonus"),
        (dict(bonus_start=1.0), "bonus_start"),
        (dict(subsample=0.0), "subsample"),
        (dict(bonus_clamp=0.5), "bonus_clamp"),
        (dict(smoothing_form="old"), "smoothing_form"),
        (dict(reduction="average"), "reduction"),
    ],
)
def test_bad_options(options, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        encouraging_loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), **options)
    with pytest.raises(ValueError, match=f"^{name} must be"):
        EncouragingLoss(**options)


def test_bad_shapes():
    with pytest.raises(ValueError, match="target must have shape"):
        encouraging_loss(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="at least 2 classes"):
        encouraging_loss(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="class dimension"):
        encouraging_loss(torch.tensor(0.0), torch.tensor(0))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x, y: mirror_bonus_loss(x, y, base="ce"), "base"),
        (lambda x, y: mirror_bonus_loss(x, y, activation="tanh"), "activation"),
        (lambda x, y: mirror_bonus_loss(x, y, "average"), "reduction"),
        (lambda x, y: halted_focal_loss(x[:, 0], y, halt="never"), "halt"),
        (lambda x, y: softmax_focal_loss(x, y, gamma=-1.0), "gamma"),
        (lambda x, y: softmax_focal_loss(x[:, :1], y), "input"),
        (lambda x, y: EncouragingLoss(schedule="step"), "schedule"),
        (lambda x, y: EncouragingLoss(schedule="cos"), "max_epoch"),
        (lambda x, y: EncouragingLoss(schedule="cos", max_epoch=3, schedule_of="weight"), "schedule_of"),
        (lambda x, y: bonus_schedule(1, 2, "step"), "schedule"),
        (lambda x, y: bonus_schedule(-1, 2), "epoch"),
        (lambda x, y: bonus_schedule(1, -2), "max_epoch"),
    ],
)
def test_bad_options_of_the_other_losses(call, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        call(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))
