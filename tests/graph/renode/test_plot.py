"""What the figures show: the most contested nodes, a legend, and nodes without label."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from torch_geometric.data import Data

from graph.renode.options import ScoreOptions
from graph.renode.plot import CONTESTED, class_colors, plot_layout, plot_neighbors, plot_weights, region
from graph.renode.score import score_table, scored


def a_scored_graph(nodes=300, classes=3, edges=3000):
    """Dense enough that two steps from any node reach nearly all others."""
    torch.manual_seed(0)
    edge_index = torch.randint(nodes, (2, edges))
    data = Data(edge_index=torch.cat([edge_index, edge_index.flip(0)], 1), y=torch.arange(nodes) % classes)
    return scored(data, torch.arange(max(60, 3 * classes)), ScoreOptions().make_transform())


def drawn(draw, data, *arguments):
    axes = Figure().subplots()
    draw(data, axes, *arguments)
    return axes


def most_contested(data):
    return data.totoro.argsort(descending=True)[:CONTESTED].tolist()


@pytest.mark.parametrize("max_nodes", [10, 25, 120, 1000])
def test_layout_shows_the_most_contested_nodes(max_nodes):
    data = a_scored_graph()
    axes = drawn(plot_layout, data, max_nodes)
    labelled = [points for points in axes.collections[1:] if len(points.get_offsets()) and points.get_linewidths()[0]]
    assert sum(len(points.get_offsets()) for points in axes.collections[1:]) == min(max_nodes, 300)
    numbers = {text.get_text(): text.xy for text in axes.texts}
    assert numbers.keys() == {str(number) for number in range(1, CONTESTED + 1)}
    (labelled,) = labelled
    offsets = labelled.get_offsets()
    # The most contested weighs least, so it is the smallest; its number stands at it.
    weight = data.renode_weight[most_contested(data)].numpy()
    for number, expected in enumerate(weight, start=1):
        at = np.abs(offsets - numbers[str(number)]).sum(1).argmin()
        assert labelled.get_sizes()[at] == pytest.approx(90 * expected**2, rel=1e-5)


def test_weights_and_scores_stand_at_their_ranks():
    data = a_scored_graph()
    axes = drawn(plot_weights, data)
    (weights,), (scores,) = (own.lines for own in axes.figure.axes)
    nodes = data.train_mask.nonzero().squeeze(1)
    nodes = nodes[data.totoro[nodes].argsort()]
    for line, values in ((weights, data.renode_weight), (scores, data.totoro)):
        assert line.get_xdata().tolist() == list(range(len(nodes)))
        np.testing.assert_allclose(line.get_ydata(), values[nodes], rtol=1e-6)
    assert weights.get_ydata()[0] > weights.get_ydata()[-1] and scores.get_ydata()[0] < scores.get_ydata()[-1]


def test_a_region_is_shared_among_its_seeds():
    """A path for each of three seeds, the first behind a hub that alone would fill the region."""
    hub = [(0, 1), *((1, node) for node in range(10, 60))]
    paths = [(2, 3), (3, 4), (4, 5), (6, 7), (7, 8)]
    edge_index = torch.tensor([*hub, *paths]).T
    data = Data(edge_index=edge_index, y=torch.zeros(60, dtype=torch.long))
    nodes = region(data, [0, 2, 6], 12).tolist()
    assert len(nodes) == 12 and {0, 1, 2, 3, 4, 5, 6, 7, 8} <= set(nodes)
    assert region(data, [2, 6], 30).tolist() == [2, 3, 4, 5, 6, 7, 8], "no more can be reached"
    assert region(data, [9], 5).tolist() == [9]


@pytest.mark.parametrize("draw", [plot_layout, plot_neighbors])
def test_colours_are_explained(draw):
    axes = drawn(draw, a_scored_graph())
    legend = axes.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["class 0", "class 1", "class 2"]
    many = drawn(draw, a_scored_graph(classes=20))
    assert many.get_legend() is None
    (bar,) = (axes for axes in many.figure.axes if axes is not many)
    assert bar.get_ylabel() == "class" and [int(tick) for tick in bar.get_yticks()] == list(range(20))


def test_nodes_without_label_are_grey_and_no_neighbours():
    data = a_scored_graph(nodes=80, edges=300)
    data.y[~data.train_mask & (torch.arange(80) > 40)] = -1
    axes = drawn(plot_layout, data)
    assert axes.get_legend().get_texts()[0].get_text() == "no label"
    assert tuple(class_colors(data)[-1]) == to_rgba("0.85") and len(class_colors(data)) == 4
    share = drawn(plot_neighbors, data).collections[0].get_offsets()[:, 0]
    assert len(share) == score_table(data)["node"].size and share.max() <= 1


def test_no_neighbour_at_all(tmp_path):
    data = a_scored_graph()
    data.edge_index = torch.empty(2, 0, dtype=torch.long)
    with pytest.raises(ValueError, match="no labelled node has a neighbour"):
        drawn(plot_neighbors, data)
