"""Backbones for node classification by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch_geometric.nn.models
from torch import Tensor, nn
from torch_geometric.nn.models.basic_gnn import BasicGNN

from fairseq_ext.training.errors import OptionError, choose
from fairseq_ext.training.options import OptionSet, option
from graph.renode.backbones import APPNP, GAT, GCN, PPNP, SGC, Cheb, GraphSAGE

__all__ = ["MODELS", "ModelOptions", "build_model", "options_of"]

PACKAGE = "torch_geometric.nn.models."
MODELS: dict[str, type[nn.Module]] = {
    "gcn": GCN,
    "gat": GAT,
    "sage": GraphSAGE,
    "cheb": Cheb,
    "sgc": SGC,
    "appnp": APPNP,
    "ppnp": PPNP,
}
OPTIONS = {"num_layers", "hidden_channels", "dropout", "alpha", "hops", "topk"}


def build_model(
    name: str,
    in_channels: int,
    out_channels: int,
    hidden_channels: int = 32,
    num_layers: int = 2,
    dropout: float = 0.5,
    alpha: float = 0.15,
    hops: int = 10,
    matrix: Callable[..., Tensor] | None = None,
    topk: int = 0,
) -> nn.Module:
    """A backbone; call it with ``(x, edge_index)``, or with ``adj_t``, the transposed sparse matrix, as ``edge_index``.

    All but ``gat`` and the dotted names remember what they computed from a graph, for a next call with an equal graph.

    Args:
        name: one of ``MODELS``, or the dotted name of a class of ``torch_geometric.nn.models``.

            - ``gcn`` (arXiv:1609.02907), ``sage`` (arXiv:1706.02216; mean), ``cheb`` (arXiv:1606.09375; K = 2), and
              ``gat`` (arXiv:1710.10903; 4 heads, 1 in the last layer): convolutions with ReLU and dropout between
              them; there is no dropout on the input, on attention, or on the logits.
            - ``sgc`` (arXiv:1902.07153): a linear map of the features propagated ``num_layers`` times.
            - ``appnp``, ``ppnp`` (arXiv:1810.05997): a perceptron of ``num_layers``, then ``hops`` steps of PageRank
              (``appnp``) or exact PageRank through a dense matrix (``ppnp``). On an undirected graph without
              self-loops, the latter is the limit of the former.
        in_channels, out_channels: numbers of features and classes.
        hidden_channels: width of hidden layers. Default 32, as released.
        num_layers: number of layers. Default 2, as released.
        dropout: dropout on hidden activations only. Default 0.5, as released.
        alpha: restart probability of ``appnp`` and ``ppnp``. Default 0.15, as released for ``ppnp``.
        hops: steps of ``appnp``. Default 10, as in its paper.
        matrix: computes the matrix of ``ppnp``, see :class:`~graph.renode.ppnp.ExactPageRank`. Default: each model
            computes its own.
        topk: entries of a row that ``ppnp`` keeps, see :class:`~graph.renode.backbones.PPNP`. Default: 0, all, as
            released.

    Raises:
        OptionError: an unknown model, or an option out of its range.
    """
    if min(num_layers, hidden_channels, hops) < 1 or not 0 <= dropout < 1:
        raise OptionError(
            "--num-layers, --hidden-size and --hops must be at least 1 and --dropout in [0, 1), "
            f"got {num_layers}, {hidden_channels}, {hops} and {dropout}"
        )
    options: dict[str, Any] = {
        "in_channels": in_channels,
        "hidden_channels": hidden_channels,
        "num_layers": num_layers,
        "out_channels": out_channels,
        "dropout": dropout,
        "alpha": alpha,
        "hops": hops,
        "matrix": matrix,
        "topk": topk,
    }
    factory = _factory(name)
    parameters = inspect.signature(factory).parameters
    options = {key: value for key, value in options.items() if key in parameters}
    return factory(**options) if name in MODELS else _checked(name, factory, options)


def options_of(name: str, num_layers: int = 2) -> set[str]:
    """The options of :func:`build_model` that change anything in the model ``name``."""
    factory = _factory(name)
    used = OPTIONS & set(inspect.signature(factory).parameters)
    if num_layers > 1 or not issubclass(factory, (BasicGNN, PPNP)):
        return used
    # A single layer has no hidden activations; torch_geometric's GAT also applies dropout to attention.
    attention = factory is torch_geometric.nn.models.GAT
    return used - ({"hidden_channels"} if attention else {"hidden_channels", "dropout"})


def _factory(name: str) -> type[nn.Module]:
    if not name.startswith(PACKAGE):
        return MODELS[choose("--backbone", name, MODELS)]
    # A name is looked up in a table and never imported: only classes that torch_geometric.nn.models exports are found.
    bare = choose(f"--backbone {name}", name.removeprefix(PACKAGE), torch_geometric.nn.models.classes)
    return getattr(torch_geometric.nn.models, bare)


def _checked(name: str, factory: type[nn.Module], options: dict[str, Any]) -> nn.Module:
    """A model of torch_geometric; refused unless it takes the arguments of a backbone and gives logits."""
    try:
        model = factory(**options)
        call = inspect.signature(model.forward)
        call.bind("x", "edge_index")
        if list(call.parameters)[:2] != ["x", "edge_index"] or not {"in_channels", "out_channels"} <= options.keys():
            raise TypeError("other arguments")
    except (TypeError, AttributeError, AssertionError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise OptionError(
            f"--backbone: {name} does not make logits from x, edge_index and its sizes ({reason.splitlines()[0]})"
        ) from error
    return model


@dataclass(frozen=True, kw_only=True)
class ModelOptions(OptionSet):
    """Which model."""

    backbone: str = option(
        "gcn", f"model: {', '.join(MODELS)}, or torch_geometric.nn.models.CLASS (released: sgc)", aliases=("model",)
    )
    num_layers: int = option(2, "layers of the model (released: 2)", least=1, aliases=("layers",))
    hidden_size: int = option(32, "width of the hidden layers (released: 32)", least=1, aliases=("hidden",))
    dropout: float = option(0.5, "dropout on hidden activations (released: 0.5)", least=0, below=1)
    hops: int = option(10, "propagation steps of --backbone appnp (its paper: 10)", least=1)
    topk: int = option(
        0,
        "entries kept of a row of ppnp's matrix, the largest; 0: all (released: -1, all)",
        least=0,
        aliases=("ppr_topk",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        used = {
            "hidden_size" if name == "hidden_channels" else name for name in options_of(self.backbone, self.num_layers)
        }
        idle = [name for name in ("num_layers", "hidden_size", "dropout", "hops", "topk") if name not in used]
        self.refuse_idle(f"with --backbone {self.backbone} of --num-layers {self.num_layers}", *idle)

    def make_model(
        self, in_channels: int, out_channels: int, alpha: float, matrix: Callable[..., Tensor] | None = None
    ) -> nn.Module:
        """The model, with initial weights, as :func:`build_model`."""
        return build_model(
            self.backbone,
            in_channels,
            out_channels,
            self.hidden_size,
            self.num_layers,
            self.dropout,
            alpha,
            self.hops,
            matrix,
            self.topk,
        )
