"""Every option of a training on TU data sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.options import OptionSet, option

__all__ = ["DEFER_START", "LOSSES", "Options"]

LOSSES = ("encouraging", "cross-entropy")
# The last epoch without the bonus, counted from 0: published for two data sets, our choice for all others.
DEFER_START = {"PROTEINS": 25, "NCI1": 130}
DEFER_START_OF_OTHERS = 25
AS_PUBLISHED = -2
PUBLISHED = "-2: 25, for NCI1 130 (paper's code: 25 for PROTEINS, 130 for NCI1)"
WITHOUT_BONUS = {"loss": ("cross-entropy",)}


@dataclass(frozen=True, kw_only=True)
class Options(OptionSet):
    """What a run depends on beside its split.

    ``defer_start`` counts epochs from 0, as the paper's code does, but results count them from 1: in results, the bonus
    is on from epoch ``defer_start + 2``.

    Raises:
        OptionError: a value that is not allowed; the message names the option.
    """

    dataset: str = option(help="name of a TU data set: PROTEINS, NCI1, MUTAG, ...")
    root: str = option("data/TUDataset", "folder of data sets", outcome=False)
    use_node_attr: bool = option(False, "take node attributes as features beside the node labels")

    loss: str = option("encouraging", "training loss", LOSSES)
    log_end: float = option(
        0.5, "probability at which the bonus turns linear (paper's code: 0.5)", least=0, most=1, idle=WITHOUT_BONUS
    )
    defer_start: int = option(
        AS_PUBLISHED, f"last epoch without bonus, counted from 0; -1: none; {PUBLISHED}", least=-2, idle=WITHOUT_BONUS
    )

    hidden_size: int = option(128, "width of the GCN layers (paper's code: 128)", least=2, aliases=("hidden_channels",))
    num_layers: int = option(3, "GCN layers, each with its pooling (paper's code: 3)", least=1)
    ratio: float = option(0.5, "share of the nodes that a pooling keeps (paper's code: 0.5)", above=0, most=1)
    dropout: float = option(0.5, "dropout in the MLP (paper's code: 0.5)", least=0, below=1)

    epochs: int = option(1000, "most passes over the training graphs", least=1, aliases=("max_epochs",))
    patience: int = option(50, "epochs without a better validation accuracy that end a run (paper's code: 50)", least=1)
    batch_size: int = option(128, "graphs in a step (paper's code: 128)", least=1)
    lr: float = option(5e-4, "step size of Adam (paper's code: 5e-4)", above=0, aliases=("learning_rate",))
    weight_decay: float = option(1e-4, "weight decay of Adam (paper's code: 1e-4)", least=0)

    def __post_init__(self) -> None:
        if self.loss == "cross-entropy" and self.defer_start == self._published:
            # Results name this value in place of the default: given as --config, they can be trained without the bonus.
            object.__setattr__(self, "defer_start", AS_PUBLISHED)
        super().__post_init__()
        if self.loss != "encouraging":
            return
        if self.epochs < self.last_epoch_without_bonus + 2:
            raise OptionError(
                f"--loss encouraging: has no effect with --epochs {self.epochs}, as the bonus starts after epoch "
                f"{self.last_epoch_without_bonus}, counted from 0 (--defer-start)"
            )

    @property
    def last_epoch_without_bonus(self) -> int:
        """``defer_start``; where it is -2, the value for the data set."""
        if self.defer_start != AS_PUBLISHED:
            return self.defer_start
        return self._published

    @property
    def _published(self) -> int:
        return DEFER_START.get(self.dataset, DEFER_START_OF_OTHERS)

    def as_dict(self) -> dict[str, Any]:
        """Names and values; in place of a ``defer_start`` of -2 stands the epoch that it means."""
        resolved = {"defer_start": self.last_epoch_without_bonus} if self.loss == "encouraging" else {}
        return super().as_dict() | resolved
