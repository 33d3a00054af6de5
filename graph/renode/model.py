"""Backbones for node classification by name: torch_geometric's layers, stacked as in ReNode's released code."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable

import torch_geometric.nn.models
from torch import Tensor, nn
from torch_geometric.nn import APPNP, MLP, ChebConv, GATConv, GCNConv, MessagePassing, SAGEConv
from torch_geometric.nn.models.basic_gnn import BasicGNN

from fairseq_ext.training.errors import OptionError, choose
from graph.renode.pagerank import check_alpha
from graph.renode.propagation import ExactPageRank, Simplified, fixed_norm, fixed_propagation

__all__ = ["MODELS", "ConvStack", "Propagated", "build_model", "options_of"]

PACKAGE = "torch_geometric.nn.models."


class ConvStack(nn.Module):
    """Convolutions with ReLU and dropout between them; none on the input, on attention, or on the logits.

    Args:
        conv: makes a layer from ``(in_channels, out_channels)``; given ``last=True`` the one that ends in logits.
        in_channels, hidden_channels, out_channels: sizes.
        num_layers: convolutions.
        dropout: on each hidden activation.

    Shape:
        - x: (n, in_channels)
        - edge_index: (2, E)
        - output: (n, out_channels)
    """

    def __init__(
        self,
        conv: Callable[..., MessagePassing],
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int = 2,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        sizes = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
        self.convs = nn.ModuleList(
            conv(before, after, last=depth == num_layers)
            for depth, (before, after) in enumerate(itertools.pairwise(sizes), start=1)
        )
        self.dropout = nn.Dropout(dropout)

    def reset_parameters(self) -> None:
        for conv in self.convs:
            conv.reset_parameters()  # type: ignore[operator]

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for conv in self.convs[:-1]:
            x = self.dropout(conv(x, edge_index).relu())
        return self.convs[-1](x, edge_index)


class Propagated(nn.Module):
    """A perceptron whose outputs are propagated, as PPNP and APPNP do.

    Johannes Klicpera, Aleksandar Bojchevski, Stephan Günnemann, "Predict then Propagate: Graph Neural Networks meet
    Personalized PageRank", arXiv:1810.05997.
    """

    def __init__(self, mlp: MLP, propagation: nn.Module) -> None:
        super().__init__()
        self.mlp, self.propagation = mlp, propagation

    def reset_parameters(self) -> None:
        self.mlp.reset_parameters()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagation(self.mlp(x), edge_index)


def _gcn(before: int, after: int, last: bool = False) -> MessagePassing:
    return fixed_propagation(fixed_norm(GCNConv(before, after, normalize=False)))


def _sage(before: int, after: int, last: bool = False) -> MessagePassing:
    return fixed_propagation(SAGEConv(before, after))


def _cheb(before: int, after: int, last: bool = False) -> MessagePassing:
    return fixed_propagation(ChebConv(before, after, K=2))


def _gat(before: int, after: int, last: bool = False) -> MessagePassing:
    return GATConv(before, after) if last else GATConv(before, after // 4, heads=4)


STACKS = {"gcn": _gcn, "gat": _gat, "sage": _sage, "cheb": _cheb}
MODELS = (*STACKS, "sgc", "appnp", "ppnp")
SIZES = {"num_layers", "hidden_channels", "dropout"}


def build_model(
    name: str,
    in_channels: int,
    out_channels: int,
    hidden_channels: int = 32,
    num_layers: int = 2,
    dropout: float = 0.5,
    alpha: float = 0.15,
    hops: int = 10,
) -> nn.Module:
    """A backbone; call it with ``(x, edge_index)``.

    All but ``gat`` and the dotted names keep what they derive from a graph for the next call with an equal one.

    Args:
        name: one of ``MODELS``, or the dotted name of a class of ``torch_geometric.nn.models``.

            - ``gcn`` (arXiv:1609.02907), ``sage`` (arXiv:1706.02216; mean), ``cheb`` (arXiv:1606.09375; K = 2), and
              ``gat`` (arXiv:1710.10903; 4 heads, the last layer 1): :class:`ConvStack`.
            - ``sgc`` (arXiv:1902.07153): a linear map of the features propagated ``num_layers`` times.
            - ``appnp``, ``ppnp`` (arXiv:1810.05997): a perceptron of ``num_layers`` and ``hops`` steps of PageRank, or
              its exact limit through a dense matrix.
        in_channels, out_channels: features and classes.
        hidden_channels: 32, as released.
        num_layers: 2, as released.
        dropout: 0.5, as released; on hidden activations only.
        alpha: restart probability of ``appnp`` and ``ppnp``: 0.15, as released for ``ppnp``.
        hops: 10, as the paper of ``appnp``.

    Raises:
        OptionError: an unknown model, or an option out of its range.
    """
    if min(num_layers, hidden_channels, hops) < 1 or not 0 <= dropout < 1:
        raise OptionError(
            "--layers, --hidden and --hops must be at least 1 and --dropout in [0, 1), "
            f"got {num_layers}, {hidden_channels}, {hops} and {dropout}"
        )
    if name.startswith(PACKAGE):
        return _build_dotted(name, in_channels, out_channels, hidden_channels, num_layers, dropout)
    choose("--model", name, MODELS)
    if name == "gat" and hidden_channels % 4:
        raise OptionError(f"--hidden must be a multiple of gat's 4 heads, got {hidden_channels}")
    if name in STACKS:
        return ConvStack(STACKS[name], in_channels, hidden_channels, out_channels, num_layers, dropout)
    if name == "sgc":
        return Simplified(in_channels, out_channels, hops=num_layers)
    check_alpha(alpha)
    sizes = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
    mlp = MLP(sizes, dropout=dropout, norm=None)
    if name == "ppnp":
        return Propagated(mlp, ExactPageRank(alpha))
    return Propagated(mlp, fixed_propagation(fixed_norm(APPNP(hops, alpha, normalize=False))))


def options_of(name: str, num_layers: int = 2) -> set[str]:
    """Those of the options of :func:`build_model` that change anything in the model ``name``."""
    if name.startswith(PACKAGE):
        factory = _dotted(name)
        known = SIZES & set(inspect.signature(factory).parameters)
        # The only layer has no hidden activations; GAT drops attention, too.
        inner = {"hidden_channels"} if factory is torch_geometric.nn.models.GAT else {"hidden_channels", "dropout"}
        return known - inner if num_layers == 1 and issubclass(factory, BasicGNN) else known
    choose("--model", name, MODELS)
    inner = {"hidden_channels", "dropout"} if num_layers > 1 and name != "sgc" else set()
    return {"num_layers"} | inner | {"appnp": {"alpha", "hops"}, "ppnp": {"alpha"}}.get(name, set())


def _dotted(name: str) -> type[nn.Module]:
    # A table look-up, never an import: only what torch_geometric.nn.models exports can be named.
    bare = choose(f"--model {name}", name.removeprefix(PACKAGE), torch_geometric.nn.models.classes)
    return getattr(torch_geometric.nn.models, bare)


def _build_dotted(
    name: str, in_channels: int, out_channels: int, hidden_channels: int, num_layers: int, dropout: float
) -> nn.Module:
    factory = _dotted(name)
    options = {
        "in_channels": in_channels,
        "hidden_channels": hidden_channels,
        "num_layers": num_layers,
        "out_channels": out_channels,
        "dropout": dropout,
    }
    known = inspect.signature(factory).parameters
    try:
        model = factory(**{key: value for key, value in options.items() if key in known})
        call = inspect.signature(model.forward)
        call.bind("x", "edge_index")
        if list(call.parameters)[:2] != ["x", "edge_index"] or not {"in_channels", "out_channels"} <= set(known):
            raise TypeError("other arguments")
    except (TypeError, AttributeError, AssertionError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise OptionError(
            f"--model: {name} does not make logits from x, edge_index and its sizes ({reason.splitlines()[0]})"
        ) from error
    return model
