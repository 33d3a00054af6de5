"""The objective of each method: a module that holds the model in training and gives its loss for a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from fairseq_ext.losses import encouraging_loss
from fairseq_ext.training.errors import OptionError
from vision_language.muka.baselines import uhc_loss, vanilla_kd_loss
from vision_language.muka.feature_amalgamation import CommonFeatureLearning, LayerwiseAmalgamation
from vision_language.muka.models import Classifier, accepted
from vision_language.muka.options import AmalgamationOptions, TeacherOptions
from vision_language.muka.targets import LabelUnion, amalgamation_loss, amalgamation_targets, margin_weights

__all__ = ["FeatureObjective", "Objective", "amalgamation_objective", "teacher_loss", "teacher_signals"]


class Objective(nn.Module):
    """A classifier and its loss in one module, so that DistributedDataParallel and autocast see both.

    Args:
        model: in training.
        logit_loss: called with logits ``(B, N)`` and the signals of B texts; gives the mean loss.
    """

    def __init__(self, model: PreTrainedModel, logit_loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model = model
        self.logit_loss = logit_loss

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """For an optimiser: matrices, and the vectors of norms and biases, which do not decay."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        matrices, vectors = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() <= 1]
        return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]

    def forward(self, batch: dict[str, Tensor], signals: Sequence[Tensor]) -> Tensor:
        return self.logit_loss(self.model(**batch).logits.float(), *signals)


class FeatureObjective(Objective):
    """DFA or CFL: ``logit_loss`` on the logits, and ``blocks`` between the hidden states of student and teachers.

    Args:
        teachers: on the model's device, in evaluation mode; they read what the student reads.
        blocks: trained with the student.
        blocks_lr: largest step size of ``blocks``, whose parameters do not decay.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        logit_loss: Callable[..., Tensor],
        teachers: Sequence[PreTrainedModel],
        blocks: nn.Module,
        blocks_lr: float = 1e-3,
    ) -> None:
        super().__init__(model, logit_loss)
        self.blocks, self.blocks_lr = blocks, blocks_lr
        self.teachers = tuple(teachers)  # in a tuple torch does not see them: not trained, not saved, no dropout

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        blocks = {"params": list(self.blocks.parameters()), "weight_decay": 0.0, "lr": self.blocks_lr}
        return [*super().parameter_groups(weight_decay), blocks]

    def forward(self, batch: dict[str, Tensor], signals: Sequence[Tensor]) -> Tensor:
        with torch.no_grad():
            states = [_states(teacher, batch).hidden_states[1:] for teacher in self.teachers]
        output = _states(self.model, batch)
        terms = self.blocks(output.hidden_states[1:], states, batch.get("attention_mask"))
        return self.logit_loss(output.logits.float(), *signals) + terms.alignment + terms.reconstruction


def _states(model: PreTrainedModel, batch: dict[str, Tensor]) -> Any:
    names = accepted(model)
    return model(**{name: value for name, value in batch.items() if name in names}, output_hidden_states=True)


def teacher_loss(options: TeacherOptions) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy, or encouraging loss (arXiv:2110.06537)."""
    return partial(encouraging_loss, log_end=options.log_end) if options.loss == "encouraging" else F.cross_entropy


def teacher_signals(
    options: AmalgamationOptions, union: LabelUnion, logits: Sequence[Tensor], scores: Tensor | None = None
) -> list[Tensor]:
    """The teachers' part in the loss of ``options.method``, for each text.

    Args:
        logits: of each teacher, ``(n, C_t)``.
        scores: ``(n, T)``, for the methods that weigh teachers.

    Returns:
        targets ``(n, N)`` and weights ``(n)`` of ``muka-soft`` and ``muka-hard``, else the logits.
    """
    if scores is None:
        return list(logits)
    hard = options.method == "muka-hard"
    temperatures = {"temperature": options.temperature, "score_temperature": options.score_temperature}
    targets = amalgamation_targets(logits, scores, union, hard=hard, **temperatures)
    return [targets, margin_weights(scores) if options.margin else torch.ones(len(scores))]


def amalgamation_objective(
    options: AmalgamationOptions, student: Classifier, union: LabelUnion, teachers: Sequence[Classifier]
) -> Objective:
    """The objective of ``options.method``; its signals are those of :func:`teacher_signals`.

    Raises:
        OptionError: dfa or cfl with teachers that read other tokens than the student.
    """

    def muka(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        return amalgamation_loss(logits, target, options.temperature, weight)

    def distillation(logits: Tensor, *teacher_logits: Tensor, loss: Callable[..., Tensor]) -> Tensor:
        return loss(logits, teacher_logits, union, options.temperature)

    if options.weighs_teachers:
        return Objective(student.model, muka)
    if options.method in ("vkd", "uhc"):
        loss = vanilla_kd_loss if options.method == "vkd" else uhc_loss
        return Objective(student.model, partial(distillation, loss=loss))
    vocabulary = student.tokenizer.get_vocab()
    for teacher in teachers:
        if teacher.tokenizer.get_vocab() != vocabulary:
            raise OptionError(
                f"--method {options.method}: compares hidden states token by token, but {teacher.folder} and "
                f"{student.folder} have different tokenizers"
            )
    sizes = [teacher.hidden_size for teacher in teachers]
    depth = min(model.model.config.get_text_config().num_hidden_layers for model in (student, *teachers))
    blocks = (
        LayerwiseAmalgamation(student.hidden_size, sizes, depth)
        if options.method == "dfa"
        else CommonFeatureLearning(student.hidden_size, sizes)
    )
    loss = partial(distillation, loss=vanilla_kd_loss)
    models = [teacher.model for teacher in teachers]
    return FeatureObjective(student.model, loss, models, blocks, options.amalgam_lr)
