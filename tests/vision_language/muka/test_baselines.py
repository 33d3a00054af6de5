"""Ensemble, vanilla distillation and UHC: fixtures with gradients, and what must not change them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fairseq_ext.losses import soft_target_kl
from tests.helpers import golden_names, load_golden
from vision_language.muka.baselines import ensemble_probabilities, uhc_loss, vanilla_kd_loss
from vision_language.muka.targets import LabelUnion, union_of_labels

EXACT = dict(rtol=1e-9, atol=1e-9)
SEEDS = st.integers(0, 10**6)
LOSSES = {"vkd": vanilla_kd_loss, "uhc": uhc_loss}
OVERLAPPING = [["a", "b", "c"], ["c", "d"], ["b", "e", "a", "d"]]


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", golden_names("muka", "baseline_case"))
def test_fixture_loss_and_gradient(name, loss):
    data = {key: torch.as_tensor(value) for key, value in load_golden("muka", name).items()}
    teachers = [data[f"teacher_logits_{t}"] for t in range(len(data["num_classes"]))]
    student = data["student_logits"].clone().requires_grad_()
    value = LOSSES[loss](student, teachers, temperature=float(data["temperature"]))
    value.backward()
    torch.testing.assert_close(value, data[f"loss_{loss}"], **EXACT)
    torch.testing.assert_close(student.grad, data[f"grad_{loss}"], **EXACT)


@given(SEEDS, st.booleans(), st.integers(1, 4), st.floats(0.5, 5))
def test_ensemble_is_a_distribution_whose_best_class_is_that_of_the_concatenation(seed, overlap, batch, temperature):
    labels = OVERLAPPING if overlap else [["a", "b", "c"], ["d", "e"], ["f", "g", "h", "i"]]
    union = union_of_labels(labels)
    teachers = [3 * draw(seed + t, batch, len(names)) for t, names in enumerate(labels)]
    q = ensemble_probabilities(teachers, union, temperature)
    torch.testing.assert_close(q.sum(-1), torch.ones(batch, dtype=torch.float64))
    if not overlap:
        assert torch.equal(q.argmax(-1), torch.cat(teachers, -1).argmax(-1))
        torch.testing.assert_close(q, F.softmax(torch.cat(teachers, -1) / temperature, -1))


@pytest.mark.parametrize("loss", LOSSES)
@given(SEEDS, st.permutations(range(3)), st.floats(-50, 50))
def test_order_of_teachers_and_shifts_of_the_student_keep_the_loss(loss, seed, order, shift):
    teachers = [3 * draw(seed + t, 4, len(names)) for t, names in enumerate(OVERLAPPING)]
    union, shuffled = union_of_labels(OVERLAPPING), union_of_labels([OVERLAPPING[t] for t in order])
    student = draw(seed + 9, 4, 5)
    columns = [union.names.index(name) for name in shuffled.names]
    value = LOSSES[loss](student, teachers, union, 2.0)
    moved = LOSSES[loss](student[:, columns] + shift, [teachers[t] for t in order], shuffled, 2.0)
    torch.testing.assert_close(value, moved)


@given(SEEDS)
def test_uhc_never_compares_classes_of_different_teachers(seed):
    teachers = [draw(seed, 4, 3), draw(seed + 1, 4, 2)]
    student = draw(seed + 2, 4, 5)
    lifted = student + torch.tensor([7.0, 7.0, 7.0, 0.0, 0.0])
    torch.testing.assert_close(uhc_loss(lifted, teachers), uhc_loss(student, teachers))
    assert not torch.isclose(vanilla_kd_loss(lifted, teachers), vanilla_kd_loss(student, teachers))
    torch.testing.assert_close(uhc_loss(torch.cat(teachers, -1), teachers), torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("loss", LOSSES)
def test_one_teacher_is_plain_distillation_and_gets_no_gradient(loss):
    teacher, student = draw(0, 3, 4).requires_grad_(), draw(1, 3, 4).requires_grad_()
    value = LOSSES[loss](student, [teacher], temperature=3.0)
    torch.testing.assert_close(value, 9 * soft_target_kl(student, (teacher / 3).softmax(-1), 3.0))
    value.backward()
    assert teacher.grad is None


@pytest.mark.parametrize("loss", LOSSES)
def test_huge_logits_and_a_batch_of_one_are_finite(loss):
    teachers = [torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4, 0.0]])]
    student = torch.tensor([[-1e4, 1e4, 0.0, 1e4, -1e4]], requires_grad=True)
    value = LOSSES[loss](student, teachers)
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()


@pytest.mark.parametrize("function", [*LOSSES.values(), lambda student, *rest: ensemble_probabilities(*rest)])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_temperatures_must_be_positive(function, value):
    with pytest.raises(ValueError, match=f"^temperature must be above 0 and finite, got {value}"):
        function(torch.zeros(2, 5), [torch.zeros(2, 3), torch.zeros(2, 2)], None, value)


@pytest.mark.parametrize("loss", LOSSES)
def test_teachers_of_another_union_are_refused(loss):
    with pytest.raises(ValueError, match=r"teacher_logits must have \[3, 2\] classes, got \[2, 3\]"):
        LOSSES[loss](draw(0, 2, 5), [draw(1, 2, 2), draw(2, 2, 3)], LabelUnion.disjoint([3, 2]))
