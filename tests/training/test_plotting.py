"""The style of figures: colours for everybody, names beside lines, and whole files."""

from __future__ import annotations

import ast
import logging
from itertools import combinations, pairwise

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from fairseq_ext.training import plotting
from fairseq_ext.training.plotting import PALETTE, categories, mean_and_range, name_lines, saved_figure
from tests.helpers import ROOT

# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", 2009:
# linear RGB as it is seen without the cones of one kind.
SEEN = {
    "all cones": np.eye(3),
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
}
TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]


def lab(colour, seen):
    """CIELAB, in which 2 is a just noticeable difference of two patches side by side."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(np.array(seen) @ linear, 0, 1) / [0.95047, 1, 1.08883]
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("seen", SEEN)
def test_colours_stand_apart_for_everybody(seen):
    colours = {colour: lab(colour, SEEN[seen]) for colour in (*PALETTE, "#FFFFFF")}
    nearest = min(
        (float(np.linalg.norm(one - other)), *names)
        for names, (one, other) in zip(combinations(colours, 2), combinations(colours.values(), 2), strict=True)
    )
    assert nearest[0] > 15, nearest


def test_classes_have_colours_of_their_own():
    for count in (1, 8, 9, 60):
        assert len({tuple(to_rgb(colour[:3] if len(colour) == 4 else colour)) for colour in categories(count)}) == count


def drawn_axes(**size):
    return Figure(layout="constrained", **size).subplots()


def test_names_stand_beside_their_lines_and_apart():
    axes = drawn_axes()
    for number, end in enumerate((0.5, 0.5, 0.51, 0.9)):
        axes.plot([0, 1], [0, end], label=f"arm {number}", color=PALETTE[number])
    axes.axhline(0.2)
    name_lines(axes)
    axes.figure.draw_without_rendering()
    names = {text.get_text(): text for text in axes.texts}
    assert list(names) == [f"arm {number}" for number in (0, 1, 2, 3)] and axes.get_legend() is None
    boxes = [Text.get_window_extent(text) for text in sorted(names.values(), key=lambda text: text.xyann[1])]
    assert all(below.y1 <= above.y0 + 1 for below, above in pairwise(boxes))
    assert all(box.x0 > axes.get_window_extent().x1 for box in boxes), "over the data"
    assert [names[f"arm {number}"].get_color() for number in range(4)] == list(PALETTE[:4])
    assert names["arm 3"].xy == pytest.approx(axes.transAxes.inverted().transform(axes.transData.transform((1, 0.9))))


def test_names_are_at_the_right_of_a_reversed_scale():
    axes = drawn_axes()
    axes.plot([100, 10], [1, 2], label="tail")
    axes.set_xscale("log")
    axes.invert_xaxis()
    name_lines(axes)
    (text,) = axes.texts
    assert text.xy == pytest.approx(axes.transAxes.inverted().transform(axes.transData.transform((10, 2))))


def test_many_lines_have_a_legend_beside_the_axes():
    axes = drawn_axes()
    for number in range(7):
        axes.plot([0, 1], [number, number], label=str(number))
    name_lines(axes)
    axes.figure.draw_without_rendering()
    assert not axes.texts and axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1


def test_a_mean_and_its_range():
    axes = drawn_axes()
    mean_and_range(axes, [[(1, 2.0), (2, 4.0), (3, 5.0)], [(1, 4.0), (2, 8.0)]], "x")
    assert axes.lines[0].get_xydata().tolist() == [[1, 3], [2, 6]]
    (band,) = axes.collections
    assert {tuple(point) for point in band.get_paths()[0].vertices} == {(1, 2), (1, 4), (2, 4), (2, 8)}
    mean_and_range(axes, [[(1, 2.0)]])
    assert len(axes.collections) == 1, "one run has no range"


def test_a_figure_looks_the_same_whatever_the_users_style(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    with matplotlib.rc_context({"figure.facecolor": "black", "savefig.transparent": True, "savefig.dpi": 20}):
        with saved_figure(tmp_path / "a.png", (3, 2), "costs $1 or $2") as figure:
            figure.subplots().plot([1, 2], color="#0072B2")
        assert matplotlib.rcParams["savefig.dpi"] == 20, "the user's settings are as before"
    image = imread(tmp_path / "a.png")
    assert image.shape[:2] == (260, 390) and (image[0, :, :3] == 1).all() and (image[..., 3:] == 1).all()
    assert np.abs(image[..., :3] - to_rgb("#0072B2")).max(-1).min() < 0.02, "few colours, but these"
    assert not [record for record in caplog.records if record.name.startswith("matplotlib")]


def test_a_figure_is_whole_or_not_there(tmp_path):
    with pytest.raises(ZeroDivisionError), saved_figure(tmp_path / "a.png", (3, 2)) as figure:
        figure.subplots().plot([1 / 0])
    assert not list(tmp_path.iterdir())
    with saved_figure(tmp_path / "a.png", (3, 2)):
        pass
    assert not list(tmp_path.iterdir()), "nothing was drawn"
    with saved_figure(tmp_path / "a.svg", (3, 2)) as figure:
        figure.subplots()
    assert (tmp_path / "a.svg").read_text().startswith("<?xml") and len(list(tmp_path.iterdir())) == 1


def test_the_kit_draws_nothing_that_only_examples_want():
    """Forms that compare methods are theirs."""
    trainers = [path for top in ("graph", "vision_language") for path in ROOT.glob(f"{top}/**/*.py")]
    used = {
        name.name
        for path in trainers
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == plotting.__name__
        for name in node.names
    }
    assert {name for name in plotting.__all__ if name not in used} == {"Run"}, "a type of an argument"
