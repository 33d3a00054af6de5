"""Diagnostics against hand counts and scikit-learn, and a figure that is written whole."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image

from vision_language.calibration import reliability
from vision_language.muka.baselines import ensemble_probabilities
from vision_language.muka.diagnostics import (
    accuracy_by_teacher,
    all_diagnostics,
    kl_to_supervised,
    score_auroc,
    selected_right,
    specialty,
    teacher_accuracy,
    teachers_right,
)
from vision_language.muka.plot import draw_scores, plot_reliability, plot_selection
from vision_language.muka.targets import LabelUnion, amalgamation_targets, union_of_labels

OVERLAPPING = union_of_labels([["a", "b"], ["b", "c", "d"]])
SEEDS = st.integers(0, 10**6)


def test_specialty_and_selection_by_hand():
    labels = torch.tensor([0, 1, 2, 3])
    assert specialty(labels, OVERLAPPING).tolist() == [[True, False], [True, True], [False, True], [False, True]]
    scores = torch.tensor([[0.2, 0.9], [0.1, 0.3], [0.9, 0.1], [0.5, 0.6]])
    # the shared class b is right with either teacher
    assert selected_right(scores, labels, OVERLAPPING).tolist() == [False, True, False, True]


def test_accuracy_by_teacher_counts_a_shared_class_for_both():
    labels, predictions = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 3, 2, 0])
    assert accuracy_by_teacher(predictions, labels, OVERLAPPING) == [1 / 2, 1 / 3]
    assert accuracy_by_teacher(labels[2:], labels[2:], OVERLAPPING) == [None, 1]


def test_auroc_is_the_share_of_ordered_pairs():
    union, labels = LabelUnion.disjoint([1, 1]), torch.tensor([0, 0, 1, 1])
    scores = torch.tensor([[0.9, 0.5], [0.4, 0.5], [0.6, 0.5], [0.1, 0.5]])
    assert score_auroc(scores, labels, union) == [3 / 4, 1 / 2]
    assert score_auroc(scores[:2], labels[:2], union) == [None, None]


@given(SEEDS, st.integers(2, 30))
def test_auroc_counts_ties_half(seed, size):
    generator = torch.Generator().manual_seed(seed)
    union = LabelUnion.disjoint([1, 1])
    labels = torch.randint(2, (size,), generator=generator)
    labels[:2] = torch.tensor([0, 1])
    scores = torch.randint(5, (size, 2), generator=generator) / 4
    for teacher, auroc in enumerate(score_auroc(scores, labels, union)):
        own, others = scores[labels == teacher, teacher, None], scores[labels != teacher, teacher]
        assert auroc == pytest.approx(float((own > others).double().mean() + (own == others).double().mean() / 2))


def test_kl_is_0_for_the_supervised_teacher_itself_and_finite_for_hard_targets():
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert kl_to_supervised(logits.softmax(-1), logits) == pytest.approx(0, abs=1e-12)
    parts = [logits[:, :2], logits[:, 2:]]
    scores = torch.rand(5, 2, dtype=torch.float64)
    assert 0 < kl_to_supervised(amalgamation_targets(parts, scores, hard=True), logits) < math.inf
    assert kl_to_supervised(ensemble_probabilities(parts), logits) == pytest.approx(0, abs=1e-12)


def test_reliability_by_hand():
    table = reliability(torch.tensor([0.1, 0.2, 0.25, 0.9, 1.0]), torch.tensor([0, 1, 0, 1, 1]), bins=4)
    assert table.examples.tolist() == [3, 0, 0, 2]  # 0.25 is the upper edge of the first
    np.testing.assert_allclose(table.accuracy, [1 / 3, np.nan, np.nan, 1])
    np.testing.assert_allclose(table.confidence, [0.55 / 3, np.nan, np.nan, 0.95], rtol=1e-6)
    assert table.calibration_error == pytest.approx((3 * 0.15 + 2 * 0.05) / 5, rel=1e-6)


@given(SEEDS, st.integers(1, 40), st.integers(1, 15))
def test_reliability_keeps_every_example_and_a_calibrated_one_has_no_error(seed, size, bins):
    generator = torch.Generator().manual_seed(seed)
    confidence, right = torch.rand(size, generator=generator), torch.rand(size, generator=generator) < 0.5
    table = reliability(confidence, right, bins)
    assert table.examples.sum() == size and 0 <= table.calibration_error <= 1
    filled = table.examples > 0
    assert (table.examples * table.accuracy)[filled].sum() == pytest.approx(float(right.sum()))
    assert ((table.edges[:-1] <= table.confidence) & (table.confidence <= table.edges[1:]))[filled].all()
    assert reliability(right.float(), right, bins).calibration_error == 0


@pytest.mark.parametrize("confidence", [[], [0.5, 1.5], [0.5, float("nan")], [-0.1]])
def test_confidence_outside_0_and_1_is_refused(confidence):
    with pytest.raises(ValueError, match="confidence must be one or more values from 0 to 1"):
        reliability(torch.tensor(confidence), torch.ones(len(confidence)))


def example(teachers, size=200, overlap=False):
    """Teachers of two classes each whose score is high on their own, with noise."""
    generator = torch.Generator().manual_seed(0)
    union = OVERLAPPING if overlap else LabelUnion.disjoint([2] * teachers)
    labels = torch.randint(len(union), (size,), generator=generator)
    noise = 0.25 * torch.randn(size, len(union.index), generator=generator)
    scores = (0.35 + 0.4 * specialty(labels, union) + noise).clamp(0, 1)
    logits = [
        torch.randn(size, len(index), generator=generator) + 4.0 * (labels[:, None] == torch.tensor(index))
        for index in union.index
    ]
    return scores, labels, union, logits


def test_all_diagnostics_gathers_everything():
    scores, labels, union, logits = example(3)
    student = torch.cat(logits, -1)
    report = json.loads(json.dumps(all_diagnostics(scores, labels, union, logits, student), allow_nan=False))
    assert report["chance_selection_accuracy"] == pytest.approx(1 / 3)
    assert 0.5 < report["selection_accuracy"] < 1 and all(0.7 < value < 1 for value in report["score_auroc"])
    assert all(value > 0.9 for value in report["teacher_accuracy"]) and 0 <= report["calibration_error"] < 0.2
    assert report["accuracy"] == pytest.approx(np.mean(student.argmax(-1).numpy() == labels.numpy()))
    shares = specialty(labels, union).double().mean(0).numpy()
    assert report["accuracy"] == pytest.approx(float(np.dot(shares, report["accuracy_by_teacher"])))
    assert set(all_diagnostics(scores, labels, union)) == {
        "selection_accuracy",
        "chance_selection_accuracy",
        "score_auroc",
    }
    assert all_diagnostics(scores[:1], labels[:1], union)["score_auroc"] == [None, None, None]


def test_teachers_are_right_within_their_classes_alone():
    labels = torch.tensor([0, 1, 1, 2])
    logits = [torch.tensor([[2.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]), torch.eye(3)[[2, 0, 0, 1]]]
    assert teachers_right(logits, labels, OVERLAPPING).tolist() == [
        [True, False],
        [True, True],
        [False, True],
        [False, True],
    ]
    assert teacher_accuracy(logits, labels, OVERLAPPING) == [2 / 3, 1]
    assert teacher_accuracy([logits[0][3:], logits[1][3:]], labels[3:], OVERLAPPING) == [None, 1]


def test_selection_by_the_margin_of_the_scores():
    """Two groups of 20 with the mean of their margins; √(a (1 - a) / 20) around a."""
    union, groups = LabelUnion.disjoint([1, 1]), ((0.1, 0.3, 15), (0.6, 0.8, 18))
    margins, labels = [], []
    for low, high, right in groups:
        margins += np.linspace(low, high, 20).tolist()
        labels += [0] * right + [1] * (20 - right)
    scores = torch.tensor([[0.9, 0.9 - margin] for margin in margins], dtype=torch.float64)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    axes = Figure().subplots()
    plot_selection(scores[order], torch.tensor(labels)[order], union, axes)
    (points, _, (bars,)) = axes.containers[0]
    np.testing.assert_allclose(points.get_xydata(), [(0.2, 0.75), (0.7, 0.9)], atol=1e-12)
    errors = [(end[1] - begin[1]) / 2 for begin, end in bars.get_segments()]
    assert errors == pytest.approx([math.sqrt(0.75 * 0.25 / 20), math.sqrt(0.9 * 0.1 / 20)])
    chance, overall = axes.lines[:2]
    assert chance.get_ydata()[0] == pytest.approx(0.5) and overall.get_ydata()[0] == pytest.approx(33 / 40)
    labelled = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labelled[:2] == ["a teacher at random: 0.50", "all examples: 0.82"]


def test_reliability_diagram():
    """Bars are the accuracies of the bins."""
    scores = torch.tensor([0.03, 0.05, 0.95, 0.97, 0.99])
    axes = Figure().subplots()
    plot_reliability(scores, torch.tensor([False, True, True, True, False]), axes, "first is right")
    bars = {round(bar.get_x() + bar.get_width() / 2, 2): bar.get_height() for bar in axes.patches}
    assert bars == pytest.approx({0.05: 1 / 2, 0.95: 2 / 3})
    assert [text.get_text() for text in axes.texts] == ["2", "3"]
    assert axes.get_xlim() == (0, 1) and axes.lines[0].get_xydata().tolist() == [[0, 0], [1, 1]]
    assert axes.get_title() == "first is right\ncounts, calibration error 0.37"  # (2 x 0.46 + 3 x 0.303) / 5


def test_reliability_diagram_of_a_score_that_is_no_probability():
    """Its bars fill the axis of its own range, and nothing is said of calibration."""
    scores = torch.tensor([-0.02, -0.019, -0.001, -0.0005, 0.0], dtype=torch.float64)
    axes = Figure().subplots()
    plot_reliability(scores, torch.tensor([False, True, True, True, False]), axes, "first is right")
    bars = {round(bar.get_x() + bar.get_width() / 2, 4): bar.get_height() for bar in axes.patches}
    assert bars == pytest.approx({-0.019: 1 / 2, -0.001: 2 / 3})
    assert axes.get_xlim() == (-0.02, 0) and not axes.lines
    assert axes.get_title().endswith("first is right\ncounts")


@pytest.mark.parametrize("factor", [1.0, -0.02])
def test_teachers_are_shown_on_the_same_axes(tmp_path, monkeypatch, factor):
    figures = []
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda figure, path, **_: (figures.append(figure), Image.new("RGB", (1, 1)).save(path, "png")),
    )
    scores, labels, union, logits = example(2)
    scores = scores.sigmoid() * factor * torch.tensor([1.0, 0.1])
    draw_scores(scores, teachers_right(logits, labels, union), labels, union, tmp_path / "scores.png")
    _, first, first_right, best_right, second, second_right = figures[0].axes
    limits = (0.0, 1.0) if factor > 0 else pytest.approx((float(scores.min()), 0.0))
    assert all(axes.get_xlim() == limits for axes in (first, second, first_right, second_right, best_right))
    assert first.get_ylim() == second.get_ylim() and first_right.get_ylim() == second_right.get_ylim()
    for axes in (first, second):  # no example is beyond the axis
        heights = sum(patch.get_height() for patch in axes.patches)
        assert heights == pytest.approx(2)
        assert len(axes.get_xticks()) <= 7


@pytest.mark.parametrize(("teachers", "overlap"), [(2, True), (4, False)])
def test_figure(tmp_path, teachers, overlap):
    scores, labels, union, logits = example(teachers, overlap=overlap)
    draw_scores(scores, teachers_right(logits, labels, union), labels, union, tmp_path / "scores.png")
    assert [file.name for file in tmp_path.iterdir()] == ["scores.png"]
    figure = imread(tmp_path / "scores.png")
    assert min(figure.shape[:2]) > 400 and figure[..., :3].std() > 0.05


def test_figure_of_one_example_and_of_scores_below_0(tmp_path):
    union = LabelUnion.disjoint([2, 2])
    scores, right, labels = torch.tensor([[-0.3, -0.1]]), torch.tensor([[False, True]]), torch.tensor([3])
    draw_scores(scores, right, labels, union, tmp_path / "scores.pdf", ["first", "second"])
    assert (tmp_path / "scores.pdf").read_bytes().startswith(b"%PDF")
