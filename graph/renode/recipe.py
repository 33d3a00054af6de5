"""How to train: step sizes, and when a training ends. Defaults are those of the released code, or say otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fairseq_ext.training.options import OptionSet, option

__all__ = ["REDUCTIONS", "LargeRecipe", "Recipe"]

REDUCTIONS = ("sum", "mean")


@dataclass(frozen=True, kw_only=True)
class Recipe(OptionSet):
    r"""How to train on the whole graph.

    The rate of epoch :math:`t` is :math:`\max(\text{lr}\,\text{decay}^{t - t_0}, \text{min})` after epoch :math:`t_0`,
    and lr up to it.
    """

    lr: float = option(0.0075, "learning rate of Adam up to --lr-decay-epoch (released: 0.0075)", above=0)
    lr_decay: float = option(0.95, "factor of the learning rate at every later epoch (released: 0.95)", above=0, most=1)
    lr_decay_epoch: int = option(20, "last epoch at the full learning rate (released: 20)", least=0)
    min_lr: float = option(1e-4, "lowest learning rate (released: 1e-4)", least=0)
    weight_decay: float = option(0.0, "weight decay of Adam (released: 0)", least=0)
    epochs: int = option(200, "most epochs of a training (released: 200)", least=1)
    least_epochs: int = option(40, "first epochs, in which no training stops early (released: 40)", least=0)
    patience: int = option(
        20, "a training ends after more epochs than this without a better validation F1 (released: 20)", least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        default = self.defaults()
        for name in ("lr_decay", "lr_decay_epoch", "min_lr"):
            if self._rates() == self._rates(**{name: default[name]}):
                self.refuse_idle(f"on the learning rate of any of {self.epochs} epochs", name)
        if self._first_stop() == self._first_stop(least_epochs=default["least_epochs"]):
            self.refuse_idle(f"beside --patience {self.patience} and --epochs {self.epochs}", "least_epochs")
        if self._first_stop() == self._first_stop(patience=default["patience"]) == self.epochs:
            self.refuse_idle(f"where no training stops before --epochs {self.epochs}", "patience")

    def lr_factor(self, steps: int) -> float:
        """The factor of ``lr`` after ``steps`` epochs."""
        return self._factor(steps, self.lr_decay, self.lr_decay_epoch, self.min_lr)

    def _factor(self, steps: int, lr_decay: float, lr_decay_epoch: int, min_lr: float) -> float:
        late = steps + 1 - lr_decay_epoch
        return max(lr_decay**late, min(min_lr / self.lr, 1.0)) if late > 0 else 1.0

    def _rates(self, **changed: Any) -> list[float]:
        """The factors in the few epochs that tell any two schedules apart, with some options changed."""
        decay = {name: getattr(self, name) for name in ("lr_decay", "lr_decay_epoch", "min_lr")} | changed
        telling = (self.lr_decay_epoch, self.defaults()["lr_decay_epoch"], self.epochs - 1)
        return [self._factor(steps, **decay) for steps in telling if steps < self.epochs]

    def _first_stop(self, **changed: int) -> int:
        """The first epoch at which a training can stop, with some options changed."""
        least, patience = (changed.get(name, getattr(self, name)) for name in ("least_epochs", "patience"))
        return min(self.epochs, max(least + 1, patience + 2))


@dataclass(frozen=True, kw_only=True)
class LargeRecipe(OptionSet):
    """How to train PPRGo."""

    reduction: str = option("sum", "reduction of a batch's losses (released: sum)", REDUCTIONS)
    lr: float = option(5e-3, "learning rate of Adam (released: 0.005)", above=0)
    weight_decay: float = option(1e-4, "weight decay of Adam (released: 1e-4)", least=0)
    epochs: int = option(800, "most epochs of a training (released: 800)", least=1)
    patience: int = option(
        100,
        "epochs without a better validation F1 that end a training; 0: no validation, the last counts (released: 0)",
        least=0,
    )
    validate_every: int = option(1, "epochs between validations and checkpoints", least=1, aliases=("interval",))
