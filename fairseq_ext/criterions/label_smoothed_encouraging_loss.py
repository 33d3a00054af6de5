"""``--criterion label_smoothed_encouraging_loss``: label-smoothed cross-entropy with the encouraging bonus.

Zhao et al., "Well-classified Examples are Underestimated in Classification with Deep Neural Networks",
arXiv:2110.06537. The mathematics is in :mod:`fairseq_ext.losses.encouraging`.
"""

# No `from __future__ import annotations` here: fairseq reads the field types of the dataclass.
import inspect
import math
from dataclasses import dataclass

from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from fairseq.logging import metrics
from fairseq.models.transformer import TransformerDecoderBase
from fairseq.tasks import FairseqTask
from torch import nn

from fairseq_ext.criterions.span_loss import SpanLoss, has_spans
from fairseq_ext.losses.encouraging import SMOOTHING_FORMS, encouraging_loss_terms
from fairseq_ext.losses.fused_linear import fused_linear_terms
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.options import check_fields, option

__all__ = ["LabelSmoothedEncouragingLossCriterion", "LabelSmoothedEncouragingLossCriterionConfig"]

NO_BONUS = {"bonus_weight": (0,)}


@dataclass
class LabelSmoothedEncouragingLossCriterionConfig(LabelSmoothedCrossEntropyCriterionConfig):
    label_smoothing: float = option(
        0.0,
        "probability that label smoothing gives to all classes together; 0 = none (published translation: 0.1)",
        least=0,
        most=1,
    )
    log_end: float = option(
        0.5,
        "probability in [0, 1] up to which the bonus is log(1 - p), and linear beyond; 1 = logarithm everywhere"
        " (published translation: 0.5; best for easy tasks: 0.75)",
        least=0,
        most=1,
        idle=NO_BONUS,
        argparse_alias="--log_end",
    )
    bonus_weight: float = option(1.0, "weight of the bonus; 0 = label-smoothed cross-entropy (published: 1)", least=0)
    bonus_clamp: float = option(
        1e-5,
        "least 1 - p inside the logarithm, only reached with --log-end 1; 0 = exact (published: 1e-5)",
        least=0,
        below=0.5,
        idle=NO_BONUS,
    )
    smoothing_form: str = option(
        "uniform",
        "what label smoothing gives to a class: uniform = eps/V to each, off-target = eps/(V-1) to each but the target,"
        " as fairseq's label_smoothed_cross_entropy (published: uniform)",
        SMOOTHING_FORMS,
        idle={"label_smoothing": (0,)},
    )
    bonus_at_validation: bool = option(
        False,
        "keep the bonus in the validation loss (published); it is then not comparable between losses",
        idle=NO_BONUS,
    )
    fused_output_loss: bool = option(
        False,
        "compute output layer and loss together, some tokens at a time: the same numbers in less memory, as the"
        " logits of a batch are never there (our choice)",
    )
    ignore_prefix_size: int = option(0, "target tokens at the start that the loss passes over", least=0)


