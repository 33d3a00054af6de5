"""The figures of experiments: the numbers that are returned are those of the images, and what is drawn is them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from fairseq_ext.training.errors import InputError
from vision_language.image_classification.long_tail import GROUPS
from vision_language.image_classification.plots import (
    BINS,
    class_energies,
    energies,
    group_probabilities,
    margins,
    probabilities,
    reliability,
    robustness,
    tail,
    training,
)
from vision_language.image_classification.predict import QUANTILES
from vision_language.image_classification.results import COLOURS


@pytest.fixture
def axes():
    return Figure().subplots()


def of_arrays(*evaluations: dict[str, Any]) -> Any:
    """An experiment whose models were evaluated with these arrays."""
    stored = [{name: np.asarray(values) for name, values in arrays.items()} for arrays in evaluations]
    return SimpleNamespace(folder="el", arrays=lambda name: stored, json=lambda name: [])


def points(artist: Any) -> list[Any]:
    return artist.get_offsets().tolist()


def edge_of(band: Any) -> set[tuple[float, float]]:
    return {tuple(vertex) for vertex in band.get_paths()[0].vertices.tolist()}


@pytest.mark.parametrize("draw", [probabilities, margins])
def test_histograms_are_shares_over_common_bins(axes, draw):
    """Of two classes the log-odds are the margin; of the second experiment there are more images."""
    labels = [0, 0, 1, 0]
    few = of_arrays({"logits": [[3.0, 0], [1, 0], [0, 5], [0, 2]], "labels": labels})
    many = of_arrays(*({"logits": np.eye(2)[labels] * size, "labels": labels} for size in (4.0, 6.0)))
    numbers = draw(axes, {"few": few, "many": many, "none": of_arrays()})
    assert list(numbers["shares"]) == ["few", "many"] and len(numbers["edges"]) == BINS + 1
    edges = np.array(numbers["edges"])
    for name, odds in (("few", [3, 1, 5, -2]), ("many", [4] * 4 + [6] * 4)):
        counts = np.histogram(np.clip(odds, edges[0], edges[-1]), edges)[0]
        np.testing.assert_allclose(numbers["shares"][name], counts / len(odds))
    drawn = [steps.get_data() for steps in axes.patches[::2]]  # the others fill them
    assert [steps.values.tolist() for steps in drawn] == list(numbers["shares"].values())
    assert all(steps.edges.tolist() == numbers["edges"] for steps in drawn)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["few (median 2)", "many (median 5)"]


def test_bands_of_a_training_hold_half_and_nine_tenths(axes):
    quantiles = [[-2.0, -1, 0, 1, 3], [-1.0, 0, 2, 4, 8]]
    history = [{"epoch": epoch, "log_odds_quantiles": row} for epoch, row in enumerate(quantiles, 1)]
    experiments = {
        "el": SimpleNamespace(runs=[{"history": history}]),
        "untold": SimpleNamespace(runs=[{"history": []}]),
    }
    assert training(axes, experiments) == {
        "el": {"epochs": [1, 2], "quantiles": list(QUANTILES), "log_odds": quantiles}
    }
    assert axes.lines[0].get_xydata().tolist() == [[1, 0], [2, 2]]
    half, most = axes.collections
    assert edge_of(half) == {(1, -1), (1, 1), (2, 0), (2, 4)} and edge_of(most) == {(1, -2), (1, 3), (2, -1), (2, 8)}


def test_energies_of_all_models_are_densities(axes):
    known, other = [[2.0, 2.0]] * 3, [[0.0, 0.0]] * 2
    numbers = energies(axes, {"el": of_arrays({"test": known, "USPS": other}, {"test": known, "USPS": other})})
    assert list(numbers) == ["el, test", "el, USPS"]
    for steps, (name, energy) in zip(axes.patches, (("el, test", 2 + np.log(2)), ("el, USPS", np.log(2))), strict=True):
        edges, density = (np.array(numbers[name][part]) for part in ("edges", "density"))
        assert (density * np.diff(edges)).sum() == pytest.approx(1)
        (place,) = density.nonzero()[0]
        assert edges[place] - 1e-9 <= energy <= edges[place + 1] + 1e-9
        assert steps.get_data().values.tolist() == numbers[name]["density"]


def test_no_set_of_others_is_left_out(axes):
    sets = {name: np.full((3, 2), float(number)) for number, name in enumerate(["test", *"abcdef"])}
    drawn = energies(axes, {"el": of_arrays(sets)})
    assert list(drawn) == [f"el, {name}" for name in sets]


def test_energies_tell_how_many_others_pass_with_95_percent(axes):
    """Of ten known images all must: the lowest has 3. Half of the others are above; of a model of its own scale all."""
    known, other = np.array([[3.0, -50]] + [[9.0, -50]] * 9), np.array([[4.0, -50], [1, -50], [3, -50], [2, -50]])
    models = of_arrays({"test": known, "USPS": other}, {"test": known - 20, "USPS": other})
    numbers = energies(axes, {"el": models})
    assert numbers["el, USPS"]["fpr95"] == [0.5, 1] and "fpr95" not in numbers["el, test"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["el: test", "el: USPS, FPR95 75 %"]


def test_log_odds_of_a_tail_stand_in_panels_by_training_images(axes):
    """Over the bins of all; an experiment without a tail has none, and the colours are those of other figures."""
    few, many = ({"logits": np.eye(3)[[0, 1, 2, 2]] * size, "labels": [0, 1, 2, 2]} for size in (3.0, 5.0))
    tailed = [of_arrays(arrays) for arrays in (few, many)]
    for each in tailed:
        each.runs = [{"train_counts": [500, 500, 3]}]
    even = of_arrays(few)
    even.runs = [{"train_counts": [9, 9, 9]}]
    figure = axes.figure
    numbers = group_probabilities(axes, {"even": even, "a": tailed[0], "b": tailed[1]})
    assert list(numbers["shares"]) == ["all", *GROUPS] and not numbers["shares"]["medium"]
    odds = {name: size - np.log(2) for name, size in (("a", 3), ("b", 5))}
    for panel in ("all", "many", "few"):
        for name, shares in numbers["shares"][panel].items():
            (place,) = np.nonzero(shares)[0]
            assert shares[place] == 1
            assert numbers["edges"][place] - 1e-9 <= odds[name] <= numbers["edges"][place + 1] + 1e-9
    words = [panel.get_title().partition(":")[0].lower() for panel in figure.axes]
    assert words == ["all classes", *GROUPS]
    assert all(panel.get_xlim() == figure.axes[0].get_xlim() for panel in figure.axes)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    colours = [to_hex(steps.get_edgecolor()) for steps in figure.axes[0].patches[::2]]
    assert colours == [colour.lower() for colour in COLOURS[1:3]]
    none = of_arrays()
    none.runs = tailed[0].runs
    assert group_probabilities(Figure().subplots(), {"even": even, "none": none}) == {}


def test_energies_of_the_classes_are_sorted_for_each_true_class(axes):
    logits = [[4.0, 1, 2], [2, 1, 0], [0, 5, -1]]
    numbers = class_energies(axes, {"el": of_arrays({"logits": logits, "labels": [0, 0, 1]}), "none": of_arrays()})
    assert numbers == {
        "el": {
            "label": pytest.approx(-11 / 3),
            "best_other": pytest.approx(-1),  # 2, 1 and 0
            "true": [0, 1],
            "classes": [[0, 1, 2], [1, 0, 2]],
            "energies": [[-3, -1, -1], [-5, 0, 1]],
        }
    }
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [(1, -4), (2, -0.5), (3, 0)])


def attacked(*rows: dict[str, float]) -> dict[str, Any]:
    results = [{"accuracy": {"log-odds": row}} for row in rows]
    return {"el": SimpleNamespace(folder="el", json=lambda name: results if name == "attack_fgsm" else [])}


@pytest.mark.parametrize("other", [{"0.1": 0.5, "0": 0.7}, {"0": 0.7, "0.05": 0.6, "0.1": 0.5}])
def test_accuracies_of_several_models_stand_at_their_radii(axes, other):
    """Of lists in another order, or of other lengths; what one model alone has is left out."""
    numbers = robustness(axes, attacked({"0": 0.9, "0.1": 0.8, "0.2": 0.1}, other))
    assert numbers["el, fgsm, log-odds"] == {"epsilon": [0, 0.1], "accuracy": [[0.9, 0.8], [0.7, 0.5]]}
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [(0, 0.8), (0.1, 0.65)])


def test_radii_are_drawn_in_their_order(axes):
    """Those of pgd-l2 have several digits."""
    row = {"0": 0.9, "3": 0.8, "10": 0.5, "30": 0.1}
    assert robustness(axes, attacked(row))["el, fgsm, log-odds"]["epsilon"] == [0, 3, 10, 30]
    assert axes.lines[0].get_xdata().tolist() == [0, 3, 10, 30]


def test_models_without_a_common_radius_are_refused(axes):
    with pytest.raises(InputError, match=r"^plot: el has attacks \(fgsm, log-odds\) of models without a common radius"):
        robustness(axes, attacked({"0.1": 0.9}, {"0.2": 0.8}))


def test_a_tail_goes_from_the_largest_class_to_the_smallest(axes):
    runs = [
        {"train_counts": [5, 100, 20], "test_class_accuracy": accuracies}
        for accuracies in ([0.1, 0.9, 0.5], [0.3, 0.7, 0.5])
    ]
    even = {"train_counts": [5, 6, 7], "test_class_accuracy": [0.1, 0.2, 0.3]}
    numbers = tail(axes, {"el": SimpleNamespace(runs=runs), "no tail": SimpleNamespace(runs=[even])})
    assert numbers == {"el": {"images": [100, 20, 5], "accuracy": [[0.9, 0.5, 0.1], [0.7, 0.5, 0.3]]}}
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [(100, 0.8), (20, 0.5), (5, 0.2)])
    left, right = axes.get_xlim()
    assert left > 100 and right < 5


def sure(confidence: float, right: int, wrong: int) -> dict[str, Any]:
    """Images of which the first of two classes is predicted with this confidence."""
    logits = np.tile([np.log(confidence / (1 - confidence)), 0.0], (right + wrong, 1))
    return {"logits": logits, "labels": [0] * right + [1] * wrong}


def sizes_and_points(axes: Axes) -> tuple[list[float], list[Any]]:
    (drawn,) = axes.collections
    return drawn.get_sizes().tolist(), points(drawn)


def test_reliability_is_accuracy_by_confidence(axes):
    """Over the models of an experiment together, the larger the more images."""
    numbers = reliability(axes, {"el": of_arrays(sure(0.64, 1, 3), sure(0.95, 5, 1)), "none": of_arrays()})
    expected = [(0.64, 0.25), (0.95, 5 / 6)]
    assert list(numbers) == ["el"] and numbers["el"]["images"] == [4, 6]
    np.testing.assert_allclose(numbers["el"]["points"], expected)
    sizes, places = sizes_and_points(axes)
    np.testing.assert_allclose(places, expected)
    assert sizes == pytest.approx([4 + 200 * 0.4, 4 + 200 * 0.6])
    np.testing.assert_allclose(axes.lines[0].get_xydata(), expected)
    assert torch.equal(torch.tensor(axes.lines[1].get_xydata()), torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double())
