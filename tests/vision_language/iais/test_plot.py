"""Pictures: what stands in them, and that they are whole files."""

from __future__ import annotations

import pytest
import torch

from vision_language.iais import plot
from vision_language.iais.plot import draw_alignment, draw_history, draw_self_attention

BOXES = [[0, 0, 100, 80], [10, 5, 40, 60], [50, 20, 90, 70]]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    saved = []
    save = plot._save
    monkeypatch.setattr(plot, "_save", lambda figure, path: (saved.append(figure), save(figure, path)))
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
    assert figures[0].get_suptitle() == r"a red bus for \$1 or \$2"
    panels = {axes.get_title(): axes for axes in figures[0].axes if axes.get_title()}
    assert list(panels) == [
        f"{kind}, {model}" for kind in ("self-attention", "mirror") for model in ("before training", "after training")
    ]
    for axes, values in zip(panels.values(), (before[0], after[0], before[1], after[1]), strict=True):
        torch.testing.assert_close(torch.as_tensor(axes.images[0].get_array().data), values.double())
        assert labels(axes.xaxis) == labels(axes.yaxis) == ["a", "red", "bus"]


def test_history(figures, tmp_path):
    history = [{"step": 10 * k, "isd": 1 / k, "rsum": 50.0 * k, "loss": 0.1} for k in (1, 2, 3)]
    draw_history(history, tmp_path / "history.png", metric_label="sum of recalls")
    left, right, twin = figures[0].axes[:3]
    assert left.get_ylabel() == right.get_ylabel() == "sum of recalls"
    assert left.lines[0].get_xydata().tolist() == [[10, 50], [20, 100], [30, 150]]
    assert twin.lines[0].get_xydata().tolist() == [[10, 1], [20, 0.5], [30, 1 / 3]]
    assert right.collections[0].get_offsets().tolist() == [[1, 50], [0.5, 100], [1 / 3, 150]]


def test_an_error_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="nonsense"):
        draw_alignment(["a"], ["dog"], maps(1, 1), tmp_path / "picture.nonsense")
    assert not list(tmp_path.iterdir())
