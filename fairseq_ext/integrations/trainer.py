"""The encouraging loss as ``compute_loss_func`` of Hugging Face's ``Trainer``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_ext.integrations.trial import IGNORED, own_loss
from fairseq_ext.losses import encouraging_loss
from fairseq_ext.losses.common import as_class_weight
from fairseq_ext.training.errors import DataError, OptionError

__all__ = [
    "EncouragingComputeLoss",
    "check_options",
    "encouraging_compute_loss",
    "mean_over_items",
    "next_labels",
    "on_device",
]

# Loss types of transformers that have one label per row, so that there is nothing to shift.
ONE_LABEL = tuple(f"For{kind}Classification" for kind in ("Sequence", "Image", "Video", "Audio"))


@dataclass(frozen=True)
class EncouragingComputeLoss:
    """The result of :func:`encouraging_compute_loss`: ``loss(outputs, labels, num_items_in_batch=None)``."""

    shift: bool
    options: dict[str, Any]

    def __call__(self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        if labels is None:
            raise DataError("labels: the batch has none")
        named = isinstance(outputs, Mapping)
        if named and outputs.get("aux_loss") is not None:
            raise OptionError("output_router_logits: the model's auxiliary loss would be lost beside this one")
        logits = outputs["logits"] if named else outputs[0]
        labels = labels.to(logits.device)
        if labels.is_floating_point() or labels.numel() != logits.shape[:-1].numel():
            shapes = f"{tuple(logits.shape[:-1])} for logits {tuple(logits.shape)}, got {tuple(labels.shape)}"
            raise DataError(f"labels: must be class indices of shape {shapes} of {labels.dtype}")
        if self.shift:
            labels = next_labels(labels)
        total = encouraging_loss(
            logits.flatten(0, -2), labels.flatten(), reduction="sum", **on_device(self.options, logits)
        )
        return mean_over_items(total, labels, num_items_in_batch)


def on_device(options: dict[str, Any], like: Tensor) -> dict[str, Any]:
    """The options of a loss, with class weights moved to the device of the logits."""
    return {name: value.to(like.device) if torch.is_tensor(value) else value for name, value in options.items()}


def next_labels(labels: Tensor) -> Tensor:
    """Labels shifted so that each position has the next one's; copies of labels are smaller than those of logits."""
    return F.pad(labels.long(), (0, 1), value=IGNORED)[..., 1:]


