r"""Criterions that add the loss of ``--attention-span-loss``, which keeps adaptive attention spans short.

Sukhbaatar, Grave, Bojanowski & Joulin, "Adaptive Attention Span in Transformers", arXiv 1905.07799: with weight
:math:`\lambda`, longest span :math:`L` and the spans :math:`z_h` of the heads,

.. math::
    \frac{1}{N} \sum_{n=1}^{N} -\log p_n + \lambda \sum_{\text{layers}} L \, \frac{1}{H} \sum_{h=1}^{H} z_h
"""

# No `from __future__ import annotations` here: fairseq reads the types of the criterions' arguments.
import math
from typing import Any

from fairseq.criterions import register_criterion
from fairseq.criterions.adaptive_loss import AdaptiveLoss, AdaptiveLossConfig
from fairseq.criterions.cross_entropy import CrossEntropyCriterion, CrossEntropyCriterionConfig
from fairseq.logging import metrics
from torch import Tensor

from fairseq_ext.training.errors import OptionError

__all__ = ["AdaptiveLossWithSpan", "CrossEntropyWithSpanCriterion", "SpanLoss", "WithSpan", "has_spans"]


def has_spans(model: Any) -> bool:
    """Whether a model, or the one that a wrapper holds, has ``--attention-span``."""
    return bool(getattr(model, "span_attentions", list)())


class SpanLoss:
    """Base of criterions that add the span loss and log the metrics ``span_loss`` and ``avg_span``."""

    adds_span_loss = True  # read by the model, which refuses --attention-span-loss beside other criterions

    def add_span_loss(self, model: Any, loss: Tensor, sample_size: Any, logging_output: dict[str, Any]) -> Tensor:
        """Adds the span loss in training, to the *mean* loss: fairseq divides the sum ``loss`` by ``sample_size``.

        The ``loss`` that is logged stays without it, so that perplexities can be compared.
        """
        span_loss = model.span_loss() * sample_size
        logging_output["span_loss"] = span_loss.data
        logging_output["avg_span"] = model.average_span() * sample_size
        return loss + span_loss if self.training else loss

    @classmethod
    def reduce_span_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """``span_loss`` in bits, as ``loss``, and ``avg_span`` in positions; neither for a model without spans."""
        logs = [log for log in logging_outputs if "avg_span" in log]
        sample_size = sum(log["sample_size"] for log in logs)
        for name, unit, digits in (("span_loss", math.log(2), 5), ("avg_span", 1, 1)):
            if logs:
                total = sum(log[name] for log in logs)
                metrics.log_scalar(name, total / sample_size / unit, sample_size, round=digits)


class WithSpan(SpanLoss):
    """One of fairseq's criterions with the span loss, for models with ``--attention-span`` alone."""

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> tuple[Tensor, Any, dict[str, Any]]:
        """The criterion's own forward pass with the span loss added, which takes a loss that ``reduce`` has summed."""
        if not has_spans(model):
            raise OptionError("--criterion: those with_span need a transformer_lm_ext model with --attention-span")
        loss, sample_size, logging_output = super().forward(model, sample, reduce)
        return self.add_span_loss(model, loss, sample_size, logging_output), sample_size, logging_output

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """The criterion's own metrics and those of spans."""
        super().reduce_metrics(logging_outputs)
        cls.reduce_span_metrics(logging_outputs)


@register_criterion("cross_entropy_with_span", dataclass=CrossEntropyCriterionConfig)
class CrossEntropyWithSpanCriterion(WithSpan, CrossEntropyCriterion):
    """``--criterion cross_entropy`` and the span loss."""


@register_criterion("adaptive_loss_with_span", dataclass=AdaptiveLossConfig)
class AdaptiveLossWithSpan(WithSpan, AdaptiveLoss):
    """``--criterion adaptive_loss``, for adaptive softmax, and the span loss."""
