"""Masks that a user's own graph brings: used, or drawn anew where that is asked for, never unasked."""

from __future__ import annotations

import json
from typing import get_type_hints

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from fairseq_ext.training.errors import DataError, OptionError
from graph.renode.__main__ import main
from graph.renode.large_graph import LargeGraph
from graph.renode.options import LargeOptions
from graph.renode.split_kind import SplitKind
from graph.renode.splits import labelled_nodes, make_split
from tests.graph.renode.large_graphs import a_graph, write_npz

SPLITTING = [
    name
    for name, function in main.commands.items()
    if any(issubclass(kind, SplitKind) for part, kind in get_type_hints(function).items() if part != "return")
]
FEW = "train-large --epochs 1 --patience 0 --renode off --eps 0.01".split()


def own(masks=True):
    graph, data = a_graph(nodes=60), Data()
    data.x, data.edge_index, data.y = torch.from_numpy(graph.x.toarray()), graph.edge_index, torch.from_numpy(graph.y)
    place = torch.arange(60)
    if masks:
        data.train_mask, data.val_mask, data.test_mask = place < 12, (place > 11) & (place < 30), place > 29
    return data


def saved(data, path):
    if path.suffix == ".pt":
        torch.save(data, path)
        return str(path)
    write_npz(LargeGraph.from_data(data), path)
    with np.load(path) as arrays:
        masks = {name: value.numpy() for name, value in data.to_dict().items() if name.endswith("_mask")}
        content = dict(arrays) | masks
    np.savez(path, **content)
    return str(path)


@pytest.mark.parametrize("form", ["pt", "npz"])
@pytest.mark.parametrize("command", SPLITTING)
def test_own_masks_are_not_passed_over(command, form, tmp_path):
    assert set(SPLITTING) == {"train", "score", "plot", "train-large"}
    graph = saved(own(), tmp_path / f"graph.{form}")
    with pytest.raises(OptionError) as error:
        main([command, "--dataset", graph, "--out", str(tmp_path / "out")])
    assert str(error.value) == (
        f"--split-kind: {graph} has its own train_mask, val_mask, test_mask: give --split-kind public to use them, "
        "or compat or random to draw another split"
    )
    assert not [*(tmp_path / "out").rglob("*")]


@pytest.mark.parametrize("form", ["pt", "npz"])
def test_a_large_graph_trains_on_its_own_masks(form, tmp_path):
    data, out = own(), tmp_path / "out"
    graph = saved(data, tmp_path / f"graph.{form}")
    options = LargeOptions(dataset=graph, split_kind="public")
    split = options.make_split(options.load_large())
    assert [part.tolist() for part in split] == [
        data[name].nonzero()[:, 0].tolist() for name in ("train_mask", "val_mask", "test_mask")
    ]
    arguments = [*FEW, "--dataset", graph, "--split-kind", "public", "--out", str(out)]
    main(arguments)
    data.val_mask[12] = False
    saved(data, tmp_path / f"graph.{form}")
    with pytest.raises(OptionError, match=r"inputs.masks"):
        main(arguments)


def test_a_file_without_masks_has_the_released_splits(tmp_path):
    """Also results of before there was another kind for large graphs."""
    graph, file = saved(own(masks=False), tmp_path / "graph.npz"), tmp_path / "out" / "results.json"
    arguments = [*FEW, "--dataset", graph, "--train-each", "4", "--out", str(file.parent)]
    main(arguments)
    content = json.loads(file.read_text())
    assert content["settings"].pop("split_kind") == "compat"
    file.write_text(json.dumps(content))
    main([*arguments, "--inits", "2"])
    assert len(json.loads(file.read_text())["runs"]) == 2
    with pytest.raises(OptionError, match=r"split_kind"):
        main([*arguments, "--split-kind", "random"])


def test_a_class_that_is_too_small_is_refused_with_what_fits():
    y = torch.tensor([0] * 9 + [1] * 14 + [-1])
    data = Data(y=y)
    with pytest.raises(OptionError, match=r"class 0 has only 9 of 20 nodes left; --train-each fits if at most 9$"):
        labelled_nodes(data)
    assert len(labelled_nodes(data, train_each=9)) == 18
    for each in (dict(train_each=10), dict(train_each=5, valid_each=5)):
        with pytest.raises(OptionError, match=r"; --train-each and --valid-each fit if together at most 9$"):
            make_split(data, **each)
    assert make_split(data, train_each=4, valid_each=5)
    with pytest.raises(OptionError, match=r"class 0 has only 0 of 2 .*; lower --labeling-ratio or --valid-each$"):
        make_split(data, imbalance="step", labeling_ratio=0.8, imbalance_ratio=0.9, head_classes=[0], valid_each=2)
    with pytest.raises(DataError, match=r"^class 1 has 0 of the nodes, a split takes 1 of each$"):
        labelled_nodes(Data(y=torch.tensor([0, 2])), train_each=1)
    graph = LargeGraph(torch.tensor([[0], [1]]), np.ones((23, 2)), y[:23])
    for each in (4, 3, 20):
        if each == 3:
            assert LargeOptions(dataset="graph.pt", train_each=each).make_split(graph)
            continue
        with pytest.raises(OptionError, match=r"; --train-each fits if at most 3$"):
            LargeOptions(dataset="graph.pt", train_each=each).make_split(graph)
