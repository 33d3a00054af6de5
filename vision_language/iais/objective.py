"""The training objective: hard-negative ranking of matched pairs, and alignment of their self-attentions."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from vision_language.iais.alignment import annealing, iais_loss
from vision_language.iais.hook import IAISHook
from vision_language.iais.model import RegionRetriever
from vision_language.iais.negatives import IMAGE, TEXT, Anchors, AnchorSampler, PairBatches, hardest
from vision_language.iais.options import Options

__all__ = ["TrainingStep"]

MODALITY = {IMAGE: "V", TEXT: "L"}


class TrainingStep:
    r"""Accumulates the gradient of one optimiser step, on this process's share of its anchors.

    .. math::
        \mathrm{mean}_{\mathrm{images}} (r + \lambda \ell_V) + \mathrm{mean}_{\mathrm{captions}} (r + \lambda \ell_L),
        \qquad r = \mathrm{mean}_k \max(0, m + \sigma(s_k^-) - \sigma(s^+))

    over image-anchored and text-anchored samples, with scores s of the matched pair and of its hardest negatives, and
    :func:`~vision_language.iais.iais_loss` of the matched pair alone. With ``--iais-scale sum`` λ is multiplied by the
    anchors of each kind on this process, as in the released code, which leaves this loss out of its mean.
    """

    def __init__(
        self,
        parallel: nn.Module,
        batches: PairBatches,
        sampler: AnchorSampler,
        options: Options,
        accelerator: Accelerator,
    ) -> None:
        self.parallel, self.batches, self.sampler = parallel, batches, sampler
        self.options, self.accelerator = options, accelerator
        self.model: RegionRetriever = accelerator.unwrap_model(parallel)
        self.hook = None if options.iais == "none" else IAISHook(self.model)
        self.anchors = options.batch_size // accelerator.num_processes

    def iais_weight(self, step: int) -> float:
        """λ of step 0, 1, ..."""
        weight = self.options.iais_weight * annealing(step / self.options.num_steps, self.options.iais_schedule)
        return weight * self.anchors if self.options.iais_scale == "sum" else weight

    def accumulate(self, step: int) -> list[float]:
        """Add the gradient of step 0, 1, ...; the means of r and of the alignment loss over all processes."""
        options, accelerator = self.options, self.accelerator
        weight = self.iais_weight(step)
        groups: list[Anchors] = []
        for kind in (IMAGE, TEXT):
            share = self.sampler.draw(step, kind).rows(
                slice(accelerator.process_index, None, accelerator.num_processes)
            )
            if step < options.random_steps:
                share = share.first(options.hard_negatives)
            with accelerator.autocast():
                hard = hardest(self.model, self.batches, share, options.hard_negatives, options.score_batch)
            groups += self.batches.by_length(hard, options.anchors_per_forward)
        means = torch.zeros(2, device=accelerator.device)
        for number, group in enumerate(groups, 1):
            part = len(group.texts) / self.anchors
            with accelerator.no_sync(self.parallel) if number < len(groups) else contextlib.nullcontext():
                losses = self._losses(group)
                accelerator.backward(part * (losses[0] + weight * losses[1]))
            means += part * losses.detach() / 2
        return accelerator.reduce(means, "mean").tolist()

    def _losses(self, anchors: Anchors) -> Tensor:
        """r and the alignment loss, each a mean over the anchors."""
        rows = anchors.texts.shape[1]
        batch = self.batches.pairs(anchors.texts.ravel(), anchors.images.ravel())
        scores = self.parallel(**batch).scores.float().sigmoid().view(-1, rows)
        rank = F.margin_ranking_loss(scores[:, :1], scores[:, 1:], scores.new_ones(1, 1), self.options.margin)
        if self.hook is None:
            return torch.stack([rank, rank.new_zeros(())])
        with self.accelerator.autocast():
            blocks = self.hook.blocks(
                *self.model.positions(batch["attention_mask"], batch["region_mask"]),
                keep_scores=self.options.pseudo_norm == "softmax_scores",
                rows=slice(None, None, rows),
            )
        iais = iais_loss(blocks, self.options.iais, MODALITY[anchors.kind], self.options.pseudo_norm)
        return torch.stack([rank, iais])
