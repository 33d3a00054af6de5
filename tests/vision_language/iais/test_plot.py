"""Figures: what stands in them, and that they are whole files."""

from __future__ import annotations

import itertools
from contextlib import contextmanager

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from fairseq_ext.training.plotting import saved_figure
from vision_language.iais import plot
from vision_language.iais.plot import draw_alignment, draw_history, draw_self_attention

BOXES = [[0, 0, 100, 80], [10, 5, 40, 60], [50, 20, 90, 70]]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    saved = []

    @contextmanager
    def kept(*arguments):
        with saved_figure(*arguments) as figure:
            yield figure
        saved.append(figure)

    monkeypatch.setattr(plot, "saved_figure", kept)
    return saved


def labels(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def maps(rows, columns):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).softmax(-1)


def test_alignment_beside_its_boxes(figures, tmp_path):
    path = tmp_path / "alignment.png"
    values = maps(4, 3).requires_grad_()
    draw_alignment(["a", "dog", "costs", "$5"], ["person", "dog", "person"], values, path, size=(100, 80), boxes=BOXES)
    assert path.read_bytes()[:4] == b"\x89PNG" and [file.name for file in tmp_path.iterdir()] == ["alignment.png"]
    left, right = figures[0].axes[:2]
    assert labels(left.yaxis) == ["a", "dog", "costs", r"\$5"]
    assert labels(left.xaxis) == ["person 1", "dog", "person 2"]
    torch.testing.assert_close(torch.as_tensor(left.images[0].get_array().data), values.detach().double())
    assert right.get_xlim() == (0, 100) and right.get_ylim() == (80, 0)
    assert {tuple(map(float, box.get_bbox().extents)) for box in right.patches} == {tuple(map(float, b)) for b in BOXES}
    assert {text.get_text() for text in right.texts} == {"person 1", "dog", "person 2"}
    colors = {text.get_text(): text.get_color() for text in right.texts}
    assert colors == {text.get_text(): text.get_color() for text in left.get_xticklabels()}


def test_alignment_without_boxes(figures, tmp_path):
    draw_alignment(["dog"], ["dog"], maps(1, 1), tmp_path / "one.svg")
    assert (tmp_path / "one.svg").read_text().startswith("<?xml")
    assert len(figures[0].axes) == 2  # the map and its colour bar


def test_many_regions_are_numbered(figures, tmp_path):
    draw_alignment(["a", "b"], ["car"] * 20, maps(2, 20), tmp_path / "x.png", size=(100, 80), boxes=[BOXES[1]] * 20)
    left, right = figures[0].axes[:2]
    assert labels(left.xaxis) == [f"{k} car" for k in range(1, 21)]
    assert {text.get_text() for text in right.texts} == {str(k) for k in range(1, 21)}
    assert not left.texts


def test_self_attention_before_and_after(figures, tmp_path):
    before, after = (maps(3, 3), maps(3, 3) / 2 + 1 / 6), (maps(3, 3).flip(1), maps(3, 3).flip(0))
    draw_self_attention(before, after, ["a", "red", "bus"], tmp_path / "maps.png", title="a red bus for $1 or $2")
    assert figures[0].get_suptitle() == "a red bus for $1 or $2"
    panels = {axes.get_title("left"): axes for axes in figures[0].axes if axes.get_title("left")}
    assert list(panels) == [
        f"{kind}, {model}" for kind in ("self-attention", "mirror") for model in ("before training", "after training")
    ]
    for axes, values in zip(panels.values(), (before[0], after[0], before[1], after[1]), strict=True):
        torch.testing.assert_close(torch.as_tensor(axes.images[0].get_array().data), values.double())
        assert labels(axes.xaxis) == labels(axes.yaxis) == ["a", "red", "bus"]


def test_map_and_mirror_have_one_colour_scale(figures, tmp_path):
    pairs = (maps(3, 3), (maps(3, 3) * 9).softmax(-1)), (torch.eye(3), torch.full((3, 3), 1 / 3))
    draw_self_attention(*pairs, ["a", "b", "c"], tmp_path / "maps.png")
    images = [axes.images[0] for axes in figures[0].axes if axes.images]
    everything = torch.cat([values for pair in pairs for values in pair])
    assert len(images) == 4 and {image.get_clim() for image in images} == {(0.01 / 3, float(everything.max()))}
    colours = {value: image.to_rgba([value]).tolist() for image in images[:1] for value in (0.0, 0.1, 0.3, 1.0)}
    assert all(image.to_rgba([value]).tolist() == colour for image in images for value, colour in colours.items())
    assert len({str(colour) for colour in colours.values()}) == 4
    assert len(figures[0].axes) == 5  # and one colour bar


@pytest.mark.parametrize("count", [1, 56, 100])
def test_figures_are_of_bounded_size(monkeypatch, figures, tmp_path, count):
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: Image.new("RGB", (1, 1)).save(path, "png"))
    names, words = [f"{k} a thing of a very long name" for k in range(count)], ["word"] * min(count, 60)
    draw_self_attention((maps(count, count),) * 2, (maps(count, count),) * 2, names, tmp_path / "maps.png")
    draw_alignment(words, names, maps(len(words), count), tmp_path / "a.png", size=(9000, 80), boxes=[BOXES[1]] * count)
    assert len(figures) == 2 and all(max(figure.get_size_inches()) * 130 <= 2600 for figure in figures)


def test_names_of_many_rows_stand_apart(figures, tmp_path):
    draw_alignment(["word"] * 60, ["car"] * 9, maps(60, 9), tmp_path / "a.png")
    boxes = [label.get_window_extent() for label in figures[0].axes[0].get_yticklabels()]
    assert all(one.y0 - other.y0 > 0.7 * other.height for other, one in itertools.pairwise(boxes[::-1]))


def test_history_with_the_controls_of_isd(figures, tmp_path):
    history = [{"step": 10 * k, "isd": 1 / k, "rsum": 50.0 * k, "loss": 0.1} for k in (1, 2, 3)]
    for record, control, entropy in zip(history, (1.5, 1.0, 0.5), (0.2, 0.6, 1.0), strict=True):
        record |= {"isd_mismatched": control, "map_entropy": entropy}
    draw_history(history, tmp_path / "history.png")
    left, middle, right, twin = figures[0].axes[:4]
    assert left.get_ylabel() == right.get_ylabel() == "sum of recalls"
    assert left.lines[0].get_xydata().tolist() == [[10, 50], [20, 100], [30, 150]]
    assert middle.lines[0].get_xydata().tolist() == [[10, 1], [20, 0.5], [30, 1 / 3]]
    assert middle.lines[1].get_xydata().tolist() == [[10, 1.5], [20, 1], [30, 0.5]]
    assert twin.lines[0].get_xydata().tolist() == [[10, 0.2], [20, 0.6], [30, 1]] and twin.get_ylim() == (0, 1.02)
    assert right.collections[0].get_offsets().tolist() == [[1, 50], [0.5, 100], [1 / 3, 150]]
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "ISD of captions and their images",
        "ISD with other images (control)",
        "entropy of the maps (1: flat, relations of nothing)",
    ]


def test_a_history_without_controls_is_drawn(figures, tmp_path):
    draw_history([{"step": 1, "isd": 1, "rsum": 2}], tmp_path / "history.png")
    assert len(figures[0].axes[1].lines) == 1


def test_an_error_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="nonsense"):
        draw_alignment(["a"], ["dog"], maps(1, 1), tmp_path / "figure.nonsense")
    assert not list(tmp_path.iterdir())
