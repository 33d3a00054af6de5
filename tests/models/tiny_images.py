"""Tiny captioning models, and batches of images for them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fairseq_ext.captions.store import Preparation
from fairseq_ext.models.captioning import CaptioningTransformerExtModel
from fairseq_ext.models.captioning_options import CaptioningTransformerExtConfig
from fairseq_ext.modules import box_geometry, grid_geometry
from tests.models.tiny import EOS, PAD, dictionary, set_options

PREPARATIONS = {
    "regions": Preparation(kind="regions", feature_dim=5, max_regions=8),
    "labelled": Preparation(kind="regions", feature_dim=5, num_classes=6, max_regions=8),
    "grid": Preparation(kind="grid", feature_dim=5, grid=(2, 3), max_regions=6),
    "classes": Preparation(kind="classes", num_classes=6, max_regions=8),
}
PREVIOUS = torch.tensor([[EOS, 5, 6, 7, 11], [EOS, 9, 8, 12, PAD]])


def task(kind: str, symbols: int = 10) -> SimpleNamespace:
    return SimpleNamespace(
        preparation=PREPARATIONS[kind], source_dictionary=None, target_dictionary=dictionary(symbols)
    )


def captioning_config(width: int = 8, ffn: int = 12, layers: int = 2, **options: Any) -> CaptioningTransformerExtConfig:
    sizes = {"embed_dim": width, "ffn_embed_dim": ffn, "layers": layers, "attention_heads": 2}
    flat = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sizes.items()}
    lengths = {"max_source_positions": 100, "max_target_positions": 64}
    return set_options(CaptioningTransformerExtConfig(), {**flat, **lengths, "dropout": 0.0, **options})


def captioning_model(kind: str, **options: Any) -> CaptioningTransformerExtModel:
    return CaptioningTransformerExtModel.build_model(captioning_config(**options), task(kind))


def image(kind: str, regions: int, seed: int = 0) -> dict[str, Tensor]:
    """The ``net_input`` of one image."""
    random = torch.Generator().manual_seed(seed)
    data = PREPARATIONS[kind]
    regions = data.grid[0] * data.grid[1] if data.grid else regions
    corners = torch.rand(regions, 4, generator=random)
    boxes = torch.cat((corners[:, :2], 1 + corners[:, 2:]), -1)
    labels = torch.randint(6, (regions,), generator=random)
    inputs = {
        "src_tokens": labels + 4 if kind == "classes" else torch.full((regions,), 3),
        "geometry": grid_geometry(*data.grid).float() if data.grid else box_geometry(boxes, 2, 2),
    }
    if data.feature_dim:
        inputs["features"] = torch.randn(regions, 5, generator=random)
    if kind == "labelled":
        inputs["labels"] = labels
    return {"src_lengths": torch.tensor([regions])} | {name: value[None] for name, value in inputs.items()}


def collate(*images: dict[str, Tensor]) -> dict[str, Tensor]:
    """One batch of images, padded with zeros as the task pads."""
    batch = {"src_lengths": torch.cat([one["src_lengths"] for one in images])}
    for name in images[0].keys() - batch.keys():
        padding = PAD if name == "src_tokens" else 0
        rows = [one[name][0] for one in images]
        batch[name] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
    return batch
