r"""How sure a teacher is of an example: Monte-Carlo dropout and the scores of its passes.

Lei Li, Yankai Lin, Xuancheng Ren, Guangxiang Zhao, Peng Li, Jie Zhou, Xu Sun, "Model Uncertainty-Aware Knowledge
Amalgamation for Pre-Trained Language Models", arXiv:2112.07327, and its revision "From Mimicking to Integrating:
Knowledge Integration for Pre-Trained Language Models", arXiv:2210.05230. Monte-Carlo dropout: Yarin Gal, Zoubin
Ghahramani, "Dropout as a Bayesian Approximation", arXiv:1506.02142.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fairseq_ext.precision import compute_dtype
from fairseq_ext.training.errors import DataError, OptionError, choose
from fairseq_ext.training.modes import evaluating

__all__ = [
    "OF_SEVERAL_PASSES",
    "SCORES",
    "active_dropout",
    "dropout_probabilities",
    "mc_dropout_probabilities",
    "teacher_scores",
]

SCORES = ("entropy", "max_prob", "margin", "variance", "mutual_info")
OF_SEVERAL_PASSES = ("variance", "mutual_info")
"""The scores that are 0 for one pass."""


def _is_dropout(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__.endswith("Dropout")


def _rates(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Who has the dropout probabilities that depend on ``module.training``, and their names; empty without dropout."""
    if _is_dropout(module):
        return [(module, "drop_prob" if hasattr(module, "drop_prob") else "p")]
    # Attention takes its probability from a dropout module that it never calls, or from a number.
    rates = [rate for child in module.children() if _is_dropout(child) for rate in _rates(child)]
    for name, value in vars(module).items():
        if type(value) in (int, float) and ("dropout" in name or "pdrop" in name):
            rates.append((module, name))
    return rates


def dropout_probabilities(model: nn.Module) -> list[float]:
    """Every probability that :func:`active_dropout` makes active, in the order of the modules."""
    return [float(getattr(owner, name, 1.0)) for module in model.modules() for owner, name in _rates(module)]


@contextlib.contextmanager
def active_dropout(model: nn.Module, probability: float | None = None) -> Iterator[float]:
    """Switches on the dropout of a model, and nothing else; every mode is as before afterwards, after an error too.

    In training mode are the dropout modules, and the modules that call dropout as a function: those that own a dropout
    module or a number named after one, such as the self-attentions of Hugging Face (eager and sdpa alike),
    ``nn.MultiheadAttention`` and ``nn.LSTM``. Batch normalisation keeps its running statistics, and LayerDrop stays
    off: it drops a layer for the whole batch, so copies of an example in one batch would not be independent.

    Args:
        probability: of all of them. Default: each its own.

    Yields:
        the largest dropout probability that is now active; 0 where there is none.
    """
    before: list[tuple[nn.Module, str, float]] = []
    largest = 0.0
    try:
        with evaluating(model):
            for module in model.modules():
                rates = _rates(module)
                if rates and not getattr(module, "layerdrop", 0):
                    module.training = True  # not .train(), which would switch the children too
                    for owner, name in rates:
                        own = float(getattr(owner, name, 1.0))
                        if probability is not None:
                            before.append((owner, name, own))
                            setattr(owner, name, probability)
                        largest = max(largest, own if probability is None else probability)
            yield largest
    finally:
        for owner, name, own in reversed(before):  # an attention and its dropout module name the same one
            setattr(owner, name, own)


