from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import golden_names, load_golden
from vision_language.image_classification.detection import detection_metrics, false_positive_rate

FIXTURES = golden_names("encouraging_loss_images", "ood_")


@pytest.mark.parametrize("name", FIXTURES)
def test_metrics_are_those_of_the_fixture(name):
    data = load_golden("encouraging_loss_images", name)
    for metric, value in detection_metrics(data["id_scores"], data["ood_scores"]).items():
        assert value == pytest.approx(float(data[metric]), abs=1e-12), metric


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("rate", [0.95, 0.8])
def test_rates_and_thresholds_are_those_of_the_fixture(name, rate):
    data, percent = load_golden("encouraging_loss_images", name), round(100 * rate)
    expected = float(data[f"fpr{percent}"]), float(data[f"threshold{percent}"])
    assert false_positive_rate(data["id_scores"], data["ood_scores"], rate) == expected


scores = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)


@given(inside=scores, outside=scores)
def test_the_area_counts_pairs_and_a_tie_is_half_of_one(inside, outside):
    pairs = [(a > b) + (a == b) / 2 for a in inside for b in outside]
    metrics = detection_metrics(inside, outside)
    assert metrics["auroc"] == pytest.approx(np.mean(pairs))
    assert metrics["detection_accuracy"] >= 0.5


@given(inside=scores, outside=scores)
def test_only_the_order_of_scores_counts(inside, outside):
    same = detection_metrics(np.exp(inside) * 7, np.exp(outside) * 7)
    assert detection_metrics(inside, outside) == pytest.approx(same)


@pytest.mark.parametrize(
    ("inside", "outside", "message"),
    [
        ([], [1.0], "id_scores: there is no score"),
        ([1.0], [], "ood_scores: there is no score"),
        ([1.0, math.nan], [1.0], "id_scores: score 1 is not finite"),
        ([1.0], [math.inf], "ood_scores: score 0 is not finite"),
    ],
)
def test_refused_scores(inside, outside, message):
    with pytest.raises(ValueError, match=message):
        detection_metrics(inside, outside)


@pytest.mark.parametrize("rate", [0.0, 1.1, math.nan])
def test_refused_rates(rate):
    with pytest.raises(ValueError, match="true_positive_rate must be in"):
        false_positive_rate([1.0], [0.0], rate)
