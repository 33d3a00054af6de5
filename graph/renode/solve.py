r"""Solvers of :math:`(I - (1-\alpha)\hat A)\,X = B`, each column by itself, from zero: what cannot be reached stays 0.

Each returns its solution with the relative residual of every column, and leaves it to the caller to judge that. The
results do not depend on the number of threads: a row of a sparse product is one sum, and inner products take one
thread, which the memory keeps busy anyway.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

__all__ = ["conjugate_gradient", "conjugate_gradient_twice", "power_iteration", "system_matrix"]


def system_matrix(adjacency: sparse.csr_array, scale: np.ndarray, alpha: float) -> Tensor:
    r""":math:`I - (1-\alpha)\,S\,(A + I)\,S`, sparse CSR of float64.

    Args:
        adjacency: :math:`A + I`, whose rows all hold their diagonal.
        scale: The diagonal of :math:`S`.
        alpha: :math:`\alpha`.
    """
    source = np.repeat(np.arange(len(scale), dtype=adjacency.indices.dtype), np.diff(adjacency.indptr))
    values = -(1 - alpha) * adjacency.data * scale[source] * scale[adjacency.indices]
    values[adjacency.indices == source] += 1
    indptr, indices = torch.from_numpy(adjacency.indptr), torch.from_numpy(adjacency.indices)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
        return torch.sparse_csr_tensor(
            indptr, indices, torch.from_numpy(values), adjacency.shape, check_invariants=False
        )


def power_iteration(
    system: Tensor, rhs: Tensor, tol: float, max_iter: int, entrywise: bool = False
) -> tuple[Tensor, np.ndarray]:
    """Solves ``system @ x = rhs`` for any matrix: ``system = I - B``, and x is the sum of all ``B^j @ rhs``.

    Where ``rhs`` and ``B`` have no negative entry, all terms add up, and with ``entrywise`` each entry is solved by
    itself: its residual is at most ``tol`` times it. A norm does not see entries far below the largest. An entry that
    is reached only now has no sum yet, so the series goes on until all that can be reached are.
    """
    x = torch.zeros_like(rhs)
    residual, spare = _scattered(rhs), _scattered(rhs)
    scale = _dot(rhs, rhs)
    # Below the smallest normal number nothing has digits, and a product may stand still.
    least = torch.finfo(rhs.dtype).tiny / tol

    def relative() -> np.ndarray:
        if entrywise:
            return torch.add(x, residual, out=spare).add_(least).reciprocal_().mul_(residual).amax(0).numpy()
        return _relative(_dot(residual, residual), scale)

    for _ in range(max_iter):
        if not (relative() > tol).any():
            break
        x += residual
        residual, spare = torch.addmm(residual, system, residual, alpha=-1, out=spare), residual
    return x, relative()


def conjugate_gradient(system: Tensor, rhs: Tensor, tol: float, max_iter: int) -> tuple[Tensor, np.ndarray]:
    """Solves ``system @ x = rhs`` for a symmetric positive definite matrix."""
    x = torch.zeros_like(rhs)
    for step in itertools.islice(_steps(system, rhs), max_iter):
        _add(x, step.length, step.direction)
        if not (step.residual > tol).any():
            break
    return x, step.residual


def conjugate_gradient_twice(
    system: Tensor, rhs: Tensor, nodes: Tensor, tol: float, max_iter: int
) -> tuple[Tensor, np.ndarray]:
    r"""The rows ``nodes`` of :math:`Y` where ``system @ Y = X`` and ``system @ X = rhs``, at the cost of one solve.

    :math:`K^{-2} b` lies in the Krylov space of :math:`b` as :math:`K^{-1} b` does. With :math:`p_j = P_j(K)\,b` and
    :math:`r_j = R_j(K)\,b` the directions and residuals of conjugate gradient, :math:`a_j` and :math:`\beta_j` its
    coefficients, :math:`\pi_j = P_j(0)` and :math:`\rho_j = -R_j'(0)`,

    .. math::
        \rho_{j+1} = \rho_j + a_j \pi_j, \qquad \pi_{j+1} = 1 + \beta_j \pi_j, \qquad
        u_{j+1} = \beta_j w_j, \quad w_j = u_j + a_j \pi_j p_j, \qquad
        y_{j+1} = y_j + a_j (\rho_j p_j + w_j)

    from :math:`\rho_0 = 0, \pi_0 = 1, u_0 = y_0 = 0` keep :math:`K u_j = p_j - \pi_j r_j` and
    :math:`K y_j = x_j - \rho_j r_j`. No row of :math:`y` needs another, so only those of ``nodes`` are computed.

    Returns:
        :math:`Y`, and the larger of the relative residuals of the two systems.
    """
    y, u = rhs.new_zeros(2, len(nodes), rhs.size(1))
    pi, rho = np.ones(rhs.size(1)), np.zeros(rhs.size(1))
    for step in itertools.islice(_steps(system, rhs), max_iter):
        direction = step.direction[nodes]
        _add(u, step.length * pi, direction)
        _add(y, step.length, u)
        _add(y, step.length * rho, direction)
        u *= torch.from_numpy(step.growth)
        rho = rho + step.length * pi
        pi = 1 + step.growth * pi
        # No eigenvalue is above 2, so that the right-hand side of the second system has at least half the first's norm.
        residual = step.residual * np.maximum(1, 2 * rho)
        if not (residual > tol).any():
            break
    return y, residual


class _Step(NamedTuple):
    """A step of conjugate gradient along ``direction``, by ``length``, to the relative ``residual``.

    The next direction is the residual vector and ``growth`` times this one.
    """

    direction: Tensor
    length: np.ndarray
    growth: np.ndarray
    residual: np.ndarray


def _steps(system: Tensor, rhs: Tensor) -> Iterator[_Step]:
    """The steps of conjugate gradient, without end."""
    residual, image = rhs.clone(), torch.empty_like(rhs)
    direction = _scattered(rhs)
    scale = squared = _dot(rhs, rhs)
    while True:
        torch.mm(system, direction, out=image)
        # A column without residual stands still: its own step would divide rounding errors by each other.
        active = squared > 1e-60 * scale
        length = _ratio(squared, _dot(direction, image), active)
        _add(residual, -length, image)
        previous, squared = squared, _dot(residual, residual)
        growth = _ratio(squared, previous, active)
        yield _Step(direction, length, growth, _relative(squared, scale))
        torch.addcmul(residual, torch.from_numpy(growth), direction, out=direction)


def _scattered(values: Tensor) -> Tensor:
    """A copy for reads all over the place: NumPy asks the system for huge pages, which torch does not."""
    return torch.from_numpy(values.numpy().copy())


def _add(sum: Tensor, factor: np.ndarray, values: Tensor) -> None:
    """Adds ``values``, each column times its factor."""
    sum.addcmul_(torch.from_numpy(factor), values)


def _dot(a: Tensor, b: Tensor) -> np.ndarray:
    """Inner products of columns."""
    return np.einsum("nk,nk->k", a.numpy(), b.numpy())


def _ratio(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> np.ndarray:
    """``a / b``, 0 elsewhere."""
    return np.divide(a, b, out=np.zeros_like(a), where=where)


def _relative(squared: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Relative residuals of columns; a right-hand side of zeros is solved by zeros."""
    return np.sqrt(_ratio(squared, scale, scale > 0))
