"""Unions of labels, targets, weights and the loss: fixtures with gradients, and what must not change them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import golden_names, load_golden
from vision_language.muka.targets import (
    LabelUnion,
    amalgamation_loss,
    amalgamation_targets,
    margin_weights,
    union_of_labels,
)
from vision_language.muka.uncertainty import teacher_scores

EXACT = dict(rtol=1e-9, atol=1e-9)
SEEDS = st.integers(0, 10**6)
OVERLAPPING = [["a", "b", "c"], ["c", "d"], ["b", "e", "a", "d"]]


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("variant", ["soft", "soft_margin", "hard", "hard_margin"])
@pytest.mark.parametrize("name", golden_names("muka", "uka_case"))
def test_fixture_target_loss_and_gradient(name, variant):
    data = {key: torch.as_tensor(value) for key, value in load_golden("muka", name).items()}
    teachers = [data[f"teacher_logits_{t}"] for t in range(len(data["num_classes"]))]
    temperature = float(data["kd_temperature"])
    scores = data["teacher_score"]
    if data["no_mc"]:
        deterministic = [teacher_scores((z / temperature).softmax(-1)[None]) for z in teachers]
        torch.testing.assert_close(torch.stack(deterministic, -1), scores, **EXACT)
    assert scores.argmax(-1).tolist() == data["golden_teacher"].tolist()
    target = amalgamation_targets(
        teachers,
        scores,
        hard=variant.startswith("hard"),
        temperature=temperature,
        score_temperature=float(data["teacher_score_temperature"]),
    )
    torch.testing.assert_close(target, data[f"target_{variant}"], **EXACT)
    student = data["student_logits"].clone().requires_grad_()
    weight = margin_weights(scores) if variant.endswith("margin") else None
    loss = amalgamation_loss(student, target, temperature, weight)
    loss.backward()
    torch.testing.assert_close(loss, data[f"loss_{variant}"], **EXACT)
    torch.testing.assert_close(student.grad, data[f"grad_{variant}"], **EXACT)


def test_union_keeps_the_order_of_the_teachers_and_matches_names():
    union = union_of_labels(OVERLAPPING)
    assert union.names == ("a", "b", "c", "d", "e") and len(union) == 5
    assert union.index == ((0, 1, 2), (2, 3), (1, 4, 0, 3))
    assert union.membership().int().tolist() == [[1, 1, 1, 0, 0], [0, 0, 1, 1, 0], [1, 1, 0, 1, 1]]
    assert union.pad(2, torch.tensor([[1.0, 2.0, 3.0, 4.0]])).tolist() == [[3.0, 1.0, 0.0, 4.0, 2.0]]
    assert union_of_labels([["x", "y"], ["z"]]).index == LabelUnion.disjoint([2, 1]).index == ((0, 1), (2,))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "no teacher"),
        ([["a", "b"], []], "teacher 1 has no labels"),
        ([["a", "b"], ["c", "d", "c"]], "teacher 1 has the label 'c' twice"),
    ],
)
def test_labels_that_are_refused(labels, message):
    with pytest.raises(SystemExit, match=message) as error:
        union_of_labels(labels)
    assert "\n" not in str(error.value)


@given(SEEDS, st.booleans(), st.integers(1, 4), st.floats(0.05, 5), st.floats(0.5, 5), st.booleans())
def test_targets_are_distributions(seed, hard, batch, tau, temperature, overlap):
    labels = OVERLAPPING if overlap else [["a", "b", "c"], ["d", "e"], ["f", "g", "h", "i"]]
    union = union_of_labels(labels)
    teachers = [3 * draw(seed + t, batch, len(names)) for t, names in enumerate(labels)]
    scores = draw(seed + 9, batch, 3).sigmoid()
    options = dict(hard=hard, temperature=temperature, score_temperature=tau)
    target = amalgamation_targets(teachers, scores, union, **options)
    assert target.shape == (batch, len(union)) and (target >= 0).all()
    torch.testing.assert_close(target.sum(-1), torch.ones(batch, dtype=torch.float64))
    # an example does not depend on the rest of its batch
    alone = amalgamation_targets([z[:1] for z in teachers], scores[:1], union, **options)
    torch.testing.assert_close(alone, target[:1])


@given(SEEDS, st.booleans(), st.booleans(), st.permutations(range(3)))
def test_permuting_the_teachers_permutes_the_union_and_keeps_the_loss(seed, hard, margin, order):
    teachers = [3 * draw(seed + t, 4, len(names)) for t, names in enumerate(OVERLAPPING)]
    scores, student = draw(seed + 9, 4, 3).sigmoid(), draw(seed + 10, 4, 5)
    union = union_of_labels(OVERLAPPING)
    shuffled = union_of_labels([OVERLAPPING[t] for t in order])
    columns = [union.names.index(name) for name in shuffled.names]
    target = amalgamation_targets(teachers, scores, union, hard=hard)
    moved = amalgamation_targets([teachers[t] for t in order], scores[:, order], shuffled, hard=hard)
    torch.testing.assert_close(moved, target[:, columns])
    weights = [margin_weights(s) if margin else None for s in (scores, scores[:, order])]
    loss, other = (
        amalgamation_loss(student, target, weight=weights[0]),
        amalgamation_loss(student[:, columns], moved, weight=weights[1]),
    )
    torch.testing.assert_close(loss, other)


@given(SEEDS, st.floats(-100, 100))
def test_a_shift_of_the_logits_changes_nothing(seed, shift):
    teachers, scores = [draw(seed, 3, 2), draw(seed + 1, 3, 3)], draw(seed + 2, 3, 2).sigmoid()
    student = draw(seed + 3, 3, 5).requires_grad_()
    target = amalgamation_targets(teachers, scores)
    torch.testing.assert_close(amalgamation_targets([z + shift for z in teachers], scores), target)
    loss, moved = amalgamation_loss(student, target, 2.0), amalgamation_loss(student + shift, target, 2.0)
    torch.testing.assert_close(loss, moved)
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(3, dtype=torch.float64))


def test_equal_scores_mix_equally_and_the_first_teacher_wins():
    teachers, scores = [draw(0, 2, 2), draw(1, 2, 3)], torch.full((2, 2), 0.4, dtype=torch.float64)
    union = LabelUnion.disjoint([2, 3])
    padded = [union.pad(t, z.softmax(-1)) for t, z in enumerate(teachers)]
    torch.testing.assert_close(amalgamation_targets(teachers, scores), sum(padded) / 2)
    torch.testing.assert_close(amalgamation_targets(teachers, scores, hard=True), padded[0])
    torch.testing.assert_close(margin_weights(scores), torch.full((2,), 1e-6, dtype=torch.float64))


@pytest.mark.parametrize("hard", [True, False])
def test_one_teacher_is_distilled_as_it_is(hard):
    teacher, scores = draw(0, 3, 4), torch.rand(3, 1, dtype=torch.float64)
    torch.testing.assert_close(amalgamation_targets([teacher], scores, hard=hard), teacher.softmax(-1))
    assert margin_weights(scores).tolist() == [1, 1, 1]


def test_a_low_score_temperature_is_the_hard_target():
    teachers, scores = [draw(0, 6, 2), draw(1, 6, 3)], draw(2, 6, 2).sigmoid()
    soft = amalgamation_targets(teachers, scores, score_temperature=1e-6)
    torch.testing.assert_close(soft, amalgamation_targets(teachers, scores, hard=True))


@given(SEEDS, st.integers(2, 5))
def test_margin_is_the_lead_of_the_best_teacher(seed, teachers):
    scores = draw(seed, 4, teachers).sigmoid()
    ranked = scores.sort(-1, descending=True).values
    torch.testing.assert_close(margin_weights(scores), (ranked[:, 0] - ranked[:, 1]).abs() + 1e-6)


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_that_underflow_keep_loss_and_gradient_finite(dtype, hard):
    teachers = [torch.tensor([[1e4, -1e4]], dtype=dtype), torch.tensor([[-1e4, 1e4, 0.0]], dtype=dtype)]
    target = amalgamation_targets(teachers, torch.tensor([[0.9, 0.1]], dtype=dtype), hard=hard)
    student = torch.tensor([[-1e4, 1e4, 0.0, 1e4, -1e4]], dtype=dtype, requires_grad=True)
    loss = amalgamation_loss(student, target)
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()
    assert amalgamation_loss(target.clamp_min(1e-30).log(), target).abs() < 1e-6


def test_no_gradient_reaches_the_teachers():
    teachers, scores = [draw(0, 2, 2).requires_grad_(), draw(1, 2, 3)], draw(2, 2, 2).requires_grad_()
    assert not amalgamation_targets(teachers, scores).requires_grad


@pytest.mark.parametrize("option", ["temperature", "score_temperature"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_temperatures_must_be_positive(option, value):
    with pytest.raises(ValueError, match=f"^{option} must be above 0 and finite, got {value}"):
        amalgamation_targets([draw(0, 2, 2)], draw(1, 2, 1), **{option: value})


def test_shapes_that_do_not_belong_together():
    teachers = [draw(0, 2, 2), draw(1, 2, 3)]
    with pytest.raises(ValueError, match=r"scores must be \(batch, teachers\), \(2, 2\), got \(2, 3\)"):
        amalgamation_targets(teachers, draw(2, 2, 3))
    with pytest.raises(ValueError, match=r"teacher_logits must have \[3, 2\] classes, got \[2, 3\]"):
        amalgamation_targets(teachers, draw(2, 2, 2), LabelUnion.disjoint([3, 2]))
