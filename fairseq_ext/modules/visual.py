r"""What a Transformer reads of an image: regions with boxes, a grid of cells, or the classes of boxes.

.. math::
    \text{regions: } LN(W_f f + b_f) + LN(W_g g + b_g) \qquad
    \text{grid: } LN(W_f f + b_f) + \text{position} \qquad
    \text{classes: } \sqrt{E}\, \mathrm{Emb}[c] + LN(W_g g + b_g)

with a feature vector :math:`f`, a class :math:`c` and the box geometry :math:`g` of :func:`box_geometry` (UNITER, Chen
et al., arXiv 1909.11740).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["VisualEmbedding", "box_geometry", "grid_geometry", "grid_sinusoid"]


def _check_numbers(numbers: int) -> None:
    if numbers not in (5, 7):
        raise ValueError(f"numbers must be one of 7, 5, got {numbers}")


def _first(geometry: Tensor, numbers: int) -> Tensor:
    """The ``numbers`` asked for: all of UNITER's seven, or the corners and the area."""
    return geometry if numbers == 7 else torch.cat((geometry[..., :4], geometry[..., 6:]), -1)


def box_geometry(boxes: Tensor, width: float, height: float, numbers: int = 7) -> Tensor:
    r"""Where a box lies in its image, and how large it is, as shares of the image.

    .. math::
        g = [x_1/W,\; y_1/H,\; x_2/W,\; y_2/H,\; w/W,\; h/H,\; wh/WH], \qquad w = x_2 - x_1, \quad h = y_2 - y_1

    Args:
        boxes: as :math:`x_1, y_1, x_2, y_2` in the unit of width and height.
        width, height: of the image.
        numbers: 7 as above (UNITER, arXiv 1909.11740), or 5 for corners and area alone (Lu et al., ViLBERT, arXiv
            1908.02265).

    Shape:
        - boxes: ``(..., 4)``; the output is ``(..., numbers)``.

    Raises:
        ValueError: another ``numbers``.
    """
    _check_numbers(numbers)
    left, top, right, bottom = boxes.unbind(-1)
    corners = torch.stack((left / width, top / height, right / width, bottom / height), -1)
    size = corners[..., 2:] - corners[..., :2]
    return _first(torch.cat((corners, size, size.prod(-1, keepdim=True)), -1), numbers)


def grid_geometry(rows: int, columns: int) -> Tensor:
    """:func:`box_geometry` of the cells of a grid that covers an image, row by row.

    Args:
        rows, columns: of the grid.

    Shape:
        - output: ``(rows * columns, 7)``, float64.
    """
    i, j = (axis.flatten() for axis in torch.meshgrid(*_steps(rows, columns), indexing="ij"))
    return box_geometry(torch.stack((j, i, j + 1, i + 1), -1), columns, rows)


