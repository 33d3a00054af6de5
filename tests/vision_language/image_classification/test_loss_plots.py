"""The gradients that a loss leaves, and the numbers of its figures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers import golden_names, load_golden
from vision_language.image_classification.classifiers import CosineLinear
from vision_language.image_classification.gradients import LOG_ODDS_EDGES, binned_gradients, gradient_norms
from vision_language.image_classification.loss_plots import (
    gradient_training,
    gradients,
    loss_gradients,
    losses,
    sweep,
)
from vision_language.image_classification.objective import Objective
from vision_language.image_classification.options import BONUSES, LOSSES, LossOptions

CROSS_ENTROPY, ENCOURAGING = {"loss": "cross-entropy"}, {"log_end": 1.0}


def objective_of(classes: int, **options: Any) -> Objective:
    return Objective(LossOptions(**options), [1] * classes, 1)


@pytest.mark.parametrize(
    "name", [name for name in golden_names("encouraging_loss_images") if name.startswith("scores")]
)
def test_norms_of_the_logit_gradient_are_those_of_the_fixture(name):
    data = load_golden("encouraging_loss_images", name)
    logits, labels = torch.from_numpy(data["logits"]), torch.from_numpy(data["labels"])
    layer = nn.Linear(3, logits.size(1))
    inside = torch.from_numpy(data["neg_log_odds"]) > -11  # beyond, the bonus is clamped
    for options, key in ((CROSS_ENTROPY, "grad_norm_ce"), (ENCOURAGING, "grad_norm_el1")):
        norms = gradient_norms(objective_of(logits.size(1), **options), logits, labels, 1, layer)["logits"]
        expected = torch.from_numpy(data[key]).float()
        torch.testing.assert_close(norms[inside], expected[inside], rtol=1e-4, atol=1e-6)
    assert (norms[~inside] < 1e-4).all()


def test_norms_of_the_feature_gradient_are_those_of_autograd():
    torch.manual_seed(0)
    layer, labels = nn.Linear(5, 3), torch.tensor([0, 1, 2, 2])
    features = torch.randn(4, 5, requires_grad=True)
    objective = objective_of(3, reweight="loss", **CROSS_ENTROPY)
    logits = layer(features)
    (expected,) = torch.autograd.grad(4 * objective(logits, labels, 1), features)
    norms = gradient_norms(objective, logits, labels, 1, layer)
    torch.testing.assert_close(norms["features"], expected.norm(dim=1))
    assert "features" not in gradient_norms(objective, logits, labels, 1, CosineLinear(5, 3))


def test_gradients_are_averaged_over_bins():
    logits = torch.tensor([[3.0, 0.0], [3.5, 0.0], [-100.0, 0.0], [100.0, 0.0]])
    norms = {"logits": torch.tensor([1.0, 2.0, 5.0, 7.0])}
    bins = binned_gradients(norms, logits, torch.zeros(4, dtype=torch.long))
    assert bins["images"][0] == bins["images"][-1] == 1 and sum(bins["images"]) == 4
    place = LOG_ODDS_EDGES.index(4.0)
    assert bins["images"][place] == 2 and bins["logits"][place] == 1.5 and bins["log_odds"][place] == 3.25
    assert (bins["logits"][0], bins["logits"][-1]) == (5.0, 7.0) and bins["logits"][1] is None


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def results(
    accuracies: tuple[float, ...] = (0.5,), history: list[dict[str, Any]] | None = None, **settings: Any
) -> Any:
    run = {"history": history or [], "test_gradients": {"images": [1, 0, 2], "log_odds": [-1.0, None, 4.0],
           "logits": [1.0, None, 0.5], "features": [2.0, None, 1.0]}}  # fmt: skip
    runs = [{**run, "test_accuracy": accuracy} for accuracy in accuracies]
    return SimpleNamespace(runs=runs, settings={"loss": "encouraging", "epochs": 3, **settings})


def test_curves_are_those_of_the_loss(axes):
    curve = losses(axes, {"own": results(log_end=0.5)})
    p = np.array(curve["cross-entropy"]["probability"])
    np.testing.assert_allclose(curve["cross-entropy"]["value"], -np.log(p), atol=1e-5)
    np.testing.assert_allclose(curve["LE 1"]["value"], np.log(1 - p) - np.log(p), atol=2e-3)
    assert curve["experiment own"] == curve["LE 0.5"] and curve["LE 0"] != curve["LE 0.5"]
    slope = loss_gradients(axes, {"own": results(log_end=0.5)})
    np.testing.assert_allclose(slope["cross-entropy"]["value"], 1 - p, atol=1e-5)
    np.testing.assert_allclose(slope["LE 1"]["value"], 1, atol=1e-3)
    assert slope["experiment own"] == slope["LE 0.5"]


def test_the_curve_of_every_loss_is_drawn(axes):
    every = [{"loss": loss} for loss in LOSSES] + [{"bonus": bonus} for bonus in BONUSES]
    every += [{"adjust_logits": "ldam"}, {"adjust_logits": "prior"}, {"reweight": "both"}, {"label_smoothing": 0.1}]
    numbers = {}
    for part in (every[:8], every[8:]):
        numbers |= loss_gradients(axes, {str(options): results(**options) for options in part})
    own = [np.array(curve["value"]) for name, curve in numbers.items() if name.startswith("experiment")]
    assert len(own) == len(every) and all(np.isfinite(slope).all() and slope.max() > 0.1 for slope in own)


def test_gradients_are_pooled_over_seeds_and_followed_over_epochs(axes):
    history = [{"epoch": 1, "logits_gradient": 0.5, "features_gradient": 1.5}, {"step": 9}]
    experiments = {"el": results((0.5, 0.7), history), "older": SimpleNamespace(runs=[{"history": []}], settings={})}
    points = gradients(axes, experiments)
    assert points["el, features"] == {"log_odds": [-1.0, 4.0], "norm": [2.0, 1.0], "images": [2, 4]}
    assert set(points) == {"el, features", "el, logits"}
    lines = gradient_training(axes, experiments)
    assert lines == {
        "el, features": {"epochs": [1], "norm": [[1.5], [1.5]]},
        "el, logits": {"epochs": [1], "norm": [[0.5], [0.5]]},
    }


def test_pooled_gradients_are_means_over_the_images(axes):
    def run(*images: int, logits: list[float | None], log_odds: list[float | None]) -> dict[str, Any]:
        return {"test_gradients": {"images": list(images), "log_odds": log_odds, "logits": logits}}

    runs = [run(1, 0, logits=[4.0, None], log_odds=[0.0, None]), run(3, 2, logits=[8.0, 1.0], log_odds=[4.0, 6.0])]
    (points,) = gradients(axes, {"el": SimpleNamespace(runs=runs)}).values()
    assert points == {"log_odds": [3.0, 6.0], "norm": [7.0, 1.0], "images": [4, 2]}
    assert axes.lines[0].get_xydata().tolist() == [[3, 7], [6, 1]]


def test_a_sweep_is_of_experiments_that_differ_in_log_end_alone(axes):
    half, one = results((0.5, 0.6), log_end=0.5), results((0.7,), log_end=1.0)
    plain = results((0.4,), loss="cross-entropy", log_end=0.75)
    drawn = sweep(axes, {"a": one, "b": half, "c": plain})
    assert drawn == {"1": [0.7], "0.5": [0.5, 0.6], "no bonus": [0.4]}
    (means, _, (spreads,)), (alone, *_) = axes.containers
    np.testing.assert_allclose(means.get_xydata(), [(0.5, 0.55), (1, 0.7)])
    np.testing.assert_allclose(spreads.get_segments(), [[(0.5, 0.5), (0.5, 0.6)], [(1, 0.7), (1, 0.7)]])
    np.testing.assert_allclose(alone.get_xydata(), [(0.35, 0.4)])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["no bonus", "0.5", "1"]
    assert sweep(axes, {"a": one, "c": plain}) == {}
    assert sweep(axes, {"a": one, "b": results(log_end=0.5, lr=3.0)}) == {}
