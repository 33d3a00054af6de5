"""Every option of ``python -m graph.renode train | score | plot``; the command lines are made from these classes."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq_ext.options import OptionSet, option
from graph.renode.data import DATASETS, IMBALANCES, SPLITS
from graph.renode.losses import LOSSES
from graph.renode.model import MODELS
from graph.renode.totoro import TIES

__all__ = [
    "SWITCH",
    "GraphOptions",
    "ModelOptions",
    "Recipe",
    "ScoreOptions",
    "SplitOptions",
    "TrainOptions",
    "WeightOptions",
]

SWITCH = ("off", "on")


@dataclass(frozen=True, kw_only=True)
class GraphOptions(OptionSet):
    """Which graph."""

    dataset: str = option(
        "Cora",
        f"{', '.join(DATASETS)}; a Class or Class:name of torch_geometric.datasets; an .npz file in the layout of "
        "Amazon's; or a .pt file with a Data",
    )
    root: str = option("data", "data sets by name live in ROOT/NAME")
    to_undirected: bool = option(False, "add the reverse of every edge (default: edges as they are)")


@dataclass(frozen=True, kw_only=True)
class SplitOptions(OptionSet):
    """Which of its nodes are labelled."""

    split: str = option(
        "compat",
        "compat: the released splits, which validate on the lowest ids left of each class; random: random validation "
        "nodes, too; public: the masks of the data set",
        SPLITS,
    )
    train_each: int = option(20, "labelled nodes a class (released: 20)", least=1)
    valid_each: int = option(30, "validation nodes a class (released: 30)", least=1)
    imbalance: str = option(
        "none",
        "step: head classes have --imbalance-ratio times as many labelled nodes (released: none)",
        IMBALANCES,
    )
    labeling_ratio: float = option(0.05, "labelled share of all nodes, for step (released: 0.01)", above=0, below=1)
    imbalance_ratio: float = option(5.0, "for step (released: 1)", above=0)
    head_classes: tuple[int, ...] = option((0, 1, 2), "for step (released: 0 1 2)")


@dataclass(frozen=True, kw_only=True)
class WeightOptions(OptionSet):
    """How conflict becomes a weight."""

    w_min: float = option(0.5, "weight of the most contested node (released: 0.5)", least=0)
    w_max: float = option(1.5, "weight of the least contested node (released: 1.5)", least=0)
    alpha: float = option(
        0.15, "restart probability of PageRank, here and in appnp and ppnp (released: 0.15)", above=0, below=1
    )
    ties: str = option(
        "index", "equal scores rank by node id (index) or share their mean weight (released: index)", TIES
    )
    tol: float = option(1e-12, "relative residual at which the solver stops", above=0, below=1)
    max_iter: int = option(1000, "steps after which the solver gives up", least=1)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(OptionSet):
    """What is trained, with which loss."""

    normalize_features: bool = option(False, "features of a node sum to 1 (default and released: raw)")
    model: str = option("gcn", f"{', '.join(MODELS)}, or torch_geometric.nn.models.CLASS (released: sgc)")
    layers: int = option(2, "of the model (released: 2)", least=1)
    hidden: int = option(32, "width (released: 32)", least=1)
    dropout: float = option(0.5, "on hidden activations (released: 0.5)", least=0, below=1)
    hops: int = option(10, "steps of appnp (paper of appnp: 10)", least=1)
    loss: str = option("ce", "training loss (released: ce)", LOSSES)
    gamma: float = option(2.0, "of focal (released: 2)", least=0)
    beta: float = option(0.9999, "of cb-softmax (released: 0.9999)", least=0, below=1)
    log_end: float = option(0.75, "of encouraging (its paper: 0.75)", least=0, most=1)
    renode: str = option(
        "on", "weight the loss of each labelled node by the rank of its conflict (released: off)", SWITCH
    )


@dataclass(frozen=True, kw_only=True)
class Recipe(OptionSet):
    """How to train; every default is that of the released code."""

    lr: float = option(0.0075, "of Adam, up to --lr-decay-epoch (released: 0.0075)", above=0)
    lr_decay: float = option(0.95, "what it is multiplied by at every later epoch (released: 0.95)", above=0)
    lr_decay_epoch: int = option(20, "last epoch at the full rate (released: 20)", least=0)
    min_lr: float = option(1e-4, "where its decay ends (released: 1e-4)", least=0)
    weight_decay: float = option(0.0, "of Adam (released: 0)", least=0)
    epochs: int = option(200, "at most (released: 200)", least=1)
    least_epochs: int = option(40, "no early stop before (released: 40)", least=0)
    patience: int = option(20, "epochs without a better validation F1 that end the training (released: 20)", least=1)

    def lr_factor(self, steps: int) -> float:
        """What ``lr`` is multiplied by after ``steps`` epochs."""
        late = steps + 1 - self.lr_decay_epoch
        return max(self.lr_decay**late, min(self.min_lr / self.lr, 1.0)) if late > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(GraphOptions, SplitOptions, WeightOptions):
    """A graph, its labelled nodes, and their weights."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(ScoreOptions, ModelOptions, Recipe):
    """Settings of :func:`graph.renode.train.run`; defaults are the released code's where the help says so.

    Raises:
        OptionError: a value that is not allowed.
    """
