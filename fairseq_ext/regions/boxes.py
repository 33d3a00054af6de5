"""The regions of one image, and checks of their boxes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from fairseq_ext.training.errors import DataError

__all__ = ["Regions", "check_boxes", "grid_cells"]


def check_boxes(boxes: np.ndarray, width: float, height: float, origin: str) -> np.ndarray:
    """Boxes ``(V, 4)`` of x1, y1, x2, y2, cut at the border of their image where they reach over it by a pixel at most.

    An image of 1 x 1 has boxes in fractions, which may reach over by 0.01.

    Raises:
        DataError: a box without size, one outside of the image, or fractions of the image in the place of pixels.
    """
    corners = np.array([width, height, width, height], dtype=np.float64)
    inside = boxes.clip(0, corners)
    slack = 1 if min(width, height) > 1 else 0.01
    sizes = f"its image of {width:g} x {height:g}"
    for wrong, what in (
        ((boxes[:, :2] >= boxes[:, 2:]).any(1), "has no size; expected x1 < x2 and y1 < y2"),
        ((abs(boxes - inside) > slack).any(1), f"is not inside {sizes}"),
        ((inside[:, :2] >= inside[:, 2:]).any(1), f"is not inside {sizes}"),
        (np.full(len(boxes), slack == 1 and (boxes <= 1).all()), f"is in fractions, expected pixels of {sizes}"),
    ):
        if wrong.any():
            box = ", ".join(f"{number:g}" for number in boxes[wrong.argmax()])
            raise DataError(f"{origin}: box [{box}] {what}")
    return inside


def grid_cells(rows: int, columns: int, width: float, height: float, padded: bool = False) -> np.ndarray:
    """The boxes ``(rows * columns, 4)`` of the equal cells of an image, row by row.

    Where it was ``padded``, they are of the square around it, and reach out of it.
    """
    top, left = np.divmod(np.arange(rows * columns), columns)
    corners = np.stack([left / columns, top / rows, (left + 1) / columns, (top + 1) / rows], 1)
    if not padded:
        return corners * [width, height, width, height]
    side = max(width, height)
    return corners * side - np.array([side - width, side - height] * 2) / 2


@dataclass(frozen=True)
class Regions:
    """The regions of an image: boxes ``(V, 4)`` in pixels, and what else describes them.

    Raises:
        DataError: a number that is not finite, or an image without size.
    """

    key: str
    width: float
    height: float
    boxes: np.ndarray
    origin: str
    """The file, and the place in it, for messages."""
    labels: np.ndarray | None = None
    confidence: np.ndarray | None = None
    features: np.ndarray | None = None
    grid: tuple[int, ...] = ()
    """Rows and columns, where the boxes are the cells of a grid."""

    def __post_init__(self) -> None:
        if not (0 < self.width < np.inf and 0 < self.height < np.inf):
            raise DataError(f"{self.origin}: an image of {self.width} x {self.height}")
        for name in ("boxes", "confidence", "features"):
            array = getattr(self, name)
            if array is not None and not np.isfinite(array).all():
                raise DataError(f"{self.origin}: {name} of image {self.key} are not all finite numbers")

    def inside(self) -> Self:
        """With boxes that :func:`check_boxes` let pass.

        Raises:
            DataError: it did not, or there is no box.
        """
        if not len(self.boxes):
            raise DataError(f"{self.origin}: image {self.key} has no regions")
        origin = f"{self.origin}: image {self.key}"
        return replace(self, boxes=check_boxes(self.boxes.astype(np.float64), self.width, self.height, origin))

    def cut(self, most: int) -> Self:
        """At most so many regions: those of highest confidence, without one the first in the file."""
        if len(self.boxes) <= most:
            return self
        rows = np.arange(most)
        if self.confidence is not None:
            rows = np.sort(np.argsort(-self.confidence, kind="stable")[:most])
        return replace(
            self,
            boxes=self.boxes[rows],
            labels=None if self.labels is None else self.labels[rows],
            confidence=None if self.confidence is None else self.confidence[rows],
            features=None if self.features is None else self.features[rows],
        )
