"""The options of each command of ``python -m graph.renode``: its own, and those of the parts it uses.

The options of a part are defined beside the part. An option that would do nothing beside the others is refused.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from fairseq_ext.training.flags import Device
from fairseq_ext.training.options import OptionSet, option, seed_option
from fairseq_ext.training.runs import run_name
from graph.renode.data import GraphOptions
from graph.renode.inductive_split import InductiveSplitOptions
from graph.renode.large_graph import LargeGraphOptions
from graph.renode.losses import LossOptions
from graph.renode.model import ModelOptions, options_of
from graph.renode.pprgo import PPRGoOptions
from graph.renode.recipe import LargeRecipe, Recipe
from graph.renode.rows import RowOptions
from graph.renode.splits import LabelOptions, SplitOptions
from graph.renode.transform import WeightOptions

__all__ = ["LargeOptions", "LargeRuns", "PlotFiles", "ScoreFiles", "ScoreOptions", "TrainOptions", "TrainRuns"]


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(GraphOptions, LabelOptions, WeightOptions):
    """A graph, its labelled nodes, and their weights."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(GraphOptions, SplitOptions, WeightOptions, ModelOptions, LossOptions, Recipe):
    """Graph, split, weights, model and recipe; defaults are the released code's where the help says so.

    Raises:
        OptionError: a value that is not allowed, or an option that would do nothing.
    """

    normalize_features: bool = option(
        False,
        "apply torch_geometric's NormalizeFeatures: subtract the smallest feature of all, then divide each row "
        "by its sum where that exceeds 1 (default: raw features, as released)",
    )
    renode: str = option(
        "on", "weight the loss of each labelled node by the rank of its conflict (released: off)", ("off", "on")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.renode == "off":
            self.refuse_idle("with --renode off", "w_min", "w_max", "ties", "tol", "max_iter")
            if "alpha" not in options_of(self.backbone, self.num_layers):
                self.refuse_idle(f"with --renode off and --backbone {self.backbone}", "alpha")
        if self.equal_classes:
            self.refuse_weights_of_classes()


@dataclass(frozen=True, kw_only=True)
class LargeOptions(LargeGraphOptions, InductiveSplitOptions, RowOptions, PPRGoOptions, LossOptions, LargeRecipe):
    """Graph, split, rows, weights, model and recipe of PPRGo; defaults are the released code's where the help says so.

    Raises:
        OptionError: a value that is not allowed, or an option that would do nothing.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_sampling == "tinl" and self.split_kind != "public":
            self.refuse_weights_of_classes()


@dataclass(frozen=True, kw_only=True)
class LargeRuns(Device):
    """Runs of the experiment; finished ones are not run again."""

    out: str = option("runs/renode-large", "folder of results and models")
    splits: int = option(1, "number of splits, of seeds 0, 1, ... (released: 1)", least=1)
    inits: int = option(
        1, "trainings on each split, of seeds 0, 1, ... of initialisation and dropout (released: 1)", least=1
    )

    @property
    def seeds(self) -> dict[str, dict[str, int]]:
        """The name of each run, and its seeds."""
        numbers = itertools.product(range(self.splits), range(self.inits))
        return {run_name(split=split, init=init): {"split": split, "init": init} for split, init in numbers}


@dataclass(frozen=True, kw_only=True)
class TrainRuns(LargeRuns):
    """Runs of the experiment; finished ones are not run again."""

    out: str = option("runs/renode", "folder of results")
    splits: int = option(
        0, "number of splits, of seeds 0, 1, ...; 0: 5, or all public ones if fewer (released: 5)", least=0
    )
    inits: int = option(
        3, "trainings on each split, of seeds 0, 1, ... of initialisation and dropout (released: 3)", least=1
    )


@dataclass(frozen=True, kw_only=True)
class ScoreFiles(OptionSet):
    """What is written."""

    out: str = option("runs/renode", "folder of the files")
    split_seed: int = seed_option(0, "seed of the split")


@dataclass(frozen=True, kw_only=True)
class PlotFiles(ScoreFiles):
    """What is drawn."""

    layout_nodes: int = option(400, "most nodes that the layout draws", least=1)
