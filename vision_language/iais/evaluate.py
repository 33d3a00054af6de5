"""Scores of a split: retrieval in both directions over all pairs, and ISD over the matched pairs.

All processes share the work.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from fairseq_ext.training.errors import CheckpointError
from fairseq_ext.training.modes import evaluating
from fairseq_ext.training.progress import progress
from vision_language.iais.alignment import isd, map_entropy
from vision_language.iais.data import Collator, RegionData
from vision_language.iais.hook import IAISHook
from vision_language.iais.model import RegionRetriever

__all__ = ["first_images", "metrics", "pair_measures", "recall_at_k", "released_image_recall", "score_matrix"]

RECALLS = tuple(f"{direction}_r{k}" for direction in ("ir", "tr") for k in (1, 5, 10))


def score_matrix(
    model: RegionRetriever,
    data: RegionData,
    collator: Collator,
    chunk: int = 400,
) -> Tensor:
    """The scores of every caption with every image, ``(captions, images)``, float32 on the CPU.

    Captions of similar lengths and images with similar numbers of regions go through the model together, so that hardly
    any of its work is spent on padding.

    Args:
        model: scores the pairs.
        data: a split; without captions, the result has no rows.
        collator: makes batches of the split.
        chunk: pairs in a forward pass. Default 400, as in UNITER.

    Raises:
        DataError: the model was made for other regions.
        CheckpointError: a score is not a number.
    """
    data.check_model(model.config)
    scores = torch.empty(len(data), len(data.images))
    if not len(data):
        return scores
    texts = {name: value.to(model.device) for name, value in collator.texts(data.captions).items()}
    lengths = texts["attention_mask"].sum(1)
    text_blocks = lengths.argsort(stable=True).split(chunk)
    by_regions = torch.tensor([len(image.boxes) for image in data.images]).argsort(stable=True)
    image_blocks = by_regions.split(max(1, chunk // len(data)))
    bar = progress(total=scores.numel(), desc="scores", unit=" pairs", unit_scale=True, leave=False)
    with evaluating(model), torch.inference_mode(), bar:
        cut = [{name: value[block, : lengths[block[-1]]] for name, value in texts.items()} for block in text_blocks]
        for images in image_blocks:
            regions = collator.regions([data.images[image] for image in images.tolist()])
            regions = {name: value.to(model.device) for name, value in regions.items()}
            for block, batch in zip(text_blocks, cut, strict=True):
                scores[block.cpu()[:, None], images] = model.score_pairs(batch, regions).float().cpu()
                bar.update(len(block) * len(images))
    if scores.isnan().any():
        raise CheckpointError(
            f"{int(scores.isnan().sum())} of {scores.numel()} scores are not a number: the model is damaged, or its "
            "training went astray (lower --lr)"
        )
    return scores


def recall_at_k(
    scores: Tensor | np.ndarray, text_to_image: Tensor | np.ndarray | Sequence[int], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recall and mean rank of image retrieval (a caption asks) and text retrieval (an image asks).

    A rank is the number of wrong answers with a higher score than the right one; where several captions are right, than
    the best of them. Answers with equal scores count as if in random order: recalls and ranks are means over all such
    orders, so that a model which gives all pairs the same score is at the level of chance.

    Args:
        scores: ``(texts, images)``, higher for better matches; a tensor or an array.
        text_to_image: ``(texts,)``, the number of the image that each caption describes.
        ks: numbers of first answers that are looked at, each at least 1. Default 1, 5 and 10.

    Returns:
        ``ir_r{k}`` and ``tr_r{k}``, shares of queries with a right answer among the first k; ``ir_mean_rank`` and
        ``tr_mean_rank``, counted from 0; ``rsum`` and ``r_mean``, sum and mean of all recalls. Images without a caption
        are no queries.

    Raises:
        ValueError: shapes that do not fit, numbers that are no images, or a score that is not a number.

    Example:
        >>> recall_at_k(score_matrix(model, data, collator), data.text_to_image)["ir_r1"]
    """
    images, texts = _standings(scores, text_to_image, ks)
    recalls = {
        f"{direction}_r{k}": standing.hits(k).mean().item()
        for direction, standing in (("ir", images), ("tr", texts))
        for k in ks
    }
    return {
        **recalls,
        "ir_mean_rank": images.ranks().mean().item(),
        "tr_mean_rank": texts.ranks().mean().item(),
        "rsum": sum(recalls.values()),
        "r_mean": sum(recalls.values()) / len(recalls),
    }


