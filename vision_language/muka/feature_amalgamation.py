r"""Amalgamation of hidden states: layer by layer (DFA), or in a common feature space (CFL).

The feature-based baselines of "Model Uncertainty-Aware Knowledge Amalgamation for Pre-Trained Language Models",
arXiv:2112.07327; both are added to vanilla distillation, and their blocks are trained with the student, then discarded.
DFA: Chengchao Shen, Xinchao Wang, Jie Song, Li Sun, Mingli Song, "Amalgamating Knowledge towards Comprehensive
Classification", AAAI 2019, arXiv:1811.02796. CFL: Sihui Luo, Xinchao Wang, Gongfan Fang, Yao Hu, Dapeng Tao, Mingli
Song, "Knowledge Amalgamation from Heterogeneous Networks by Common Feature Learning", IJCAI 2019, arXiv:1906.10546.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_ext.precision import widen
from fairseq_ext.training.errors import OptionError

__all__ = [
    "AmalgamationTerms",
    "CommonFeatureLearning",
    "LayerwiseAmalgamation",
    "aligned_layers",
    "masked_mse",
    "maximum_mean_discrepancy",
]

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
TINY = 1e-12
SHARE = 4
"""How many dimensions of the student's states one of the common features stands for."""


class AmalgamationTerms(NamedTuple):
    """Scalars: ``alignment`` moves the student, ``reconstruction`` keeps what it moves to true to the teachers."""

    alignment: Tensor
    reconstruction: Tensor


