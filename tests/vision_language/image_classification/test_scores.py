from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import load_golden
from vision_language.image_classification.scores import (
    OOD_SCORES,
    expected_calibration_error,
    log_odds,
    margin,
    ood_scores,
)


@pytest.fixture(scope="module")
def fixture():
    data = load_golden("encouraging_loss_images", "scores_a")
    return {name: torch.from_numpy(np.asarray(value)) for name, value in data.items()}


@pytest.mark.parametrize(
    ("key", "score", "temperature"),
    [
        ("msp_log_odds", "msp", 1.0),
        ("energy_T1", "energy", 1.0),
        ("energy_T2", "energy", 2.0),
        ("max_logit", "max-logit", 1.0),
        ("margin_top2", "margin", 1.0),
    ],
)
def test_ood_scores_are_those_of_the_fixture(fixture, key, score, temperature):
    torch.testing.assert_close(ood_scores(fixture["logits"], score, temperature), fixture[key], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_log_odds_of_the_top_class_are_those_of_the_softmax(fixture, temperature):
    expected = fixture[f"msp_T{temperature:g}"]
    torch.testing.assert_close(ood_scores(fixture["logits"], "msp", temperature).sigmoid(), expected)


def test_margins_and_log_odds_of_the_label_are_those_of_the_fixture(fixture):
    logits, labels = fixture["logits"], fixture["labels"]
    torch.testing.assert_close(margin(logits, labels), fixture["margin_target"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(-log_odds(logits, labels), fixture["neg_log_odds"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bins", [10, 15])
def test_calibration_error_is_that_of_the_fixture(fixture, bins):
    error = expected_calibration_error(fixture["logits"], fixture["labels"], bins)
    assert error == pytest.approx(float(fixture[f"ece{bins}"]), abs=1e-12)


@given(gap=st.floats(20, 1e4), score=st.sampled_from(["msp", "margin", "energy"]))
def test_scores_rank_images_whose_probability_is_rounded_to_one(gap, score):
    logits = torch.tensor([[gap, 0.0, -1.0], [gap + 1, 0.0, -1.0]])
    less, more = ood_scores(logits, score)
    assert less < more


def test_the_confidence_of_a_uniform_prediction_falls_into_a_bin():
    assert expected_calibration_error(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1]), bins=2) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mps",), "score must be one of msp, energy, max-logit, margin, got 'mps'"),
        (("energy", 0.0), "temperature must be above 0 and finite, got 0.0"),
        (("energy", float("nan")), "temperature must be above 0 and finite, got nan"),
        (("margin", 2.0), "temperature is an option of msp and energy"),
        (("max-logit", 2.0), "temperature is an option of msp and energy"),
    ],
)
def test_refused_scores(arguments, message):
    with pytest.raises(ValueError, match=message):
        ood_scores(torch.zeros(1, 2), *arguments)


@pytest.mark.parametrize("score", OOD_SCORES)
def test_one_class_has_no_margin(score):
    if score in ("msp", "margin"):
        with pytest.raises(ValueError, match="at least 2 classes"):
            ood_scores(torch.zeros(3, 1), score)


def test_refused_calibration():
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        expected_calibration_error(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), 0)
    with pytest.raises(ValueError, match="no image"):
        expected_calibration_error(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))
