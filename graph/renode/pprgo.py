"""PPRGo: node classification in which a node's prediction mixes the features of its personalised-PageRank neighbours.

    H = MLP(X)            z_v = Σ_j π_vj H_j

π_v is a sparse row of personalised PageRank. Pushing computes it without looking at the rest of the graph, so the cost
of a training step depends on the size of its rows, not on the size of the graph. Aleksandar Bojchevski, Johannes
Klicpera, Bryan Perozzi, Amol Kapoor, Martin Blais, Benedek Rózemberczki, Michal Lukasik, Stephan Günnemann: "Scaling
Graph Neural Networks with Approximate PageRank", KDD 2020, arXiv 2007.01570.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, nn

from fairseq_ext.training.errors import OptionError, choose
from fairseq_ext.training.modes import evaluating
from fairseq_ext.training.options import OptionSet, option
from graph.inputs import as_labels, as_weights
from graph.renode.push import NORMALIZATIONS

__all__ = ["Batch", "PPRGo", "PPRGoOptions", "RowBatches", "predict", "predict_logits", "to_torch"]


class PPRGo(nn.Module):
    """A multi-layer perceptron without biases, and the sparse mixture of its outputs.

    Args:
        in_channels: number of features of a node.
        out_channels: number of classes.
        hidden_channels: width of hidden layers. Default 32, as released.
        num_layers: matrices in the perceptron. Default 2, as released.
        dropout: dropout on the input and on each hidden activation. Default 0.1, as released. On sparse input it drops
            stored values, which is the same.

    Every matrix is initialised uniformly within ±1/sqrt(fan-in), as torch's linear layers and as in the released code
    (which stores the first matrix transposed, and initialises it by its other side).

    Shape:
        - x: (m, in_channels), strided or sparse CSR.
        - ppr: (rows, m), sparse CSR or strided; left out, the perceptron's own output is returned.
        - output: (rows, out_channels), or (m, out_channels) without ``ppr``.

    Raises:
        OptionError: num_layers below 1 or dropout outside [0, 1).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 32,
        num_layers: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise OptionError(f"num_layers must be at least 1, got {num_layers}")
        if not 0 <= dropout < 1:
            raise OptionError(f"dropout must be in [0, 1), got {dropout}")
        sizes = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
        self.layers = nn.ModuleList(nn.Linear(*pair, bias=False) for pair in itertools.pairwise(sizes))
        self.dropout = dropout

    def reset_parameters(self) -> None:
        for layer in self.layers:
            layer.reset_parameters()  # type: ignore[operator]

    def forward(self, x: Tensor, ppr: Tensor | None = None) -> Tensor:
        for depth, layer in enumerate(self.layers):
            x = layer(self._drop(x.relu() if depth else x))
        return x if ppr is None else ppr @ x

    def _drop(self, x: Tensor) -> Tensor:
        if x.layout != torch.sparse_csr or not self.training:
            return F.dropout(x, self.dropout, self.training)
        values = F.dropout(x.values(), self.dropout)
        return torch.sparse_csr_tensor(x.crow_indices(), x.col_indices(), values, x.shape, check_invariants=False)

    def extra_repr(self) -> str:
        return f"dropout={self.dropout}"


def to_torch(matrix: np.ndarray | sparse.csr_array, device: torch.device | str = "cpu") -> Tensor:
    """A float32 tensor, sparse CSR where the matrix is sparse."""
    if isinstance(matrix, np.ndarray):
        # A copy: an array of features on disk is read-only, and torch has no read-only tensors.
        return torch.from_numpy(np.array(matrix, np.float32, order="C")).to(device)
    indptr, indices = torch.from_numpy(matrix.indptr), torch.from_numpy(matrix.indices)
    values = torch.from_numpy(matrix.data.astype(np.float32))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
        return torch.sparse_csr_tensor(indptr, indices, values, matrix.shape, check_invariants=False).to(device)


class Batch(NamedTuple):
    """Some labelled nodes with everything that their loss needs.

    ``x`` holds the features of each neighbour once, however many rows share it; its rows are the columns of ``ppr``.
    """

    x: Tensor
    ppr: Tensor
    y: Tensor
    weight: Tensor
    size: int  # of the whole batch, over all processes