def aligned_layers(depths: Sequence[int], num_layers: int | None = None) -> list[list[int]]:
    """Which layers of models of different depths belong together: strided, from the top.

    Of n = min(depths) aligned layers, a model of depth L gives every (L // n)-th. The released code knows teachers as
    deep as the student or deeper; that a deeper student is strided the same way is our choice.

    Args:
        depths: layers of each model.
        num_layers: only so many, the topmost. Default: n.

    Returns:
        for each model the layer numbers, from 0, last first.

    Example:
        >>> aligned_layers([3, 6])
        [[2, 1, 0], [5, 3, 1]]
    """
    aligned = min(depths)
    if num_layers is not None and not 1 <= num_layers <= aligned:
        raise ValueError(
            f"num_layers must be from 1 to {aligned}, the layers of the shallowest model, got {num_layers}"
        )
    chosen = range(aligned if num_layers is None else num_layers)
    return [[depth - 1 - step * (depth // aligned) for step in chosen] for depth in depths]


def masked_mse(input: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Mean squared difference of ``(B, S, H)`` over the positions where ``mask``, ``(B, S)``, is not 0.

    Half precision is computed in float32: float16 ends at 65504, which the number of elements exceeds.
    """
    input, target = widen(input), widen(target)
    if mask is None:
        return F.mse_loss(input, target)
    weight = mask.to(input.dtype)[..., None]
    return ((input - target).square() * weight).sum() / (weight.sum() * input.size(-1)).clamp_min(1)


def maximum_mean_discrepancy(x: Tensor, y: Tensor) -> Tensor:
    r"""Squared distance of two samples in the space of a kernel, here a sum of five Gaussians.

    .. math:: \frac{1}{B^2} \Big[ \sum_{ij} k(x_i, x_j) + k(y_i, y_j) - 2 k(x_i, y_j) \Big]_+, \qquad
              k(a, b) = \sum_{c} \exp\Big(-\frac{\lVert a - b \rVert^2}{2 c\, \sigma^2}\Big), \qquad
              c \in \{\tfrac14, \tfrac12, 1, 2, 4\}

    Each example is scaled to length 1 first. :math:`\sigma^2` is the mean squared distance within and across the
    samples, a constant for the gradient.

    Args:
        x, y: ``(B, D)``.
    """
    # The differences of nearby products vanish in half precision.
    with torch.autocast(x.device.type, enabled=False):
        x, y = F.normalize(widen(x), dim=-1, eps=TINY), F.normalize(widen(y), dim=-1, eps=TINY)
        xx, yy, xy = (
            (a.square().sum(-1)[:, None] + b.square().sum(-1) - 2 * a @ b.T).clamp_min(TINY)
            for a, b in ((x, x), (y, y), (x, y))
        )
        variance = ((xx + yy + 2 * xy).mean() / 4).detach()

        def kernel(distance: Tensor) -> Tensor:
            return torch.stack([(-distance / (2 * scale * variance)).exp() for scale in BANDWIDTHS]).sum(0)

        return (kernel(xx) + kernel(yy) - 2 * kernel(xy)).mean().relu()


class _LayerwiseBlock(nn.Module):
    def __init__(self, student_size: int, teacher_sizes: Sequence[int]) -> None:
        super().__init__()
        self.teacher_sizes = list(teacher_sizes)
        self.teacher_encoder = nn.Linear(sum(teacher_sizes), student_size)
        self.teacher_decoder = nn.Linear(student_size, sum(teacher_sizes))
        self.student_encoder = nn.Linear(student_size, student_size)

    def forward(self, student: Tensor, teachers: Sequence[Tensor], mask: Tensor | None) -> AmalgamationTerms:
        merged = self.teacher_encoder(torch.cat(list(teachers), -1))
        parts = self.teacher_decoder(merged).split(self.teacher_sizes, -1)
        rebuilt = [masked_mse(part, teacher, mask) for part, teacher in zip(parts, teachers, strict=True)]
        aligned = masked_mse(self.student_encoder(student), merged.detach(), mask)
        return AmalgamationTerms(aligned, torch.stack(rebuilt).sum())


class _CommonFeatureBlock(nn.Module):
    def __init__(self, student_size: int, teacher_sizes: Sequence[int]) -> None:
        super().__init__()
        if student_size < SHARE:
            raise OptionError(
                f"student_size must be at least {SHARE}, as the common features have 1/{SHARE} of its dimensions, "
                f"got {student_size}"
            )
        size = student_size // SHARE
        self.student_adapter = nn.Linear(student_size, size)
        self.teacher_adapters = nn.ModuleList(nn.Linear(width, size) for width in teacher_sizes)
        self.extractor = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size))
        self.decoders = nn.ModuleList(
            nn.Sequential(nn.Linear(size, width), nn.ReLU(), nn.Linear(width, width)) for width in teacher_sizes
        )

    def forward(self, student: Tensor, teachers: Sequence[Tensor], mask: Tensor | None) -> AmalgamationTerms:
        def common(adapter: nn.Module, states: Tensor) -> Tensor:
            return self.extractor(adapter(states).relu())

        def flat(features: Tensor) -> Tensor:
            if mask is not None:
                features = features * mask.to(features.dtype)[..., None]
            return features.flatten(1)

        ours = flat(common(self.student_adapter, student))
        distances, rebuilt = [], []
        for adapter, decoder, teacher in zip(self.teacher_adapters, self.decoders, teachers, strict=True):
            features = common(adapter, teacher)
            distances.append(maximum_mean_discrepancy(ours, flat(features)))
            rebuilt.append(masked_mse(decoder(features), teacher, mask))
        return AmalgamationTerms(torch.stack(distances).sum(), torch.stack(rebuilt).sum())


class _AlignedBlocks(nn.Module):
    """One block for each pair of aligned layers, the topmost first."""

    block: type[_LayerwiseBlock] | type[_CommonFeatureBlock]

    def __init__(self, student_size: int, teacher_sizes: Sequence[int], num_layers: int = 1) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        self.blocks = nn.ModuleList(self.block(student_size, teacher_sizes) for _ in range(num_layers))

    def forward(
        self, student_states: Sequence[Tensor], teacher_states: Sequence[Sequence[Tensor]], mask: Tensor | None
    ) -> AmalgamationTerms:
        models = [student_states, *teacher_states]
        positions = {tuple(states[-1].shape[:2]) for states in models}
        if len(positions) > 1:
            raise ValueError(f"hidden states must cover the same tokens: one tokenizer for all, got {positions}")
        layers = aligned_layers([len(states) for states in models], len(self.blocks))
        terms = []
        for block, (student, *teachers) in zip(self.blocks, zip(*layers, strict=True), strict=True):
            aligned = [states[layer].detach() for states, layer in zip(teacher_states, teachers, strict=True)]
            terms.append(block(student_states[student], aligned, mask))
        alignment, reconstruction = zip(*terms, strict=True)
        return AmalgamationTerms(torch.stack(alignment).sum(), torch.stack(reconstruction).sum())


class LayerwiseAmalgamation(_AlignedBlocks):
    r"""DFA: each student layer learns a code of the teachers' layers (arXiv:1811.02796, as in arXiv:2112.07327).

    .. math::
        r &= W_e [h_1; \dots; h_T] + b_e \\
        \text{alignment} &= \sum_{\text{layers}} \mathrm{MSE}(W_s h_S + b_s, \mathrm{sg}(r)) \\
        \text{reconstruction} &= \sum_{\text{layers}} \sum_t \mathrm{MSE}(\mathrm{part}_t(W_d r + b_d), h_t)

    with sg for no gradient and MSE the mean over all elements. Train the parameters with the student; the released
    optimiser leaves out their weights.

    Args:
        student_size: hidden size :math:`H_S` of the student; r has it too.
        teacher_sizes: hidden size of each teacher.
        num_layers: how many layers are aligned, see :func:`aligned_layers`. The released code aligns all of them; one
            is the default here so that any depths fit.

    Shape:
        - student_states: the layers' outputs, first to last, ``(B, S, H_S)`` each: ``hidden_states[1:]`` of Hugging
          Face, whose first is the embedding.
        - teacher_states: the same of each teacher, ``(B, S, H_t)``; no gradient flows into them.
        - mask: ``attention_mask``, ``(B, S)``. Padding does not count (our choice); ``None`` counts every position, as
          the released code.
        - output: :class:`AmalgamationTerms`, both of weight 1 in the released code.

    Raises:
        ValueError: more layers than the shallowest model has, or states of different lengths, as different tokenizers
            give.

    Example:
        >>> dfa = LayerwiseAmalgamation(384, [384, 384], num_layers=6)
        >>> terms = dfa(student.hidden_states[1:], [t.hidden_states[1:] for t in teachers], batch["attention_mask"])
        >>> loss = vanilla_kd_loss(student.logits, [t.logits for t in teachers]) + sum(terms)
    """

    block = _LayerwiseBlock


class CommonFeatureLearning(_AlignedBlocks):
    r"""CFL: student and teachers meet in a common feature space (arXiv:1906.10546, as in arXiv:2112.07327).

    .. math::
        f_S &= E(\mathrm{ReLU}(W_S h_S + b_S)), \qquad f_t = E(\mathrm{ReLU}(W_t h_t + b_t)) \\
        \text{alignment} &= \sum_t \mathrm{MMD}(f_S, f_t), \qquad
        \text{reconstruction} = \sum_t \mathrm{MSE}(D_t(f_t), h_t)

    The features have :math:`H_S / 4` dimensions. The extractor E, shared, and the decoders :math:`D_t` are two linear
    layers with a ReLU between. For :func:`maximum_mean_discrepancy` the positions of an example are one long vector.
    Train the parameters with the student; the released optimiser leaves out their weights.

    Args:
        student_size: hidden size :math:`H_S` of the student.
        teacher_sizes: hidden size of each teacher.
        num_layers: how many layers are aligned, see :func:`aligned_layers`. Default 1, the last, as the released code.

    Shape:
        - input: as :class:`LayerwiseAmalgamation`. With a mask, padding adds nothing to the vectors.
        - output: :class:`AmalgamationTerms`, both of weight 1 in the released code.

    Raises:
        ValueError: as :class:`LayerwiseAmalgamation`, or a student of fewer than 4 dimensions.
    """

    block = _CommonFeatureBlock
