"""Two experiments compared by the runs that both have."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

__all__ = ["paired_differences"]


def paired_differences(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Second minus first of each run that both have.

    Args:
        first, second: a figure by the name of its run; at least one name in both.

    Returns:
        How many ``runs`` both have; the means ``first`` and ``second``; the mean ``difference`` and its population
        standard deviation ``std``; and how often the second was ``better``, ``equal`` and ``worse``.
    """
    shared = [name for name in first if name in second]
    differences = [second[name] - first[name] for name in shared]
    return {
        "runs": len(shared),
        "first": statistics.fmean(first[name] for name in shared),
        "second": statistics.fmean(second[name] for name in shared),
        "difference": statistics.fmean(differences),
        "std": statistics.pstdev(differences),
        "better": sum(difference > 0 for difference in differences),
        "equal": sum(difference == 0 for difference in differences),
        "worse": sum(difference < 0 for difference in differences),
    }
