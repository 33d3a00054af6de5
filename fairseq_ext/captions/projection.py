"""Principal components of features."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np

from fairseq_ext.training.arrays import load_npz, write_npz
from fairseq_ext.training.errors import DataError, OptionError

__all__ = ["Projection"]


@dataclass(frozen=True)
class Projection:
    """``(x - mean) components^T``.

    Attributes:
        mean: ``(D,)``.
        components: ``(k, D)``, orthonormal, by falling variance.
        explained: the share of the variance that the components keep.
    """

    mean: np.ndarray
    components: np.ndarray
    explained: float

    @classmethod
    def fit(cls, arrays: Iterable[np.ndarray], size: int) -> Self:
        """The components of vectors ``(..., D)``, which need not fit into memory together.

        Raises:
            OptionError: more components than numbers in a vector, or than vectors.
        """
        count, total, products = 0, np.zeros(0), np.zeros(0)
        for array in arrays:
            rows = array.reshape(-1, array.shape[-1]).astype(np.float64)
            if not count:
                total, products = np.zeros(rows.shape[1]), np.zeros((rows.shape[1], rows.shape[1]))
            count, total, products = count + len(rows), total + rows.sum(0), products + rows.T @ rows
        if size > min(count, len(total)):
            raise OptionError(
                f"--pca {size}: at most {min(count, len(total))} of {count} vectors of {len(total)} numbers"
            )
        mean = total / count
        values, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
        explained = float(values[-size:].sum() / values.sum())
        return cls(mean.astype(np.float32), vectors[:, ::-1][:, :size].T.astype(np.float32), explained)

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """Project vectors ``(..., D)`` to ``(..., k)``.

        Raises:
            DataError: D is another number.
        """
        if array.shape[-1] != len(self.mean):
            raise DataError(f"--pca-file: components of {len(self.mean)} numbers, the network gives {array.shape[-1]}")
        return (array - self.mean) @ self.components.T

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what :meth:`save` wrote."""
        arrays = load_npz(path, "mean", "components", "explained")
        if len(arrays) < 3 or arrays["components"].shape[1:] != arrays["mean"].shape:
            raise DataError(f"{path}: not components that an extraction wrote")
        return cls(arrays["mean"], arrays["components"], float(arrays["explained"]))

    def save(self, path: Path) -> None:
        """Write an npz."""
        write_npz(path, asdict(self))
