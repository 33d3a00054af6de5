"""Geometry, grid positions and the embedding of images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fairseq_ext.modules import VisualEmbedding, box_geometry, grid_geometry, grid_sinusoid
from tests.helpers import load_golden

EXACT = {"rtol": 0, "atol": 1e-12}
# name: arguments beside the width
INPUTS: dict[str, dict[str, Any]] = {
    "regions": {"feature_dim": 5},
    "regions, corners and area": {"feature_dim": 5, "numbers": 5},
    "regions with classes": {"feature_dim": 5, "num_classes": 3},
    "features alone": {"feature_dim": 5, "numbers": 0},
    "classes": {"num_classes": 3},
    "learned cells": {"feature_dim": 5, "numbers": 0, "grid": (2, 3)},
    "sinusoidal cells": {"feature_dim": 5, "numbers": 0, "grid": (2, 3), "position": "sinusoid"},
}


def golden(name: str) -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.asarray(value)) for key, value in load_golden("captioning", name).items()}


def inputs(batch: int = 2, regions: int = 6) -> dict[str, Tensor]:
    torch.manual_seed(0)
    corners = torch.rand(batch, regions, 4)
    return {
        "features": torch.randn(batch, regions, 5),
        "geometry": box_geometry(torch.cat((corners[..., :2], 1 + corners[..., 2:]), -1), 2, 2),
        "labels": torch.randint(3, (batch, regions)),
    }


def test_box_geometry() -> None:
    expected = golden("box_geometry")
    arguments = expected["boxes"], expected["width"].item(), expected["height"].item()
    torch.testing.assert_close(box_geometry(*arguments), expected["geometry7"], **EXACT)
    torch.testing.assert_close(box_geometry(*arguments, numbers=5), expected["geometry5"], **EXACT)
    with pytest.raises(ValueError, match="numbers must be one of 7, 5, got 6"):
        box_geometry(*arguments, numbers=6)


def test_grid_geometry() -> None:
    expected = golden("grid_geometry_7x7")
    geometry = grid_geometry(expected["rows"].item(), expected["columns"].item())
    torch.testing.assert_close(geometry, expected["geometry7"], **EXACT)
    assert grid_geometry(2, 3)[5].tolist() == pytest.approx([2 / 3, 1 / 2, 1, 1, 1 / 3, 1 / 2, 1 / 6])


def test_grid_sinusoid() -> None:
    expected = golden("grid_sinusoid_3x4")
    sizes = (expected[name].item() for name in ("rows", "columns", "dim"))
    torch.testing.assert_close(grid_sinusoid(*sizes), expected["embedding"], **EXACT)
    with pytest.raises(ValueError, match="dim must be a multiple of 4, got 6"):
        grid_sinusoid(2, 2, 6)
    with pytest.raises(ValueError, match="at least one row and one column, got 0 x 2"):
        grid_sinusoid(0, 2, 8)


@pytest.mark.parametrize("name", ["box_geometry", "grid_geometry_7x7"])
def test_the_embedding_of_geometry(name: str) -> None:
    """The classes have zero vectors, so that the geometry is all there is."""
    expected = golden(name)
    embedding = VisualEmbedding(6, num_classes=1).double()
    state = {
        "class_embedding.weight": torch.zeros(1, 6),
        **{f"geometry_projection.{part}": expected[part] for part in ("weight", "bias")},
        **{f"geometry_norm.{part}": expected[f"norm_{part}"] for part in ("weight", "bias")},
    }
    embedding.load_state_dict(state)
    labels = torch.zeros(1, len(expected["geometry7"]), dtype=torch.long)
    actual = embedding(geometry=expected["geometry7"][None], labels=labels)
    torch.testing.assert_close(actual[0], expected["embedding"], **EXACT)


@pytest.mark.parametrize("name", INPUTS)
def test_the_sum_of_its_parts(name: str) -> None:
    """Against the formula, with the functions of torch; every parameter has a part in it."""
    options, given = INPUTS[name], inputs()
    embedding = VisualEmbedding(8, **options)
    for parameter in embedding.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    expected = torch.zeros(2, 6, 8)
    parts = dict(embedding.named_parameters())

    def projected(part: str, values: Tensor) -> Tensor:
        linear = nn.functional.linear(values, parts[f"{part}_projection.weight"], parts[f"{part}_projection.bias"])
        return nn.functional.layer_norm(linear, (8,), parts[f"{part}_norm.weight"], parts[f"{part}_norm.bias"])

    if "feature_dim" in options:
        expected = expected + projected("feature", given["features"])
    if "num_classes" in options:
        expected = expected + math.sqrt(8) * parts["class_embedding.weight"][given["labels"]]
    if numbers := options.get("numbers", 7):
        columns = [0, 1, 2, 3, 6] if numbers == 5 else list(range(7))
        expected = expected + projected("geometry", given["geometry"][..., columns])
    if "grid" in options:
        sinusoid = options.get("position") == "sinusoid"
        expected = expected + (grid_sinusoid(2, 3, 8).float() if sinusoid else parts["cell_embedding"])
    actual = embedding(**given)
    torch.testing.assert_close(actual, expected)
    actual.square().sum().backward()
    assert [name for name, parameter in parts.items() if parameter.grad is None or not parameter.grad.any()] == []
    assert embedding.state_dict().keys() == parts.keys()


def test_dropout_falls_on_features_alone() -> None:
    given = inputs()
    embedding = VisualEmbedding(8, feature_dim=5, dropout=0.999999)
    torch.manual_seed(0)
    torch.testing.assert_close(
        embedding(**given), embedding.geometry_norm(embedding.geometry_projection(given["geometry"]))
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "feature_dim or num_classes must be at least 1"),
        ({"feature_dim": 4, "numbers": 6}, "numbers must be one of 7, 5, got 6"),
        ({"feature_dim": 4, "position": "rows"}, "position must be learned or sinusoid, got 'rows'"),
        ({"feature_dim": 4, "grid": (2, 2), "position": "sinusoid"}, "dim must be a multiple of 4, got 6"),
    ],
)
def test_what_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VisualEmbedding(6, **arguments)