def mean_over_items(total: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """Mean over the items of the whole accumulated batch, or of this one; 0 where all are ignored."""
    if num_items_in_batch is None:
        num_items_in_batch = (labels != IGNORED).sum()
    return total / torch.as_tensor(num_items_in_batch, device=total.device).clamp_min(1)


def encouraging_compute_loss(
    model: nn.Module, args: Any, *, shift: bool | None = None, **options: Any
) -> EncouragingComputeLoss:
    r"""The encouraging loss for ``transformers.Trainer(model, args, compute_loss_func=...)``.

    .. math:: \frac1N \sum_{y_n \ne -100} \big(-\log p_n + B(p_n)\big)

    (Zhao et al., arXiv:2110.06537; see :func:`~fairseq_ext.losses.encouraging_loss`.) :math:`N` is Trainer's
    ``num_items_in_batch``, so that accumulated gradients are those of one large batch; in evaluation it is the number
    of labels in the batch. Evaluation's ``eval_loss`` has the bonus too: compare runs by their metrics.

    It takes causal language models (whose labels it shifts if their own loss does), encoder-decoders, masked language
    models and classifiers of texts, tokens, images, sounds and videos. As Trainer takes the labels out of the batch, an
    encoder-decoder needs ``decoder_input_ids`` in it: ``DataCollatorForSeq2Seq(tokenizer, model=model)``.

    Args:
        model: the model that is given to Trainer. Whether its loss shifts labels is measured on four tokens, once and
            without a trace in the model; where Trainer would count other labels, ``model.loss_type`` is set.
        args: the ``TrainingArguments``. Their ``label_smoothing_factor``, which Trainer ignores beside a
            ``compute_loss_func``, is the ``label_smoothing`` here. None in a loop of your own.
        shift: whether each position predicts the label of the next one. Default: as in the model's own loss, where that
            is the cross-entropy of its logits (ProphetNet's has several predictions per position).
        **options: options of :func:`~fairseq_ext.losses.encouraging_loss`: ``log_end``, ``label_smoothing``, ``bonus``,
            ... Class weights do not change the divisor of the sum.

    Shape:
        - outputs: ``logits`` :math:`(*, V)`, labels :math:`(*)`; the loss is a scalar.

    Raises:
        OptionError: label smoothing given twice, an option out of its range, ``weight`` that is not one number per
            class, ``ignore_index`` (Trainer counts the labels other than -100), or a model with another loss:
            regression, several labels, questions, detection.
        DataError: in a batch, labels are missing or of another shape.

    Example:
        >>> loss = encouraging_compute_loss(model, args, log_end=0.75)
        >>> Trainer(model, args, train_dataset=data, compute_loss_func=loss).train()
    """
    factor = getattr(args, "label_smoothing_factor", 0.0)
    if factor and options.get("label_smoothing"):
        given = options["label_smoothing"]
        raise OptionError(f"label_smoothing={given} and label_smoothing_factor={factor} are both given; leave one out")
    if factor:
        options["label_smoothing"] = factor
    shift, classes = _labels(model, shift)
    check_options(options, "weight", classes)
    return EncouragingComputeLoss(shift, options)


def check_options(options: dict[str, Any], weight: str, classes: int | None) -> None:
    """Refuse options of :func:`~fairseq_ext.losses.encouraging_loss` that do not work here, before the first batch.

    Args:
        options: the options as they were given.
        weight: the name of the class weights among them.
        classes: number of classes; None where it is not known yet.
    """
    if "ignore_index" in options:
        raise OptionError("ignore_index: Trainer counts the labels other than -100; mark with -100 what to ignore")
    if "reduction" in options:
        raise OptionError("reduction: it is the mean over num_items_in_batch")
    if other := {"weight", "class_weight"} - {weight} & options.keys():
        raise OptionError(f"{other.pop()}: the weights of the classes are called {weight} here")
    class_weight = options.get(weight)
    try:
        if class_weight is not None:
            as_class_weight(class_weight, class_weight.numel() if classes is None else classes, weight)
        tried = {name: value for name, value in options.items() if name != weight}
        encouraging_loss(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), **tried)
    except (TypeError, ValueError) as error:
        raise OptionError(str(error)) from error


def _labels(model: Any, shift: bool | None) -> tuple[bool, int | None]:
    """Whether labels are shifted, and the number of classes where it is known.

    Trainer chooses by the model's ``loss_type`` which labels it counts; where it would count others, that is set here.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # of PEFT
    config, loss_type = getattr(model, "config", None), getattr(model, "loss_type", None)
    problem, classes = getattr(config, "problem_type", None), None
    if loss_type in ONE_LABEL:
        classes = getattr(config, "num_labels", None)
        problem = "regression" if problem is None and classes == 1 else problem
    if problem in ("regression", "multi_label_classification"):
        name = type(model).__name__
        raise OptionError(f"model: {name} is for {problem}; for several labels see binary_encouraging_loss")
    if shift is None:
        shift, classes = (False, classes) if loss_type in ONE_LABEL else own_loss(model)
    if shift != _counts_shifted(loss_type):
        model.loss_type = "ForCausalLM" if shift else "ForMaskedLM"
    return shift, classes


def _counts_shifted(loss_type: str | None) -> bool:
    """Whether Trainer counts shifted labels for a ``loss_type``: its own rule."""
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

    return LOSS_MAPPING.get(loss_type or "") is ForCausalLMLoss
