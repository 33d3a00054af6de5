from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import f1_score, hamming_loss
from torch import Tensor

from graph.label_graph import metrics, multilabel_metrics, tune_threshold
from graph.label_graph.metrics import METRICS, f1_by_label
from tests.helpers import golden_names, load_golden


@pytest.mark.parametrize("name", golden_names("rmsc", "metrics_"))
def test_fixture(name):
    data = load_golden("rmsc", name)
    metrics = multilabel_metrics(data["scores"], data["gold"], float(data["threshold"]))
    assert metrics == pytest.approx({key: float(data[key]) for key in METRICS}, abs=1e-12)


def test_by_hand():
    scores = torch.tensor([[0.9, 0.3, 0.1], [0.6, 0.6, 0.2]])
    gold = torch.tensor([[1, 0, 0], [0, 1, 0]])
    # The first label wins the tie of the second sample; 0.2 is not above 0.2; no one has or gets the third label.
    assert multilabel_metrics(scores, gold, 0.25) == pytest.approx(
        {"one_error": 1 / 2, "hamming_loss": 2 / 6, "macro_f1": (2 / 3 + 2 / 3 + 0) / 3, "micro_f1": 2 / 3}
    )
    assert multilabel_metrics([[0.2]], [[1]])["micro_f1"] == 0


def test_one_label():
    metrics = multilabel_metrics([[0.9], [0.1], [0.8]], [[1], [1], [0]])
    assert (metrics["micro_f1"], metrics["macro_f1"], metrics["hamming_loss"]) == pytest.approx((1 / 2, 1 / 2, 2 / 3))
    none = multilabel_metrics([[0.9], [0.1]], [[0], [0]])  # its absence is no second label
    assert (none["micro_f1"], none["macro_f1"]) == (0, 0)


def test_threshold_is_no_prediction():
    assert multilabel_metrics(torch.tensor([[0.25]]), [[1]], 0.25)["micro_f1"] == 0


@given(st.integers(0, 10**6), st.booleans())
def test_tuned_threshold_is_the_best(seed, ties):
    rng = np.random.default_rng(seed)
    scores = rng.random((5, 4), dtype=np.float32)
    scores = scores.round(1) if ties else scores
    gold = rng.random((5, 4)) < 0.4

    def micro_f1(threshold):
        predicted = scores > threshold
        return 2 * (predicted & gold).sum() / max(predicted.sum() + gold.sum(), 1)

    best = max(micro_f1(threshold) for threshold in (-1.0, *np.unique(scores)))
    assert micro_f1(tune_threshold(scores, gold)) == pytest.approx(best)


@pytest.mark.parametrize("steps", [1, 2])
def test_threshold_between_neighbouring_floats(steps):
    # The mean of two neighbours is rounded to the lower or the upper one.
    low, high = np.float32(1) + np.array([steps - 1, steps], dtype=np.float32) * np.finfo(np.float32).eps
    scores, gold = np.array([[high, low]]), np.array([[1, 0]])
    assert multilabel_metrics(scores, gold, tune_threshold(scores, gold))["micro_f1"] == 1


SCORES = [*np.linspace(-1, 1, 9), *np.nextafter(np.float32(0.2), np.float32([0, 1])), -0.0, 3e38, np.inf, -np.inf]


@given(st.data(), st.sampled_from([np.float32, np.float64]), st.floats(0, 1))
def test_counts_give_what_scikit_learn_gives(data, dtype, threshold):
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=6))
    scores = data.draw(hnp.arrays(dtype, shape, elements=st.sampled_from(np.array(SCORES, dtype).tolist())))
    gold = data.draw(hnp.arrays(bool, shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "ENTRIES", 4)
        found, of_labels = multilabel_metrics(scores, gold, threshold), f1_by_label(scores, gold, threshold)
    predicted = scores.astype(np.float64) > threshold
    labels = [1] if gold.shape[1] == 1 else None
    f1 = {
        average: f1_score(gold, predicted, labels=labels, average=average, zero_division=0)
        for average in ("macro", "micro", None)
    }
    assert found == {
        "one_error": 1 - gold[np.arange(len(gold)), scores.argmax(1)].mean(),
        "hamming_loss": hamming_loss(gold, predicted),
        "macro_f1": f1["macro"],
        "micro_f1": f1["micro"],
    }
    assert of_labels == f1[None].tolist()


@given(st.data(), st.sampled_from([np.float32, np.float64]))
def test_the_tuned_threshold_is_that_of_a_full_ranking(data, dtype):
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=6))
    scores = data.draw(hnp.arrays(dtype, shape, elements=st.sampled_from(np.array(SCORES[:-2], dtype).tolist())))
    gold = data.draw(hnp.arrays(bool, shape))
    order = np.argsort(-scores, axis=None, kind="stable")
    ranked, hits = scores.ravel()[order].astype(np.float64), gold.ravel()[order].cumsum()
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
    below = np.append(ranked[1:], ranked[-1] - 1.0)
    f1[ranked == below] = -1.0
    cut = f1.argmax()
    assert tune_threshold(scores, gold) == (ranked[cut] + below[cut]) / 2


@pytest.mark.parametrize(("function", "most"), [(multilabel_metrics, 0.5), (f1_by_label, 0.5), (tune_threshold, 5)])
def test_few_bytes_for_every_sample_and_label(monkeypatch, function, most):
    monkeypatch.setattr(metrics, "ENTRIES", 4000)
    scores = torch.rand(1000, 500, generator=torch.Generator().manual_seed(1))
    gold = scores > 0.99
    tracemalloc.start()
    try:
        function(scores, gold)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak / scores.numel() < most


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"scores and gold .* \(2, 3\) and \(3, 2\)"):
        multilabel_metrics(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="scores and gold"):
        tune_threshold(np.zeros((0, 3)), np.zeros((0, 3)))


def test_f1_by_label_by_hand():
    scores, gold = [[0.9, 0.3, 0.1], [0.6, 0.6, 0.2]], [[1, 0, 0], [0, 1, 0]]
    assert f1_by_label(scores, gold, 0.25) == pytest.approx([2 / 3, 2 / 3, 0])
    assert f1_by_label([[0.9], [0.1], [0.8]], [[1], [1], [0]]) == pytest.approx([1 / 2])


def test_a_sample_without_gold_labels_is_an_error_of_the_first_label():
    assert multilabel_metrics([[0.9, 0.1], [0.9, 0.1]], [[0, 0], [1, 0]])["one_error"] == 1 / 2


@pytest.mark.parametrize("form", [Tensor.half, Tensor.bfloat16, Tensor.numpy, Tensor.tolist, Tensor.requires_grad_])
def test_scores_and_gold_of_any_form(form):
    scores, gold = torch.tensor([[0.5, 0.25], [0.75, 0.0]]), torch.tensor([[1, 0], [0, 1]])
    expected = multilabel_metrics(scores, gold)
    assert multilabel_metrics(form(scores.clone()), gold.bool()) == expected
    assert multilabel_metrics(scores, gold.float().tolist()) == expected


@pytest.mark.parametrize(
    ("scores", "gold", "message"),
    [
        ([[0.5, float("nan")]], [[1, 0]], "scores must be numbers, 1 are NaN"),
        ([[0.5, 0.5]], [[1, -1]], "gold must be 0 or 1, got -1.0"),
        ([[0.5, 0.5]], [[1, 0.3]], "gold must be 0 or 1, got 0.3"),
    ],
)
def test_what_is_no_score_or_no_label(scores, gold, message):
    for function in (multilabel_metrics, f1_by_label, tune_threshold):
        with pytest.raises(ValueError, match=message):
            function(scores, gold)
