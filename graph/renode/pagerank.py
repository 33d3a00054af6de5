"""Personalised PageRank, exact, by sparse solves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch_geometric.utils.num_nodes import maybe_num_nodes

from fairseq_ext.training.errors import DataError, OptionError, choose
from graph.inputs import as_edges, as_tensor, node_ids
from graph.renode.solve import conjugate_gradient, conjugate_gradient_twice, power_iteration, system_matrix

__all__ = ["LEAST_ALPHA", "PageRank", "binary_adjacency", "personalized_pagerank", "to_the_smallest"]

# Rounding costs a product 1e-16 / alpha of its size, which no residual shows; the float32 of a push has fewer digits.
LEAST_ALPHA = 1e-6
# Columns solved at once. Measured on Cora's size and on 100,000 nodes: wider blocks fall out of the cache, narrower
# ones read the matrix too often.
BLOCK = 16


class PageRank:
    r"""Personalised PageRank of a graph, as the operator

    .. math::
        \Pi = \alpha\,(I - (1-\alpha)\hat A)^{-1},\qquad \hat A = D^{-1/2}(A + I)\,D^{-1/2}

    where :math:`A` is binary (duplicate edges count once, edge weights are ignored), an existing self-loop adds to
    the one of :math:`I`, and :math:`D` holds the row sums of :math:`A + I`. :math:`\Pi` is never formed: each product
    with it is a sparse solve that starts from zero, so what cannot be reached stays exactly 0.

    The matrix of an undirected graph is symmetric positive definite with eigenvalues in :math:`[\alpha, 2-\alpha]`,
    and conjugate gradient takes a few dozen steps. A directed graph is not symmetrised: its products take the power
    iteration :math:`X \leftarrow (1-\alpha)\hat A X + \alpha B`. Everything is computed in float64 on the CPU, by as
    many threads as torch has (:func:`torch.set_num_threads`), whose number changes no bit of the results.

    Args:
        edge_index: Edges, ``A[source, target] = 1``. Any integer type.
        num_nodes: Number of nodes. Default: one more than the largest in ``edge_index``.
        alpha: Restart probability, in [1e-6, 1): rounding costs 1e-16 / alpha of the results. Default: 0.15 (the
            released ReNode code: the same).
        tol: A column is solved when the norm of its residual is at most ``tol`` times that of its right-hand side.
            Default: 1e-12, since ranks of Totoro scores can hang on differences of 1e-8.
        max_iter: Steps after which a solve gives up. Default: 1000.
        method: ``"auto"``, ``"cg"`` (undirected graphs only) or ``"power"``. Default: ``"auto"``: ``"cg"`` where the
            graph is undirected.

    Raises:
        OptionError: an option is out of range, or ``method`` is ``"cg"`` and the graph directed.
        DataError: ``edge_index`` is no list of edges between ``num_nodes`` nodes.
    """

    def __init__(
        self,
        edge_index: Tensor,
        num_nodes: int | None = None,
        alpha: float = 0.15,
        tol: float = 1e-12,
        max_iter: int = 1000,
        method: str = "auto",
    ) -> None:
        check_solver(alpha, tol, max_iter)
        choose("method", method, ("auto", "cg", "power"))
        self.alpha, self.tol, self.max_iter = alpha, tol, max_iter

        adjacency = binary_adjacency(edge_index, num_nodes).astype(np.int8)
        adjacency = adjacency + sparse.eye_array(adjacency.shape[0], dtype=np.int8, format="csr")
        self.num_nodes = adjacency.shape[0]
        transposed = adjacency.T.tocsr()
        self.undirected = _same_entries(adjacency, transposed)
        if method == "cg" and not self.undirected:
            raise OptionError("method: 'cg' needs an undirected graph and this one is directed; choose 'power'")
        self.method = ("cg" if self.undirected else "power") if method == "auto" else method

        scale = 1 / np.sqrt(adjacency.sum(axis=1))
        self.system = system_matrix(adjacency, scale, alpha)
        self.transposed = self.system if self.undirected else system_matrix(transposed, scale, alpha)

    def matmul(self, input: Tensor, transpose: bool = False, entrywise: bool = False) -> Tensor:
        r""":math:`\Pi B`, or :math:`\Pi^\top B`, a few columns at a time.

        Args:
            input: The right-hand sides :math:`B`.
            transpose: Whether to multiply by the transpose. Default: ``False``.
            entrywise: Whether each entry is solved to ``tol`` of itself, however small, by the power iteration. Needs
                an ``input`` without negative entries. Default: ``False``: an entry below ``tol`` of the largest has no
                digits, and is 0 where it was not reached.

        Shape:
            - input: :math:`(n, k)`
            - output: :math:`(n, k)`, float64

        Raises:
            OptionError: ``max_iter`` steps did not reach ``tol``.
            DataError: ``input`` is of another shape, not finite, or negative with ``entrywise``.
        """
        input = self._checked(input)
        if entrywise and (input < 0).any():
            raise DataError(f"input must be at least 0 with entrywise, got {float(input.min())}")
        method = "power" if entrywise else self.method
        solve = conjugate_gradient if method == "cg" else partial(power_iteration, entrywise=entrywise)
        system = self.transposed if transpose else self.system
        solution = torch.empty(input.shape, dtype=torch.float64, device=input.device)
        for columns, part in zip(input.split(BLOCK, 1), solution.split(BLOCK, 1), strict=True):
            rhs = self.alpha * columns.detach().to("cpu", torch.float64)
            part.copy_(self._solved(method, *solve(system, rhs, self.tol, self.max_iter)))
        return solution

    def overlap(self, input: Tensor, nodes: Tensor, entrywise: bool = False) -> Tensor:
        r"""The rows ``nodes`` of :math:`\Pi\,\Pi^\top B`, a few columns at a time.

        Conjugate gradient takes hardly longer to them than to :math:`\Pi B`
        (:func:`~graph.renode.solve.conjugate_gradient_twice`).

        Args:
            input: The right-hand sides :math:`B`.
            nodes: Their ids, or a mask over all nodes.
            entrywise: As in :meth:`matmul`.

        Shape:
            - input: :math:`(n, k)`
            - nodes: :math:`(L)`, or :math:`(n)` for a mask
            - output: :math:`(L, k)`, float64

        Raises:
            OptionError: ``max_iter`` steps did not reach ``tol``.
            DataError: ``input`` is of another shape, not finite, or negative with ``entrywise``.
        """
        input = self._checked(input)
        nodes = node_ids(nodes, self.num_nodes, "nodes").to(input.device)
        if entrywise or self.method != "cg":
            parts = (self.matmul(part, True, entrywise) for part in input.split(BLOCK, 1))
            return torch.cat([self.matmul(part, False, entrywise)[nodes] for part in parts], 1)
        output = torch.empty(len(nodes), input.size(1), dtype=torch.float64, device=input.device)
        for columns, part in zip(input.split(BLOCK, 1), output.split(BLOCK, 1), strict=True):
            rhs = self.alpha**2 * columns.detach().to("cpu", torch.float64)
            solved = conjugate_gradient_twice(self.system, rhs, nodes.cpu(), self.tol, self.max_iter)
            part.copy_(self._solved("cg", *solved))
        return output

    def components(self) -> Tensor:
        """The connected component of each node, ``(n)``."""
        links = self.system.crow_indices().numpy(), self.system.col_indices().numpy()
        adjacency = sparse.csr_array((np.ones(len(links[1]), np.int8), links[1], links[0]))
        return torch.from_numpy(sparse.csgraph.connected_components(adjacency, directed=False)[1]).long()

    def _checked(self, input: Tensor) -> Tensor:
        input = as_tensor(input, "input")
        if input.dim() != 2 or len(input) != self.num_nodes:
            raise DataError(f"input must have shape ({self.num_nodes}, k), got {tuple(input.shape)}")
        if not input.isfinite().all():
            raise DataError("input: a value is NaN or infinite")
        return input

    def _solved(self, method: str, solution: Tensor, residual: np.ndarray) -> Tensor:
        if not (residual <= self.tol).all():
            raise OptionError(
                f"tol: {method} did not converge, {self.max_iter} steps reached residual {residual.max():.1e} and "
                f"not tolerance {self.tol:.1e}; raise max_iter or tol"
            )
        return solution

    def rows(self, nodes: Tensor) -> Tensor:
        r"""The rows of :math:`\Pi` of ``nodes``.

        Args:
            nodes: Their ids, or a mask over all nodes.

        Shape:
            - nodes: :math:`(L)`, or :math:`(n)` for a mask
            - output: :math:`(L, n)`, float64
        """
        nodes = node_ids(nodes, self.num_nodes, "nodes")
        rows = torch.empty(len(nodes), self.num_nodes, dtype=torch.float64, device=nodes.device)
        for start in range(0, len(nodes), BLOCK):
            block = nodes[start : start + BLOCK]
            unit = torch.zeros(self.num_nodes, len(block), dtype=torch.float64)
            unit[block.cpu(), torch.arange(len(block))] = 1
            rows[start : start + BLOCK] = self.matmul(unit, transpose=True).T
        return rows

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_nodes}, alpha={self.alpha}, tol={self.tol}, method={self.method!r})"


def personalized_pagerank(
    edge_index: Tensor,
    nodes: Tensor,
    num_nodes: int | None = None,
    alpha: float = 0.15,
    tol: float = 1e-12,
    max_iter: int = 1000,
    method: str = "auto",
) -> Tensor:
    r"""Exact rows of personalised PageRank; see :class:`PageRank` for the formula and the arguments.

    Rows do not sum to 1, because the normalisation is symmetric.

    Args:
        nodes: Ids of the nodes whose rows are wanted, or a mask over all nodes.

    Shape:
        - edge_index: :math:`(2, E)`
        - nodes: :math:`(L)`, or :math:`(n)` for a mask
        - output: :math:`(L, n)`, float64

    Example:
        >>> edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> personalized_pagerank(edge_index, torch.tensor([0])).shape
        torch.Size([1, 3])
    """
    return PageRank(edge_index, num_nodes, alpha, tol, max_iter, method).rows(nodes)


def to_the_smallest(
    pagerank: PageRank,
    solve: Callable[[bool], Tensor],
    in_reach: Callable[[Tensor], Tensor],
    least: float,
) -> Tensor:
    """``solve(entrywise)``, entry by entry where conjugate gradient leaves nothing but its error.

    Args:
        pagerank: What ``solve`` uses.
        solve: Rows of non-negative values.
        in_reach: Which of these rows have a value above 0, from the component of each node.
        least: Where conjugate gradient has three digits: an overlap of classes is solved far beyond the tolerance.
    """
    # On directed graphs the sparse solve is the power iteration anyway, and what is in reach shows only there.
    if pagerank.method != "cg":
        return solve(True)
    values = solve(False)
    largest = values if values.dim() == 1 else values.amax(1)
    lost = largest <= least
    if lost.any():
        lost &= in_reach(pagerank.components().to(values.device))
    if lost.any():
        values[lost] = solve(True)[lost]
    return values


def binary_adjacency(edge_index: Tensor, num_nodes: int | None = None) -> sparse.csr_array:
    """The adjacency matrix of a graph, boolean so that duplicate edges collapse.

    Raises:
        DataError: ``edge_index`` is not of shape (2, E), not of integers, or names a node out of range.
    """
    edge_index = as_edges(edge_index)
    size = maybe_num_nodes(edge_index, num_nodes)
    edge_index = as_edges(edge_index, num_nodes=size)
    # scipy keeps the type of the ids in all that follows, and the narrow one halves what the solver reads.
    ids = torch.int32 if size <= torch.iinfo(torch.int32).max else torch.int64
    source, target = edge_index.to("cpu", ids).numpy()
    return sparse.coo_array((np.ones(len(source), np.bool_), (source, target)), shape=(size, size)).tocsr()


def check_alpha(alpha: float) -> None:
    """Refuses what is no restart probability."""
    if not LEAST_ALPHA <= alpha < 1:
        raise OptionError(f"alpha must be at least {LEAST_ALPHA} and less than 1, got {alpha}")


def check_solver(alpha: float, tol: float, max_iter: int) -> None:
    """Refuses options of :class:`PageRank` that are out of range."""
    check_alpha(alpha)
    if not 0 < tol < 1:
        raise OptionError(f"tol must be greater than 0 and less than 1, got {tol}")
    if max_iter < 1:
        raise OptionError(f"max_iter must be at least 1, got {max_iter}")


def _same_entries(a: sparse.csr_array, b: sparse.csr_array) -> bool:
    """Whether two matrices with sorted indices have their entries in the same places."""
    return np.array_equal(a.indptr, b.indptr) and np.array_equal(a.indices, b.indices)
