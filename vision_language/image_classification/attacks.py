r"""Adversarial attacks in units of pixels, by foolbox, with an objective whose gradient does not vanish.

==============  ======================================================================================================
``fgsm``        :math:`x' = \mathrm{clip}(x + \varepsilon\, \mathrm{sign}(g))` (Goodfellow et al., arXiv:1412.6572)
``pgd``         :math:`x_{k+1} = \mathrm{clip}(\Pi_{\infty, \varepsilon}(x_k + \alpha\, \mathrm{sign}(g_k)))`
                (Madry et al., arXiv:1706.06083)
``pgd-l2``      the same with :math:`g / \|g\|_2` and the projection onto the Euclidean ball
==============  ======================================================================================================

with g the gradient of the *objective* that the attack raises. The literature raises the cross-entropy. Its gradient is
:math:`1 - p_y` times the gradient of the negative log-odds, so that both point the same way in exact arithmetic; in
float32 :math:`p_y` rounds to 1 for large margins, and the gradient of the cross-entropy is then 0 or wrong. The
encouraging loss trains such margins: an attack then fails by rounding, which looks like robustness. The objective
``log-odds`` shows what a model withstands.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import eagerpy as ep
import foolbox
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_ext.training.modes import evaluating
from vision_language.image_classification.scores import log_odds

__all__ = ["ATTACKS", "OBJECTIVES", "Attack", "vanishing_gradients"]

OBJECTIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "log-odds": lambda logits, labels: -log_odds(logits, labels),
    "cross-entropy": lambda logits, labels: F.cross_entropy(logits, labels, reduction="none"),
}
"""What an attack raises: a value for each image, from logits and labels."""


class _Attacker:
    """foolbox's descent on one of our objectives, from a start that does not depend on the batch."""

    objective: str
    start: Tensor | None = None

    def get_loss_fn(self, model: Any, labels: Any) -> Callable[[Any], Any]:
        objective = OBJECTIVES[self.objective]
        return lambda inputs: ep.astensor(objective(model(inputs).raw, labels.raw).sum())

    def get_random_start(self, x0: Any, epsilon: float) -> Any:
        assert self.start is not None
        return x0 + ep.astensor(self.start) * epsilon


class _FGSM(_Attacker, foolbox.attacks.LinfFastGradientAttack):
    pass


class _PGD(_Attacker, foolbox.attacks.LinfProjectedGradientDescentAttack):
    pass


class _PGDL2(_Attacker, foolbox.attacks.L2ProjectedGradientDescentAttack):
    pass


ATTACKS: dict[str, Any] = {"fgsm": _FGSM, "pgd": _PGD, "pgd-l2": _PGDL2}


