"""Claim: aligning self-attentions costs a training step little, and every pair of a split can be scored."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig

from benchmarks.timing import Row, forward_backward, generator, on_gpu, rate_row, time_row
from fairseq_ext.modules.visual import box_geometry
from fairseq_ext.training.accelerator import adamw, make_accelerator
from vision_language.iais.alignment import iais_loss
from vision_language.iais.blocks import AttentionBlocks, attention_blocks
from vision_language.iais.data import Collator, Image, RegionData
from vision_language.iais.encoder import learn_tokenizer
from vision_language.iais.evaluate import score_matrix
from vision_language.iais.hook import IAISHook
from vision_language.iais.model import RegionRetriever

SIZE, QUICK_SIZE = (6, 384, 12), (1, 24, 2)  # layers, width, heads; MiniLM's
PIECES, REGIONS, FEATURES = 16, 20, 2048
BATCH = 8


def retriever(quick: bool, **regions: Any) -> RegionRetriever:
    torch.manual_seed(0)
    layers, hidden, heads = QUICK_SIZE if quick else SIZE
    config = BertConfig(
        vocab_size=2000,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
    )
    return RegionRetriever.from_encoder(config, **regions)


def pairs(rows: int) -> dict[str, Tensor]:
    """Captions of 12 to 16 pieces, images of 10 to 20 regions with features."""
    random = generator(1)
    lengths = torch.randint(PIECES - 4, PIECES + 1, (rows, 1), generator=random)
    counts = torch.randint(REGIONS // 2, REGIONS + 1, (rows, 1), generator=random)
    return {
        "input_ids": torch.randint(1, 2000, (rows, PIECES), generator=random),
        "attention_mask": (torch.arange(PIECES) < lengths).long(),
        "region_boxes": torch.rand(rows, REGIONS, 7, generator=random),
        "region_mask": torch.arange(REGIONS) < counts,
        "region_features": torch.randn(rows, REGIONS, FEATURES, generator=random),
    }


def train_step(quick: bool, kind: str, anchors: int, rows: int) -> Callable[[], None]:
    """Forward over ``anchors`` pairs and their negatives, ranking loss, alignment of the pairs, backward, AdamW."""
    model = retriever(quick, region_feature_size=FEATURES).train()
    batch = pairs(anchors * rows)
    text, regions = model.positions(batch["attention_mask"], batch["region_mask"])
    hook = None if kind == "none" else IAISHook(model)
    optimizer = adamw(model.parameters(), make_accelerator(device=torch.get_default_device().type), lr=1e-5)

    def step() -> None:
        scores = model(**batch).scores.sigmoid().view(anchors, rows)
        loss = F.margin_ranking_loss(scores[:, :1], scores[:, 1:], scores.new_ones(1, 1), 0.2)
        if hook is not None:
            loss = loss + iais_loss(hook.blocks(text, regions, rows=slice(None, None, rows)), kind)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def steps(quick: bool) -> list[Row]:
    shapes, (layers, width, _) = (((1, 4),), QUICK_SIZE) if quick else (((1, 32), (4, 8)), SIZE)
    return [
        time_row(
            f"train step, {layers} layers, width {width}, {anchors} x {rows} rows, {kind} alignment / none",
            train_step(quick, kind, anchors, rows),
            train_step(quick, "none", anchors, rows),
            pairs=1 if quick else 3,
            target=1.10,
        )
        for anchors, rows in shapes
        for kind in ("singular", "distributed")
    ]


def one_by_one(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``function`` in a loop over the batch."""
    return torch.stack([function(*parts) for parts in zip(*(value.split(1) for value in inputs), strict=True)]).mean()


def loss_alone(kind: str, *parts: Tensor) -> Tensor:
    return iais_loss(AttentionBlocks(*parts), kind)  # type: ignore[arg-type]


def batched_and_loop(quick: bool) -> list[Row]:
    model = retriever(quick, region_feature_size=FEATURES)
    attention, batch = model.encoder.layer[-1].attention.self, pairs(BATCH)
    text, regions = model.positions(batch["attention_mask"], batch["region_mask"])
    hidden = torch.randn(*text.shape, model.config.hidden_size)
    with torch.no_grad():
        blocks = attention_blocks(hidden, attention, text, regions)
    parts = (blocks.ll, blocks.vv, blocks.lv, blocks.vl, blocks.words, blocks.regions)
    rows = []
    for kind, maps in (("singular", 2), ("distributed", 4)):  # how many of the maps get a gradient
        inputs, rest, function = parts[:maps], parts[maps:], partial(loss_alone, kind)
        loop = partial(one_by_one, function)
        torch.testing.assert_close(function(*parts), loop(*parts))
        ways = [lambda *values, way=way, rest=rest: way(*values, *rest) for way in (function, loop)]
        functions = [forward_backward(way, *inputs) for way in ways]
        case = f"{kind}, loss alone, {BATCH} pairs, forward + backward, one batch / a loop over pairs"
        repeats = 1 if quick else 5
        rows.append(rate_row(case, *functions, items=BATCH, unit="pairs/s", pairs=repeats, target=5))
    return rows


def region_data(images: int, captions: int) -> RegionData:
    """Images of 2 to 20 labelled regions, captions of 5 to 20 words."""
    random = generator(2)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=random))

    drawn = []
    for image in range(images):
        corners = torch.rand(number(2, 20), 2, 2, generator=random).sort(1).values.flatten(1)
        texts = tuple(" ".join(f"word{number(0, 500)}" for _ in range(number(5, 20))) for _ in range(captions))
        labels = torch.randint(80, (len(corners),), generator=random)
        place = torch.arange(len(corners)).numpy()
        drawn.append(Image(image, 1, 1, texts, corners, box_geometry(corners, 1, 1), labels, f"image:{image}", place))
    return RegionData(drawn, labels=[f"label{number}" for number in range(80)])


def scoring(quick: bool) -> Row:
    data = region_data(4 if quick else 10, 2 if quick else 5)
    model = retriever(quick, region_labels=data.labels).eval()
    collator = Collator(learn_tokenizer(data.captions, 2000))
    everything = [(text, image) for text in range(len(data)) for image in range(len(data.images))]

    @torch.inference_mode()
    def pair_by_pair() -> Tensor:
        chunks = (everything[start : start + 400] for start in range(0, len(everything), 400))
        return torch.cat([model(**collator(data.pairs(chunk))).scores for chunk in chunks])

    def matrix() -> Tensor:
        return score_matrix(model, data, collator)

    torch.testing.assert_close(matrix().flatten(), pair_by_pair(), rtol=1e-3, atol=1e-4)
    case = f"score_matrix of {len(data)} captions, {len(data.images)} images / model(**batch) in chunks of 400"
    return rate_row(case, matrix, pair_by_pair, items=len(everything), unit="pairs/s", pairs=1 if quick else 3)


def run(quick: bool) -> list[Row]:
    rows = [*steps(quick), *batched_and_loop(quick)]
    if not on_gpu():  # else the data that is scored would lie on the GPU too
        rows.append(scoring(quick))
    return rows