def grid_sinusoid(rows: int, columns: int, dim: int) -> Tensor:
    r"""Sinusoidal positions of the cells of a grid, row by row: half of the channels say the row, half the column.

    Of :math:`d = dim/2` channels, position p has

    .. math::
        [\sin(p f_0), \dots, \sin(p f_{d/2-1}), \cos(p f_0), \dots, \cos(p f_{d/2-1})], \qquad
        f_m = 10000^{-m / (d/2 - 1)}

    as fairseq's sinusoids have it, with p from 0.

    Args:
        rows, columns: of the grid.
        dim: number of channels.

    Shape:
        - output: ``(rows * columns, dim)``, float64.

    Raises:
        ValueError: ``dim`` is not a multiple of 4.
    """
    if dim < 4 or dim % 4:
        raise ValueError(f"dim must be a multiple of 4, got {dim}")
    frequencies = 10000.0 ** -torch.linspace(0, 1, dim // 4, dtype=torch.float64)

    def sinusoid(positions: Tensor) -> Tensor:
        angles = positions[:, None] * frequencies
        return torch.cat((angles.sin(), angles.cos()), -1)

    row, column = map(sinusoid, _steps(rows, columns))
    cells = (rows, columns, dim // 2)
    return torch.cat((row[:, None].expand(cells), column[None].expand(cells)), -1).flatten(0, 1)


def _steps(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    if rows < 1 or columns < 1:
        raise ValueError(f"a grid must have at least one row and one column, got {rows} x {columns}")
    return torch.arange(rows, dtype=torch.float64), torch.arange(columns, dtype=torch.float64)


class VisualEmbedding(nn.Module):
    r"""Regions, cells of a grid, or classes of boxes, as vectors of one width.

    The arguments choose the terms of a sum: :math:`LN(W_f f + b_f)`, :math:`LN(W_g g + b_g)`,
    :math:`\sqrt{E}\,\mathrm{Emb}[c]` and a grid position. Each LayerNorm has gain, bias and eps 1e-5.

    Args:
        embed_dim: width E.
        feature_dim: size of a feature vector f; 0 for classes alone.
        num_classes: classes of the class embedding; 0 for none.
        numbers: size of the geometry g, 7 or 5 (see :func:`box_geometry`); 0 for none.
        grid: rows and columns of a grid whose cells have positions beside the geometry; empty for none.
        position: how cells get positions: ``"learned"``, from a table, or ``"sinusoid"``, see :func:`grid_sinusoid`.
        dropout: on the embedded feature vector, before anything is added to it.

    Shape:
        - features: ``(B, R, feature_dim)``; geometry: ``(B, R, 7)``, whatever ``numbers`` is; labels: ``(B, R)``, class
          numbers. The output is ``(B, R, E)``. Inputs that the arguments do not ask for are not read.

    Raises:
        ValueError: nothing to embed, or a wrong ``numbers``, ``grid`` or ``position``.
    """

    def __init__(
        self,
        embed_dim: int,
        feature_dim: int = 0,
        num_classes: int = 0,
        numbers: int = 7,
        grid: tuple[int, ...] = (),
        position: str = "learned",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not (feature_dim or num_classes):
            raise ValueError("feature_dim or num_classes must be at least 1, both are 0")
        if position not in ("learned", "sinusoid"):
            raise ValueError(f"position must be learned or sinusoid, got {position!r}")
        self.embed_dim = embed_dim
        self.feature_dim, self.num_classes, self.numbers = feature_dim, num_classes, numbers
        self.grid, self.position = tuple(grid), position
        if feature_dim:
            self.feature_projection = nn.Linear(feature_dim, embed_dim)
            self.feature_norm = nn.LayerNorm(embed_dim)
        if num_classes:
            self.class_embedding = nn.Embedding(num_classes, embed_dim)
        if numbers:
            _check_numbers(numbers)
            self.geometry_projection = nn.Linear(numbers, embed_dim)
            self.geometry_norm = nn.LayerNorm(embed_dim)
        if grid:
            rows, columns = grid
            if position == "learned":
                self.cell_embedding = nn.Parameter(torch.empty(rows * columns, embed_dim))
            else:
                self.register_buffer(
                    "cell_embedding", grid_sinusoid(rows, columns, embed_dim).float(), persistent=False
                )
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier's uniform law for maps, N(0, 1/E) for tables, as in fairseq's Transformer."""
        for module in self.children():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        if self.num_classes:
            nn.init.normal_(self.class_embedding.weight, std=self.embed_dim**-0.5)
        if self.grid and self.position == "learned":
            nn.init.normal_(self.cell_embedding, std=self.embed_dim**-0.5)

    def forward(
        self, features: Tensor | None = None, geometry: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """See the class."""
        parts = []
        if self.feature_dim:
            assert features is not None
            # fairseq-generate --fp16 casts the model to half precision, but not its inputs
            features = features.to(self.feature_norm.weight.dtype)
            parts.append(self.dropout(self.feature_norm(self.feature_projection(features))))
        if self.num_classes:
            parts.append(math.sqrt(self.embed_dim) * self.class_embedding(labels))
        if self.numbers:
            assert geometry is not None
            geometry = _first(geometry, self.numbers).to(self.geometry_norm.weight.dtype)
            parts.append(self.geometry_norm(self.geometry_projection(geometry)))
        if self.grid:
            parts.append(self.cell_embedding)
        return sum(parts[1:], parts[0])

    def extra_repr(self) -> str:
        parts = [f"{self.embed_dim}"]
        parts += [f"{name}={getattr(self, name)}" for name in ("feature_dim", "num_classes", "numbers")]
        parts += [f"grid={self.grid}, position={self.position!r}"] if self.grid else []
        return ", ".join(parts)