def mc_dropout_probabilities(
    model: nn.Module,
    batch: Mapping[str, Any],
    passes: int = 16,
    *,
    dropout: float | None = None,
    chunk_size: int = 256,
    seed: int | None = None,
) -> Tensor:
    r"""Class probabilities of K stochastic forward passes (arXiv:2112.07327).

    .. math:: p^{(k)}(x) = \mathrm{softmax}(z^{(k)}(x)), \qquad k = 1, \dots, K

    Only dropout is active (:func:`active_dropout`); the released scorer leaves the teachers in evaluation mode, so that
    its passes are identical. The K copies of the batch run as one, cut into chunks. No gradient.

    Args:
        model: returns an object with ``logits``, as Hugging Face's classifiers, or the logits themselves, ``(B, C)``.
        batch: keyword arguments of the model, on its device. ``labels`` are left out; tensors of B rows are repeated,
            everything else is passed on as it is. B is the rows of the model's ``main_input_name`` (``input_ids``
            where it has none); without that input, of all tensors of more than one row, which must have as many.
        passes: K. Default 16, as the released code.
        dropout: probability of all dropout. Default: that of the model.
        chunk_size: rows of one forward pass, at most; bounds the memory.
        seed: of the dropout masks; the generators of torch are left as they were. Default: whatever their state is.

    Returns:
        ``(K, B, C)``, in single precision at least.

    Raises:
        OptionError: K or ``chunk_size`` below 1, or a model without active dropout, whose passes cannot differ.
        DataError: a batch that does not tell B, or logits that are not a row for each of its rows.
    """
    if passes < 1:
        raise OptionError(f"passes must be at least 1, got {passes}")
    if chunk_size < 1:
        raise OptionError(f"chunk_size must be at least 1, got {chunk_size}")
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    size, device = _rows_of(inputs, getattr(model, "main_input_name", "input_ids"))
    rows = torch.arange(passes * size, device=device) % size

    def forward(chunk: Tensor) -> Tensor:
        copies = {
            name: value[chunk] if isinstance(value, Tensor) and value.dim() and value.size(0) == size else value
            for name, value in inputs.items()
        }
        output = model(**copies)
        logits = output if isinstance(output, Tensor) else output.logits
        if logits.dim() != 2 or len(logits) != len(chunk):
            raise DataError(f"batch: of {len(chunk)} rows the model makes logits of shape {tuple(logits.shape)}")
        return logits.to(compute_dtype(logits)).softmax(-1)

    devices = [device] if device.type == "cuda" else []
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices, enabled=seed is not None),
        active_dropout(model, dropout) as largest,
    ):
        if not largest:
            raise OptionError(
                f"{passes} Monte-Carlo passes: the model has no dropout above 0, so they cannot differ; "
                "set one (dropout=0.1, --teacher-dropout 0.1), or use one pass without (--no-mc)"
            )
        if seed is not None:
            torch.manual_seed(seed)
        probabilities = torch.cat([forward(chunk) for chunk in rows.split(chunk_size)])
    return probabilities.view(passes, size, probabilities.size(-1))  # -1 of a batch of 0 rows would be any number


def _rows_of(inputs: Mapping[str, Any], main: str) -> tuple[int, torch.device]:
    """The size of a batch, and its device."""
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor) and value.dim()}
    sizes = {name: value.size(0) for name, value in tensors.items() if value.size(0) != 1}
    if main in tensors:
        sizes = {main: tensors[main].size(0)}
    if not tensors or len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items()) or "no tensor"
        raise DataError(f"batch: needs {main}, or tensors of equally many rows, to tell how many examples; has {found}")
    return next(iter(sizes.values()), 1), next(iter(tensors.values())).device


def teacher_scores(probabilities: Tensor, kind: str = "entropy") -> Tensor:
    r"""Score of a teacher for each example, higher where it is more to be trusted (arXiv:2112.07327).

    .. math:: s = 1 - \frac{H(\bar p)}{\log C}, \qquad \bar p = \frac1K \sum_k p^{(k)}, \qquad
              H(p) = -\sum_c p_c \log p_c

    The division by :math:`\log C` makes teachers of different class counts comparable. The other kinds are our choice:

    ===============  ================================================================================================
    ``max_prob``     :math:`\max_c \bar p_c`
    ``margin``       the difference of the two largest of :math:`\bar p`
    ``variance``     :math:`-\sum_c \mathrm{Var}_k\, p^{(k)}_c` (of the population); 0 for one pass
    ``mutual_info``  :math:`-(H(\bar p) - \frac1K \sum_k H(p^{(k)})) / \log C` (BALD, arXiv:1112.5745); 0 for one pass
    ===============  ================================================================================================

    Args:
        probabilities: of K passes, ``(K, B, C)``; ``(1, B, C)`` for a deterministic pass.
        kind: one of the above. Default ``"entropy"``, as released.

    Returns:
        ``(B)``, in single precision at least. ``torch.stack(scores, -1)`` over the teachers gives the ``(B, T)`` of
        :func:`~vision_language.muka.targets.amalgamation_targets`.

    Raises:
        OptionError: an unknown kind.
        ValueError: another shape, or fewer than two classes, among which nothing is uncertain.

    Example:
        >>> scores = torch.stack([teacher_scores(mc_dropout_probabilities(t, batch)) for t in teachers], -1)
    """
    choose("score", kind, SCORES)
    if probabilities.dim() != 3 or probabilities.size(-1) < 2:
        shape = tuple(probabilities.shape)
        raise ValueError(f"probabilities must be (passes, batch, classes) with two classes or more, got {shape}")
    probabilities = probabilities.to(compute_dtype(probabilities))
    mean = probabilities.mean(0)
    if kind == "max_prob":
        return mean.amax(-1)
    if kind == "margin":
        first, second = mean.topk(2, dim=-1).values.unbind(-1)
        return first - second
    if kind == "variance":
        return -probabilities.var(0, correction=0).sum(-1)
    entropy = torch.special.entr(mean).sum(-1)  # 0 log 0 = 0
    if kind == "mutual_info":
        return -(entropy - torch.special.entr(probabilities).sum(-1).mean(0)) / math.log(mean.size(-1))
    return 1 - entropy / math.log(mean.size(-1))