def released_image_recall(
    scores: Tensor | np.ndarray, text_to_image: Tensor | np.ndarray | Sequence[int], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """``ir_r{k}`` as the released code of UNITER and IAIS counts it, for comparison with figures made by that code.

    That code also takes the numbers of captions for ranks: a caption with a number t < k, whose image is among the
    first ``max(ks)``, is one more hit. This inflates the recall by up to k / texts, even beyond 1. Text retrieval is
    not affected.
    """
    images, _ = _standings(scores, text_to_image, ks)
    hits = images.hits(max(ks))
    return {f"ir_r{k}": (images.hits(k).sum() + hits[:k].sum()).item() / len(hits) for k in ks}


class _Standing(NamedTuple):
    """Where the best right answer of each query stands: three counts, each float64 ``(queries,)``."""

    better: Tensor
    """Wrong answers with a higher score."""
    ties: Tensor
    """Wrong answers with the same score."""
    right: Tensor
    """Right answers with this score."""

    def ranks(self) -> Tensor:
        """The expected number of wrong answers before the first right one, equal scores in random order."""
        return self.better + self.ties / (self.right + 1)

    def hits(self, k: int) -> Tensor:
        r"""The probability of a right answer among the first k, equal scores in random order.

        .. math:: 1 - \binom{t}{m} / \binom{t + r}{m}, \qquad m = \max(k - b, 0)

        for b better, t tied and r right answers. This is :math:`m / (t + 1)` for one right answer and :math:`m \le t`,
        and 0 or 1 without ties.
        """
        drawn = (k - self.better).clamp(min=0)
        missing = (self.ties - drawn).clamp(min=0)
        logarithms = [
            torch.lgamma(count + 1) for count in (self.ties, missing + self.right, missing, self.ties + self.right)
        ]
        missed = (logarithms[0] + logarithms[1] - logarithms[2] - logarithms[3]).exp()
        return 1 - missed.where(drawn <= self.ties, 0)


def _standings(scores: Any, text_to_image: Any, ks: Sequence[int]) -> tuple[_Standing, _Standing]:
    """Standings of the right image for each caption, and of the best caption for each image that has captions."""
    scores = torch.as_tensor(scores)
    text_to_image = torch.as_tensor(text_to_image, device=scores.device)
    if scores.dim() != 2 or not scores.numel():
        raise ValueError(f"scores must be (texts, images), at least one of each, got {tuple(scores.shape)}")
    if text_to_image.shape != scores.shape[:1] or text_to_image.is_floating_point():
        raise ValueError(
            f"text_to_image must be ({len(scores)},) whole numbers, an image for each row of scores, got "
            f"{text_to_image.dtype} {tuple(text_to_image.shape)}"
        )
    if text_to_image.min() < 0 or text_to_image.max() >= scores.size(1):
        raise ValueError(
            f"text_to_image must number the {scores.size(1)} columns of scores from 0, got "
            f"{int(text_to_image.min())} to {int(text_to_image.max())}"
        )
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be at least 1, got {tuple(ks)}")
    if scores.isnan().any():
        raise ValueError(f"{int(scores.isnan().sum())} of {scores.numel()} scores are not a number")
    wrong = text_to_image[:, None] != torch.arange(scores.size(1), device=scores.device)
    asked = ~wrong.all(0)

    def standing(scores: Tensor, wrong: Tensor) -> _Standing:
        best = scores.masked_fill(wrong, -torch.inf).amax(1, keepdim=True)
        counts = ((scores > best), (scores == best) & wrong, (scores == best) & ~wrong)
        return _Standing(*(count.sum(1).double() for count in counts))

    return standing(scores, wrong), standing(scores.T[asked], wrong.T[asked])


def pair_measures(
    model: RegionRetriever,
    data: RegionData,
    collator: Collator,
    batch_size: int = 64,
) -> dict[str, Tensor]:
    """Measures of the attention maps of every caption with its image, ``(captions,)`` each, float32 on the CPU.

    Args:
        model, data, collator: as for :func:`score_matrix`.
        batch_size: pairs in a forward pass. Default 64.

    Returns:
        ``isd`` and ``map_entropy``, see :func:`~vision_language.iais.alignment.isd` and
        :func:`~vision_language.iais.alignment.map_entropy`. Where there are several images, also ``isd_mismatched``,
        the ISD of a caption with the next image in place of its own: if it is as small as ``isd``, a small ``isd``
        tells nothing about the pair.
    """
    data.check_model(model.config)
    order = sorted(range(len(data)), key=lambda text: len(data.captions[text]))
    shifts = {"isd": 0} if len(data.images) < 2 else {"isd": 0, "isd_mismatched": 1}
    values = {name: torch.empty(len(data)) for name in (*shifts, "map_entropy")}
    bar = progress(total=len(shifts) * len(order), desc="maps", unit=" pairs", leave=False)
    with evaluating(model), torch.inference_mode(), IAISHook(model) as hook, bar:
        for (name, shift), start in itertools.product(shifts.items(), range(0, len(order), batch_size)):
            texts = order[start : start + batch_size]
            images = [(int(data.text_to_image[text]) + shift) % len(data.images) for text in texts]
            pairs = collator(data.pairs(list(zip(texts, images, strict=True))))
            batch = {part: value.to(model.device) for part, value in pairs.items()}
            model(**batch)
            blocks = hook.blocks(*model.positions(batch["attention_mask"], batch["region_mask"]))
            values[name][texts] = isd(blocks).float().cpu()
            if not shift:
                values["map_entropy"][texts] = map_entropy(blocks).float().cpu()
            bar.update(len(texts))
    return values


def first_images(data: RegionData, count: int) -> RegionData:
    """The first ``count`` images with their captions; all images where ``count`` is 0."""
    return RegionData(data.images[:count], data.labels, data.feature_size) if count else data


def _share(data: RegionData, accelerator: Accelerator) -> tuple[Tensor, RegionData]:
    """The captions that this process scores, those of every n-th image: their numbers, and a split with only these."""
    rank, processes = accelerator.process_index, accelerator.num_processes
    images = [
        image if number % processes == rank else replace(image, captions=()) for number, image in enumerate(data.images)
    ]
    numbers = [text for number in range(rank, len(data.images), processes) for text in data.texts_of(number)]
    return torch.tensor(numbers, dtype=torch.long), RegionData(images, data.labels, data.feature_size)


def metrics(
    model: RegionRetriever,
    data: RegionData,
    collator: Collator,
    batch_size: int,
    accelerator: Accelerator,
    released: bool = False,
) -> dict[str, float]:
    """Recalls, mean ranks, and means of :func:`pair_measures` of a split, equal on every process.

    The model is in its former mode afterwards.

    Args:
        model, data, collator: as for :func:`score_matrix`.
        batch_size: pairs in a forward pass.
        accelerator: the processes, and the number format.
        released: whether ``released_ir_r1``, ``..._r5`` and ``..._r10`` are added, image recall as the released code
            counts it. Default False.
    """
    numbers, share = _share(data, accelerator)
    with accelerator.autocast():
        rows = score_matrix(model, share, collator, batch_size)
        part = (numbers, rows, pair_measures(model, share, collator, batch_size))
    matrix = torch.empty(len(data), len(data.images))
    measures = {name: torch.empty(len(data)) for name in part[2]}
    for texts, scores, values in gather_object([part]):
        matrix[texts] = scores
        for name, value in values.items():
            measures[name][texts] = value
    means = {name: value.mean().item() for name, value in measures.items()}
    figures = recall_at_k(matrix, data.text_to_image) | means
    if released:
        recall = released_image_recall(matrix, data.text_to_image)
        figures |= {f"released_{name}": value for name, value in recall.items()}
    return figures
