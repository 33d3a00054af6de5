"""One training step: hard-negative ranking of matched pairs, alignment of their self-attentions, and AdamW."""

from __future__ import annotations

import contextlib
from typing import Any, Self

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from fairseq_ext.training.accelerator import adamw
from vision_language.iais.alignment import annealing, iais_loss
from vision_language.iais.data import Collator, RegionData
from vision_language.iais.encoder import build
from vision_language.iais.hook import IAISHook
from vision_language.iais.model import RegionRetriever
from vision_language.iais.negatives import IMAGE, TEXT, Anchors, AnchorSampler, PairBatches, hardest
from vision_language.iais.options import Options

__all__ = ["TrainingStep", "learning_rate", "make_sampler", "parameter_groups"]

MODALITY = {IMAGE: "V", TEXT: "L"}
LEAST_RATE = 1e-8
UNDECAYED = ("bias", "LayerNorm.weight")


def learning_rate(step: int, peak: float, warmup_steps: int, num_steps: int) -> float:
    """Step size of optimiser step 1, 2, ...: it grows linearly to ``peak``, then falls linearly to 1e-8, as in UNITER.

    transformers' linear schedule is one step behind: the size of its first step is 0.
    """
    if step < warmup_steps:
        rate = peak * step / warmup_steps
    else:
        rate = peak * (num_steps - step) / max(num_steps - warmup_steps, 1)
    return rate if rate > 0 else LEAST_RATE


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for AdamW: parameters with ``bias`` or ``LayerNorm.weight`` in their names do not decay, as in UNITER.

    The weights of ``img_layer_norm`` and ``pos_layer_norm``, which are spelt otherwise, therefore decay.
    """
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in model.named_parameters():
        groups[any(part in name for part in UNDECAYED)].append(parameter)
    return [{"params": groups[0], "weight_decay": weight_decay}, {"params": groups[1], "weight_decay": 0.0}]


def make_sampler(options: Options, data: RegionData, seed: int) -> AnchorSampler:
    """The sampler of ``options``, which checks them against the size of the training split."""
    return AnchorSampler(data.text_to_image.numpy(), options.batch_size, options.negatives, options.negative_size, seed)


class TrainingStep:
    r"""Each call trains a model by one step of the optimiser.

    .. math::
        \mathrm{mean}_{\mathrm{images}} (r + \lambda \ell_V) + \mathrm{mean}_{\mathrm{captions}} (r + \lambda \ell_L),
        \qquad r = \mathrm{mean}_k \max(0, m + \sigma(s_k^-) - \sigma(s^+))

    The first mean is over image-anchored samples, the second over text-anchored ones; :math:`s^+` is the score of the
    matched pair, :math:`s_k^-` are the scores of its hardest negatives, and :math:`\ell` is
    :func:`~vision_language.iais.iais_loss` of the matched pair alone. With ``--iais-scale sum`` λ is multiplied by the
    number of anchors of each kind on this process. This is the released code, which does not average the alignment
    loss.

    Args:
        model: on the accelerator's device.
        batches: makes batches of the training split.
        sampler: draws anchors from it.
        options: options of the training.
        accelerator: devices, processes and number format; each process has its share of the anchors.
    """

    def __init__(
        self,
        model: RegionRetriever,
        batches: PairBatches,
        sampler: AnchorSampler,
        options: Options,
        accelerator: Accelerator,
    ) -> None:
        self.model, self.batches, self.sampler = model, batches, sampler
        self.options, self.accelerator = options, accelerator
        groups = parameter_groups(model, options.weight_decay)
        optimizer = adamw(groups, accelerator, lr=options.lr, betas=(0.9, 0.98), eps=1e-6)
        self.parallel, self.optimizer = accelerator.prepare(model, optimizer)
        self.hook = None if options.iais == "none" else IAISHook(model)
        self.anchors = options.batch_size // accelerator.num_processes

    def __call__(self, step: int) -> dict[str, Tensor | float]:
        """Do step ``step``, counted from 0.

        Returns:
            ``rank_loss`` and ``iais_loss``, the means of r and of the alignment loss on this process; ``iais_weight``,
            λ; ``loss``, which is ``rank_loss`` + λ ``iais_loss``; and ``lr``.
        """
        options = self.options
        weight, rate = (
            self.iais_weight(step),
            learning_rate(step + 1, options.lr, options.warmup_steps, options.num_steps),
        )
        self.parallel.train()
        rank_loss, iais = self.accumulate(step, weight)
        if options.clip_norm:
            self.accelerator.clip_grad_norm_(self.parallel.parameters(), options.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss = rank_loss + weight * iais
        return {"rank_loss": rank_loss, "iais_loss": iais, "iais_weight": weight, "loss": loss, "lr": rate}

    @classmethod
    def of(cls, options: Options, data: RegionData, seed: int, accelerator: Accelerator) -> Self:
        """The training steps of one seed, from an untrained model and with anchors of the training split ``data``."""
        torch.manual_seed(seed)
        model, tokenizer = build(options, data)
        batches = PairBatches(data, Collator(tokenizer, options.max_text_length), accelerator.device)
        sampler = make_sampler(options, data, seed)
        return cls(model.to(accelerator.device), batches, sampler, options, accelerator)

    def iais_weight(self, step: int) -> float:
        """λ in a step, counted from 0."""
        weight = self.options.iais_weight * annealing(step / self.options.num_steps, self.options.iais_schedule)
        return weight * self.anchors if self.options.iais_scale == "sum" else weight

    def accumulate(self, step: int, weight: float) -> Tensor:
        """Add up the gradient of a step with λ = ``weight``; returns the means of r and of the alignment loss."""
        options, accelerator = self.options, self.accelerator
        groups: list[Anchors] = []
        for kind in (IMAGE, TEXT):
            share = self.sampler.draw(step, kind).rows(
                slice(accelerator.process_index, None, accelerator.num_processes)
            )
            if step < options.random_steps:
                share = share.first(options.hard_negatives)
            with accelerator.autocast():
                hard = hardest(self.model, self.batches, share, options.hard_negatives, options.eval_batch_size)
            groups += self.batches.by_length(hard, options.anchors_per_forward)
        means = torch.zeros(2, device=accelerator.device)
        for number, group in enumerate(groups, 1):
            part = len(group.texts) / self.anchors
            with accelerator.no_sync(self.parallel) if number < len(groups) else contextlib.nullcontext():
                losses = self._losses(group)
                accelerator.backward(part * (losses[0] + weight * losses[1]))
            means += part * losses.detach() / 2
        return means

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