@dataclass(frozen=True)
class Attack:
    r"""An untargeted attack on a classifier of pixels in [0, 1].

    Args:
        name: one of ``ATTACKS``.
        objective: one of ``OBJECTIVES``. Default ``"log-odds"``; published results raise the cross-entropy.
        steps: of ``pgd`` and ``pgd-l2``. Default 40.
        step_size: :math:`\alpha` of ``pgd`` and ``pgd-l2``, in pixels. Default 2/255 for ``pgd``, 0.2 for ``pgd-l2``,
            with which the encouraging loss's results were published.
        random_start: begin ``pgd`` at a random point of the ball. Default: yes for ``pgd``, no for the others, as
            published.
        seed: seed of the random start, which depends on nothing else but an image's number and the epoch. Default 0.

    Raises:
        ValueError: an unknown name, an option that the attack does not have, or a value that is not allowed.
    """

    name: str = "fgsm"
    objective: str = "log-odds"
    steps: int | None = None
    step_size: float | None = None
    random_start: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for option, value, allowed in (("name", self.name, ATTACKS), ("objective", self.objective, OBJECTIVES)):
            if value not in allowed:
                raise ValueError(f"{option} must be one of {', '.join(allowed)}, got {value!r}")
        if self.name == "fgsm":
            for option in ("steps", "step_size", "random_start"):
                if getattr(self, option) is not None:
                    raise ValueError(f"{option} is an option of pgd and pgd-l2, got {getattr(self, option)} with fgsm")
        elif self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        elif self.step_size is not None and not 0 < self.step_size < math.inf:
            raise ValueError(f"step_size must be above 0, got {self.step_size}")
        if self.name == "pgd-l2" and self.random_start:
            raise ValueError("random_start is an option of pgd, got True with pgd-l2")

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        epsilon: float,
        numbers: Sequence[int] | np.ndarray | None = None,
        epoch: int = 0,
    ) -> Tensor:
        r"""Attacked images. The model is in evaluation mode meanwhile, and in its former mode afterwards.

        Args:
            model: from pixels in [0, 1] to logits, with any normalisation inside.
            images: ``(N, channels, height, width)``.
            labels: ``(N)``.
            epsilon: radius of the ball in pixels: 8/255, 0.3, ..., at most 1; for ``pgd-l2`` the Euclidean radius,
                which may be of any finite size (a ball that holds all images limits nothing).
            numbers: numbers of the images in their data set. Default: 0, 1, ...
            epoch: epoch of a training, counted from 1. Default: 0, no training.

        Returns:
            Images of the shape of ``images``, in [0, 1] and at most ``epsilon`` away from them.

        Raises:
            ValueError: pixels outside [0, 1], or an ``epsilon`` that is not allowed.
        """
        if self.name == "pgd-l2" and not 0 <= epsilon < math.inf:
            raise ValueError(f"epsilon must be at least 0 and finite, got {epsilon:g}")
        if self.name != "pgd-l2" and not 0 <= epsilon <= 1:
            raise ValueError(f"epsilon must be in [0, 1], in pixels from 0 to 1, got {epsilon:g}")
        if images.numel() and not (float(images.min()) >= 0 and float(images.max()) <= 1):
            raise ValueError("images must be pixels in [0, 1]: put the normalisation inside the model")
        if not epsilon:
            return images.clone()
        attacker = ATTACKS[self.name](**self._arguments())
        attacker.objective, attacker.start = self.objective, self._start(images, numbers, epoch)
        with _frozen(model):
            classifier = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
            return attacker.run(classifier, images, labels, epsilon=epsilon)

    def distance(self, images: Tensor, attacked: Tensor) -> Tensor:
        """How far each attacked image is from its original, in the norm of the ball.

        This is the Euclidean distance for ``pgd-l2``, and else the largest difference of a pixel.

        Args:
            images: the originals, ``(N, channels, height, width)``.
            attacked: what a call returned for them.

        Returns:
            ``(N)``; 0 for an image that the attack left as it was.
        """
        return (attacked - images).flatten(1).norm(2 if self.name == "pgd-l2" else math.inf, dim=1)

    def _arguments(self) -> dict[str, Any]:
        if self.name == "fgsm":
            return {}
        size = self.step_size if self.step_size is not None else {"pgd": 2 / 255, "pgd-l2": 0.2}[self.name]
        return {"steps": self.steps or 40, "abs_stepsize": size, "random_start": self._starts_at_random}

    @property
    def _starts_at_random(self) -> bool:
        return self.name == "pgd" and self.random_start is not False

    def _start(self, images: Tensor, numbers: Sequence[int] | np.ndarray | None, epoch: int) -> Tensor | None:
        if not self._starts_at_random:
            return None
        rows = []
        for number in range(len(images)) if numbers is None else numbers:
            generator = np.random.default_rng([self.seed, int(number), *([epoch] if epoch else [])])
            rows.append(torch.from_numpy(generator.uniform(-1, 1, images.shape[1:])))
        return torch.stack(rows).to(images) if rows else None


def vanishing_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """How far rounding hides the gradient that attacks on the cross-entropy follow.

    Args:
        model: from pixels in [0, 1] to logits.
        images: ``(N, channels, height, width)``.
        labels: ``(N)``.

    Returns:
        ``zero_gradient``: share of the images for which the gradient of the cross-entropy is 0 at every pixel;
        ``probability_is_one``: share of those whose largest probability is exactly 1 in the model's dtype.
    """
    with _frozen(model), torch.enable_grad():
        pixels = images.detach().clone().requires_grad_()
        logits = model(pixels)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), pixels)
    return {
        "zero_gradient": float((gradient.flatten(1) == 0).all(1).double().mean()),
        "probability_is_one": float((logits.softmax(1).amax(1) == 1).double().mean()),
    }


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients for parameters; afterwards every module and parameter is as before."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        with evaluating(model):
            yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
