"""Every option of ``python -m graph.renode train | score | plot``; the command lines are made from these classes.

An option that would do nothing beside the others is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fairseq_ext.training.options import OptionSet, option
from graph.renode.data import DATASETS, has_root
from graph.renode.losses import LossOptions
from graph.renode.model import MODELS, options_of
from graph.renode.splits import IMBALANCES, SPLITS
from graph.renode.totoro import TIES

__all__ = [
    "SWITCH",
    "GraphOptions",
    "LabelOptions",
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
    to_undirected: bool = option(False, "add the reverse of every edge (default: edges as they are; always in an .npz)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not has_root(self.dataset):
            self.refuse_idle(f"with --dataset {self.dataset}", "root")
        if Path(self.dataset).suffix == ".npz":
            self.refuse_idle("with an .npz file, whose edges are always undirected", "to_undirected")


@dataclass(frozen=True, kw_only=True)
class LabelOptions(OptionSet):
    """Which of its nodes are labelled."""

    split: str = option(
        "compat",
        "compat: the released splits, which validate on the lowest ids left of each class; random: random validation "
        "nodes, too; public: the masks of the data set",
        SPLITS,
    )
    train_each: int = option(20, "labelled nodes a class (released: 20)", least=1, idle={"imbalance": ("step",)})
    imbalance: str = option(
        "none",
        "step: head classes have --imbalance-ratio times as many labelled nodes (released: none)",
        IMBALANCES,
        idle={"split": ("public",)},
    )
    labeling_ratio: float = option(
        0.05, "labelled share of all nodes, for step (released: 0.01)", above=0, below=1, idle={"imbalance": ("none",)}
    )
    imbalance_ratio: float = option(5.0, "for step (released: 1)", above=0, idle={"imbalance": ("none",)})
    head_classes: tuple[int, ...] = option((0, 1, 2), "for step (released: 0 1 2)", idle={"imbalance": ("none",)})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split == "public":
            self.refuse_idle("with --split public", "train_each")
        if self.imbalance_ratio == 1:
            self.refuse_idle("with --imbalance-ratio 1", "head_classes")

    def quotas(self) -> dict[str, Any]:
        """The arguments of :func:`graph.renode.splits.quotas`."""
        return {item.name: getattr(self, item.name) for item in fields(LabelOptions) if item.name != "split"}

    @property
    def equal_classes(self) -> bool:
        """Whether all classes have as many labelled nodes, by these options."""
        return self.split != "public" and (self.imbalance == "none" or self.imbalance_ratio == 1)


@dataclass(frozen=True, kw_only=True)
class SplitOptions(LabelOptions):
    """Which of its nodes are labelled, and which validate."""

    valid_each: int = option(30, "validation nodes a class (released: 30)", least=1, idle={"split": ("public",)})


@dataclass(frozen=True, kw_only=True)
class WeightOptions(OptionSet):
    """How conflict becomes a weight."""

    w_min: float = option(0.5, "weight of the most contested node (released: 0.5)", above=0)
    w_max: float = option(1.5, "weight of the least contested node (released: 1.5)", above=0)
    alpha: float = option(
        0.15, "restart probability of PageRank, here and in appnp and ppnp (released: 0.15)", above=0, below=1
    )
    ties: str = option(
        "index", "equal scores rank by node id (index) or share their mean weight (released: index)", TIES
    )
    tol: float = option(1e-12, "relative residual at which the solver stops", above=0, below=1)
    max_iter: int = option(1000, "steps after which the solver gives up", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.w_min == self.w_max:
            self.refuse_idle("with equal --w-min and --w-max", "ties")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(LossOptions):
    """What is trained, with which loss."""

    normalize_features: bool = option(False, "features of a node sum to 1 (default and released: raw)")
    model: str = option("gcn", f"{', '.join(MODELS)}, or torch_geometric.nn.models.CLASS (released: sgc)")
    layers: int = option(2, "of the model (released: 2)", least=1)
    hidden: int = option(32, "width (released: 32)", least=1)
    dropout: float = option(0.5, "on hidden activations (released: 0.5)", least=0, below=1)
    hops: int = option(10, "steps of appnp (paper of appnp: 10)", least=1)
    renode: str = option(
        "on", "weight the loss of each labelled node by the rank of its conflict (released: off)", SWITCH
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        names = {"layers": "num_layers", "hidden": "hidden_channels", "dropout": "dropout", "hops": "hops"}
        used = options_of(self.model, self.layers)
        idle = [name for name, argument in names.items() if argument not in used]
        self.refuse_idle(f"with --model {self.model} of --layers {self.layers}", *idle)


@dataclass(frozen=True, kw_only=True)
class Recipe(OptionSet):
    """How to train; every default is that of the released code."""

    lr: float = option(0.0075, "of Adam, up to --lr-decay-epoch (released: 0.0075)", above=0)
    lr_decay: float = option(0.95, "what it is multiplied by at every later epoch (released: 0.95)", above=0, most=1)
    lr_decay_epoch: int = option(20, "last epoch at the full rate (released: 20)", least=0)
    min_lr: float = option(1e-4, "where its decay ends (released: 1e-4)", least=0)
    weight_decay: float = option(0.0, "of Adam (released: 0)", least=0)
    epochs: int = option(200, "at most (released: 200)", least=1)
    least_epochs: int = option(40, "no early stop before (released: 40)", least=0)
    patience: int = option(20, "epochs without a better validation F1 that end the training (released: 20)", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        default = self.defaults()
        for name in ("lr_decay", "lr_decay_epoch", "min_lr"):
            if self._rates() == self._rates(**{name: default[name]}):
                self.refuse_idle(f"on the learning rate of any of {self.epochs} epochs", name)
        if self._first_stop() == self._first_stop(least_epochs=default["least_epochs"]):
            self.refuse_idle(f"beside --patience {self.patience} and --epochs {self.epochs}", "least_epochs")
        if self._first_stop() == self._first_stop(patience=default["patience"]) == self.epochs:
            self.refuse_idle(f"where no training stops before --epochs {self.epochs}", "patience")

    def lr_factor(self, steps: int) -> float:
        """What ``lr`` is multiplied by after ``steps`` epochs."""
        return self._factor(steps, self.lr_decay, self.lr_decay_epoch, self.min_lr)

    def _factor(self, steps: int, lr_decay: float, lr_decay_epoch: int, min_lr: float) -> float:
        late = steps + 1 - lr_decay_epoch
        return max(lr_decay**late, min(min_lr / self.lr, 1.0)) if late > 0 else 1.0

    def _rates(self, **changed: Any) -> list[float]:
        """The factors of all epochs, with some options changed."""
        decay = {name: getattr(self, name) for name in ("lr_decay", "lr_decay_epoch", "min_lr")} | changed
        return [self._factor(steps, **decay) for steps in range(self.epochs)]

    def _first_stop(self, **changed: int) -> int:
        """The first epoch at which a training can stop, with some options changed."""
        least, patience = (changed.get(name, getattr(self, name)) for name in ("least_epochs", "patience"))
        return min(self.epochs, max(least + 1, patience + 2))


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(GraphOptions, LabelOptions, WeightOptions):
    """A graph, its labelled nodes, and their weights."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(GraphOptions, SplitOptions, WeightOptions, ModelOptions, Recipe):
    """Settings of :func:`graph.renode.train.run`; defaults are the released code's where the help says so.

    Raises:
        OptionError: a value that is not allowed, or an option that would do nothing.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.renode == "off":
            self.refuse_idle("with --renode off", "w_min", "w_max", "ties", "tol", "max_iter")
            if "alpha" not in options_of(self.model, self.layers):
                self.refuse_idle(f"with --renode off and --model {self.model}", "alpha")
        if self.equal_classes:
            self.refuse_idle("with as many labelled nodes of each class", "beta")