class RowBatches:
    """Mini-batches of personalised-PageRank rows.

    Args:
        ppr: (L, n) CSR matrix with a row for each labelled node.
        x: (n, F) features: an array, a memory map or a CSR matrix. Only the rows of neighbours are ever read.
        y: (L,) classes of the labelled nodes.
        weight: (L,) weights of their losses, each above 0. Default: ones.
        batch_size: rows per step, over all processes. Default 4200, as released: all labelled nodes in one batch.
        rank, world: this process takes the rows ``rank, rank + world, ...`` of each batch. Default: all rows.
        device: device of the tensors in a batch. Default: the CPU.

    Raises:
        DataError: ``y`` or ``weight`` has another length, or a weight is 0, as it is for a node without label.
    """

    def __init__(
        self,
        ppr: sparse.csr_array,
        x: np.ndarray | sparse.csr_array,
        y: np.ndarray,
        weight: np.ndarray | None = None,
        batch_size: int = 4200,
        *,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.ppr, self.x, self.y = ppr, x, as_labels(y, ppr.shape[0]).numpy()
        given = np.ones(len(self.y)) if weight is None else weight
        self.weight = as_weights(given, len(self.y)).float().numpy()
        self.batch_size, self.rank, self.world, self.device = batch_size, rank, world, device
        self._place = np.empty(ppr.shape[1], np.int64)

    def __iter__(self) -> Iterator[Batch]:
        """Batches of the rows in their own order."""
        return self.epoch(np.arange(len(self.y)))

    def epoch(self, order: np.ndarray) -> Iterator[Batch]:
        """Batches of the rows in the given order."""
        for start in range(0, len(order), self.batch_size):
            yield self.batch(order[start : start + self.batch_size])

    def batch(self, rows: np.ndarray) -> Batch:
        """This process's share of the given rows."""
        own = rows[self.rank :: self.world]
        ppr = self.ppr[own]
        neighbours = _distinct(ppr.indices, ppr.shape[1])
        self._place[neighbours] = np.arange(len(neighbours))
        shape = (len(own), len(neighbours))
        local = sparse.csr_array((ppr.data, self._place[ppr.indices].astype(np.int32), ppr.indptr), shape=shape)
        return Batch(
            to_torch(self.x[neighbours], self.device),
            to_torch(local, self.device),
            torch.from_numpy(self.y[own]).to(self.device),
            torch.from_numpy(self.weight[own]).to(self.device),
            len(rows),
        )


def _distinct(ids: np.ndarray, size: int) -> np.ndarray:
    """The sorted distinct ``ids``, each below ``size``, at a cost that depends on how many they are and not on it."""
    if size > 16 * len(ids):
        return np.unique(ids)
    # Marking beats sorting here: np.unique would cost more than the training step itself.
    present = np.zeros(size, bool)
    present[ids] = True
    return np.flatnonzero(present)


@torch.no_grad()
def predict_logits(
    model: PPRGo,
    x: np.ndarray | sparse.csr_array,
    adjacency: sparse.csr_array,
    *,
    alpha: float = 0.15,
    steps: int = 2,
    normalization: str = "sym",
    chunk: int = 8192,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """The logits of every node, by a few steps of the power iteration that the rows approximate.

        Z ← (1 - α) S Z + α H        from Z = H = MLP(X)

    Args:
        model: the trained perceptron.
        x: (n, F) features.
        adjacency: (n, n) CSR matrix of ones.
        alpha: restart probability, the one that the rows were made with. Default 0.15, as released.
        steps: steps of the iteration. Default 2, as released.
        normalization: S is D^-½ A D^-½ ("sym"), D^-1 A ("row") or A D^-1 ("col"). The logits of a node without
            neighbours are α H, whose largest entry is at the same class as that of H. Default ``"sym"``.
        chunk: nodes per pass through the perceptron. Default 8192.
        device: where the perceptron computes. Default: the CPU.

    Returns:
        Logits, (n, C) float32.
    """
    choose("normalization", normalization, NORMALIZATIONS)
    share = NORMALIZATIONS[normalization]
    starts = range(0, adjacency.shape[0], chunk)
    with evaluating(model):
        local = np.concatenate([model(to_torch(x[start : start + chunk], device)).cpu().numpy() for start in starts])
    degree = np.maximum(np.diff(adjacency.indptr), 1).astype(np.float32)[:, None]
    left, right = degree ** (share - 1), degree**-share
    z = local
    for _ in range(steps):
        z = (1 - alpha) * left * (adjacency @ (right * z)) + alpha * local
    return z


def predict(model: PPRGo, x: np.ndarray | sparse.csr_array, adjacency: sparse.csr_array, **options: Any) -> np.ndarray:
    """The class of every node, (n,) int64, by its largest logit; the arguments are those of :func:`predict_logits`."""
    return predict_logits(model, x, adjacency, **options).argmax(1)


@dataclass(frozen=True, kw_only=True)
class PPRGoOptions(OptionSet):
    """The perceptron, and how it predicts."""

    num_layers: int = option(2, "layers of the perceptron (released: 2)", least=1, aliases=("layers",))
    hidden_size: int = option(
        32, "width of the hidden layers (released: 32)", least=1, aliases=("hidden",), idle={"num_layers": (1,)}
    )
    dropout: float = option(0.1, "dropout on input and hidden activations (released: 0.1)", least=0, below=1)
    inference_steps: int = option(2, "steps of power iteration that predict (released: 2)", least=0, aliases=("steps",))

    def make_model(self, in_channels: int, out_channels: int) -> PPRGo:
        """The model, with initial weights."""
        return PPRGo(in_channels, out_channels, self.hidden_size, self.num_layers, self.dropout)