@register_criterion("label_smoothed_encouraging_loss", dataclass=LabelSmoothedEncouragingLossCriterionConfig)
class LabelSmoothedEncouragingLossCriterion(SpanLoss, LabelSmoothedCrossEntropyCriterion):
    """Label-smoothed cross-entropy plus the bonus of every token that is not padding.

    It logs the values of fairseq's criterion, and ``bonus``: in training ``loss`` is the smoothed cross-entropy plus
    ``bonus``, in validation the smoothed cross-entropy alone (unless ``bonus_at_validation``), so that runs with and
    without the bonus can be compared. ``nll_loss`` and ``ppl`` never contain the bonus.

    Args:
        task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy: as in fairseq's criterion.
        log_end: where the logarithm ends. Default 0.5, as in the released criterion's flag and the published
            translation runs.
        bonus_weight: weight of the bonus.
        bonus_clamp: least ``1 - p`` inside the logarithm.
        smoothing_form: ``"uniform"`` or ``"off-target"``. Default ``"uniform"``, as in the released code; fairseq
            itself has smoothed off-target since 0.10.1.
        bonus_at_validation: keep the bonus in the validation loss, as the released code does.
        fused_output_loss: see :mod:`fairseq_ext.losses.fused_linear`; for models whose output layer is one matrix.

    Raises:
        OptionError: a value out of range, or an option that would do nothing.
    """

    def __init__(
        self,
        task: FairseqTask,
        sentence_avg: bool,
        label_smoothing: float,
        ignore_prefix_size: int = 0,
        report_accuracy: bool = False,
        log_end: float = 0.5,
        bonus_weight: float = 1.0,
        bonus_clamp: float = 1e-5,
        smoothing_form: str = "uniform",
        bonus_at_validation: bool = False,
        fused_output_loss: bool = False,
    ) -> None:
        super().__init__(task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy)
        self.log_end = log_end
        self.bonus_weight = bonus_weight
        self.bonus_clamp = bonus_clamp
        self.smoothing_form = smoothing_form
        self.bonus_at_validation = bonus_at_validation
        self.fused_output_loss = fused_output_loss
        self.label_smoothing = label_smoothing
        check_fields(self, LabelSmoothedEncouragingLossCriterionConfig)
        default_clamp = LabelSmoothedEncouragingLossCriterionConfig.bonus_clamp
        if bonus_clamp != default_clamp and log_end < 1:
            raise OptionError(f"--bonus-clamp {bonus_clamp}: has no effect with --log-end {log_end}, never reached")

    def forward(self, model, sample, reduce=True):
        """Compute the loss of a batch: ``(loss, sample_size, logging_output)``, the loss summed over tokens."""
        adaptive = getattr(getattr(model, "decoder", None), "adaptive_softmax", None)
        if self.training and adaptive is not None:
            raise OptionError(
                "--criterion label_smoothed_encouraging_loss: excludes --adaptive-softmax-cutoff, which trains with "
                "--criterion adaptive_loss alone"
            )
        if self.fused_output_loss and reduce:
            loss, nll_loss, bonus, correct = self.compute_fused_terms(model, sample)
        else:
            net_output = model(**sample["net_input"])
            loss, nll_loss, bonus = self.compute_terms(model, net_output, sample, reduce=reduce)
            correct = self.compute_accuracy(model, net_output, sample) if self.report_accuracy else None
        sample_size = sample["target"].size(0) if self.sentence_avg else sample["ntokens"]
        logging_output = {
            "loss": loss.data,
            "nll_loss": nll_loss.data,
            "bonus": bonus.data,
            "ntokens": sample["ntokens"],
            "nsentences": sample["target"].size(0),
            "sample_size": sample_size,
        }
        if self.report_accuracy:
            logging_output["n_correct"], logging_output["total"] = (count.data for count in correct)
        if has_spans(model):
            loss = self.add_span_loss(model, loss, sample_size, logging_output)
        return loss, sample_size, logging_output

    def compute_loss(self, model, net_output, sample, reduce=True):
        """``(loss, nll_loss)``, the hook that other criterions call."""
        return self.compute_terms(model, net_output, sample, reduce=reduce)[:2]

    def compute_terms(self, model, net_output, sample, reduce=True):
        """``(loss, nll_loss, weighted bonus)``: sums over tokens, or ``(N, 1)`` each if not ``reduce``."""
        lprobs, target = self.get_lprobs_and_target(model, net_output, sample)
        cross_entropy, bonus = encouraging_loss_terms(
            lprobs,
            target,
            ignore_index=self.padding_idx,
            label_smoothing=self.eps,
            log_end=self.log_end,
            smoothing_form=self.smoothing_form,
            bonus_clamp=self.bonus_clamp,
        )
        ignored = target.eq(self.padding_idx)
        nll_loss = -lprobs.gather(1, target.masked_fill(ignored, 0)[:, None]).squeeze(1).masked_fill(ignored, 0.0)
        bonus = self.bonus_weight * bonus
        loss = cross_entropy + bonus if self.training or self.bonus_at_validation else cross_entropy
        terms = loss, nll_loss, bonus
        return tuple(term.sum() if reduce else term[:, None] for term in terms)

    def compute_fused_terms(self, model, sample):
        """``(loss, nll_loss, weighted bonus, (correct tokens, tokens))``, sums over tokens, without their logits."""
        projection = _output_matrix(model)
        net_output = model(**sample["net_input"], features_only=True)
        hidden, target = net_output[0], model.get_targets(sample, net_output)
        hidden, target = (
            hidden[:, self.ignore_prefix_size :].flatten(0, 1),
            target[:, self.ignore_prefix_size :].flatten(),
        )
        terms = fused_linear_terms(
            hidden,
            projection.weight,
            target,
            projection.bias,
            ignore_index=self.padding_idx,
            bonus_weight=self.bonus_weight if self.training or self.bonus_at_validation else 0.0,
            label_smoothing=self.eps,
            log_end=self.log_end,
            smoothing_form=self.smoothing_form,
            bonus_clamp=self.bonus_clamp,
        )
        kept = target.ne(self.padding_idx)
        correct = (terms.prediction.eq(target) & kept).sum(), kept.sum()
        return terms.loss, terms.nll.sum(), self.bonus_weight * terms.bonus.sum(), correct

    @classmethod
    def reduce_metrics(cls, logging_outputs) -> None:
        """Aggregate logging outputs over workers and updates; ``bonus`` is in bits and, like ``loss``, per sample."""
        super().reduce_metrics(logging_outputs)
        cls.reduce_span_metrics(logging_outputs)
        bonus = sum(log.get("bonus", 0) for log in logging_outputs)
        sample_size = sum(log.get("sample_size", 0) for log in logging_outputs)
        metrics.log_scalar("bonus", bonus / sample_size / math.log(2), sample_size, round=3)


def _output_matrix(model: nn.Module) -> nn.Linear:
    """The output layer of a model; refused if it is more than one matrix, or if DDP would not wait for its gradient."""
    decoder = getattr(model, "decoder", None)
    projection = getattr(decoder, "output_projection", None)
    plain = getattr(type(decoder), "output_layer", None) is TransformerDecoderBase.output_layer
    if not plain or not isinstance(projection, nn.Linear):
        name = type(model if decoder is None else decoder).__name__
        raise OptionError(f"--fused-output-loss: needs an output layer that is one matrix, {name} has none")
    if not _gives_features(model):
        raise OptionError(
            f"--fused-output-loss: {type(model).__name__} cannot leave its output layer out (features_only)"
        )
    tied = projection.weight is getattr(decoder.embed_tokens, "weight", None)
    if getattr(model, "find_unused_parameters", False) and not tied:
        raise OptionError(
            "--fused-output-loss: excludes --find-unused-parameters, which takes an output layer for unused that is not"
            " that of the embeddings"
        )
    return projection


def _gives_features(model: nn.Module) -> bool:
    """Whether a model's forward pass can leave the output layer out; those of some speech models cannot."""
    while isinstance(getattr(model, "module", None), nn.Module):  # fairseq's wrappers of a model
        model = model.module
    parameters = inspect.signature(model.forward).parameters.values()
    return any(item.name == "features_only" or item.kind is item.VAR_KEYWORD for item in parameters)
