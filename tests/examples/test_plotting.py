"""The figures of results: the colour of each method, intervals, small multiples."""

from __future__ import annotations

import inspect
import re

import pytest
from matplotlib.figure import Figure

from examples.plotting import METHODS, Effect, colour_of, forest, limits_after_first, small_multiples
from examples.results import captioning, language_model
from examples.results.captioning import table
from examples.results.captioning.table import DENSE
from examples.results.image_classification import attacks, tails
from examples.results.translation import experiments
from fairseq_ext.training.plotting import GREY, PALETTE

ARMS = [*experiments.SYSTEMS, *captioning.ARMS, *tails.SHOWN]


@pytest.mark.parametrize("arm", sorted(set(ARMS)))
def test_every_arm_has_the_colour_of_its_method(arm):
    """What is compared with is grey, and nothing else is."""
    assert (colour_of(arm) == GREY) == (arm in (experiments.BASELINE, DENSE, tails.BASELINE))


def test_methods_have_the_colours_of_the_style():
    assert set(METHODS.values()) <= set(PALETTE)


def test_a_forest_of_differences():
    axes = Figure(layout="constrained").subplots()
    effects = [Effect("MUSE", 1.0, 0.5, 1.5), Effect("GCA, gate", -1.0), Effect("top-k 4", -50.0, -60.0, -40.0)]
    forest(axes, effects, limits=(-5, 5))
    zero, interval, point, hollow, _, arrow = axes.lines
    assert zero.get_xdata() == [0, 0] and list(interval.get_xdata()) == [0.5, 1.5]
    assert list(point.get_xdata()) == [1.0] and point.get_markerfacecolor() == colour_of("MUSE")
    assert hollow.get_markerfacecolor() == "white" and hollow.get_color() == colour_of("GCA")
    assert arrow.get_marker() == "<" and arrow.get_xdata() == [-5] and axes.texts[0].get_text() == "-50.0"
    assert [label.get_text() for label in axes.get_yticklabels()] == [effect.label for effect in effects]
    low, high = axes.get_ylim()
    assert low > high and axes.get_xlim() == (-5, 5)


def test_small_multiples_share_their_scales_and_the_baseline():
    runs = {
        "Transformer": [[(0, 5.0), (1, 1.0)]] * 2,
        "MUSE": [[(0, 4.0), (1, 0.5)]],
        "AdaNorm": [[(0, 9.0), (1, 2.0)]],
    }
    panels = small_multiples(Figure(), runs, "Transformer", limits=(0, 3))
    assert list(panels) == ["MUSE", "AdaNorm"] and {axes.get_ylim() for axes in panels.values()} == {(0, 3)}
    for name, axes in panels.items():
        assert [line.get_color() for line in axes.lines] == [GREY, colour_of(name)]
        assert axes.lines[0].get_ydata().tolist() == [5, 1]
        assert axes.get_title("left").replace("\n", " ") == f"{name}: 1 runs beside 2"
    runs = {name: own[:1] for name, own in runs.items()}
    panels = small_multiples(Figure(), runs, "Transformer")
    assert [axes.get_title("left") for axes in panels.values()] == ["MUSE", "AdaNorm"], "as many as the baseline"
    assert list(small_multiples(Figure(), {"Transformer": runs["Transformer"]}, "Transformer")) == ["Transformer"]


def test_limits_leave_out_the_first_points():
    """But not the only one of a run."""
    runs = {"MUSE": [[(0, 90.0), (1, 3.0), (2, 1.0)], [(0, 80.0), (1, 2.0)]], "AdaNorm": [[(0, 4.0)]]}
    assert limits_after_first(runs) == pytest.approx((1 - 0.241, 4 + 0.241))


@pytest.mark.parametrize("module", [attacks, language_model, table, tails], ids=lambda module: module.__name__)
def test_a_title_says_what_the_band_is(module):
    """Elsewhere ± is the standard deviation."""
    titles = re.findall(r"title = (.*)", inspect.getsource(module))
    assert titles and all("mean and range over" in title for title in titles)
