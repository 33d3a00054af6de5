"""How a graph's nodes are split: anew, or as its own masks say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.options import OptionSet, option
from graph.renode.data import is_file
from graph.renode.npz import MASKS

__all__ = ["KINDS", "SplitKind"]

KINDS = ("compat", "random", "public")


@dataclass(frozen=True, kw_only=True)
class SplitKind(OptionSet):
    """How its nodes are split."""

    split_kind: str = option(
        "",
        "how nodes are split; compat: as released, validating on the lowest ids left of each class; random: validation "
        "nodes at random, too; public: the masks of the graph (default: compat; to be given for a file that has masks)",
        ("", *KINDS),
        aliases=("split",),
    )

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Names and defaults; results that lack the kind are of the released splits."""
        return super().defaults() | {"split_kind": KINDS[0]}

    def with_kind(self, dataset: str, masks: Any) -> Self:
        """The options with the kind that an empty one stands for.

        Args:
            dataset: its ``--dataset``.
            masks: its masks by their names: a mapping, or a ``Data``.

        Raises:
            OptionError: no kind, and a file with masks: they are the user's own, and not drawn anew unasked.
        """
        own = [name for name in MASKS if masks.get(name) is not None]
        if not self.split_kind and own and is_file(dataset):
            raise OptionError(
                f"--split-kind: {dataset} has its own {', '.join(own)}: give --split-kind public to use "
                f"{'them' if len(own) > 1 else 'it'}, or compat or random to draw another split"
            )
        return replace(self, split_kind=self.split_kind or KINDS[0])
