"""Two experiments compared by the runs that both have."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

__all__ = ["paired_differences"]


def paired_differences(
    first: Mapping[str, float], second: Mapping[str, float], lower_is_better: bool | None = False
) -> dict[str, float]:
    """Second minus first of each run that both have.

    Args:
        first, second: a figure by the name of its run; at least one name in both.
        lower_is_better: of the figure, such as of
            :func:`~fairseq_ext.training.directions.lower_is_better`; None: neither. Default: False.

    Returns:
        How many ``runs`` both have; the means ``first`` and ``second``; the mean ``difference`` and its population
        standard deviation ``std``; and how often the second was ``better``, ``equal`` and ``worse``, or ``higher``,
        ``equal`` and ``lower`` where neither is better.
    """
    shared = [name for name in first if name in second]
    differences = [second[name] - first[name] for name in shared]
    higher, lower = ("higher", "lower") if lower_is_better is None else ("better", "worse")
    if lower_is_better:
        higher, lower = lower, higher
    counts = {
        higher: sum(difference > 0 for difference in differences),
        "equal": sum(difference == 0 for difference in differences),
        lower: sum(difference < 0 for difference in differences),
    }
    return {
        "runs": len(shared),
        "first": statistics.fmean(first[name] for name in shared),
        "second": statistics.fmean(second[name] for name in shared),
        "difference": statistics.fmean(differences),
        "std": statistics.pstdev(differences),
        **(dict(reversed(counts.items())) if lower_is_better else counts),
    }
