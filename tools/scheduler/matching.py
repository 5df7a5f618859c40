"""The perfect matching whose heaviest edge is lightest, exactly: who talks to whom between two stages."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment


def bottleneck_matching(weights: np.ndarray) -> tuple[float, np.ndarray]:
    """Search the edge weights for the smallest below which a perfect matching is left.

    Args:
        weights: [n, n], edge from row to column.

    Returns:
        The weight of the matching's heaviest edge, and the column of each row, int [n].
    """
    candidates = np.unique(weights)
    # A perfect matching needs an edge of every row and of every column.
    needed = max(weights.min(axis=1).max(), weights.min(axis=0).max())
    low, high = int(np.searchsorted(candidates, needed)), len(candidates) - 1
    probe = low
    while True:
        matching = _matching_up_to(weights, candidates[probe])
        if matching is None:
            low = probe + 1
        else:
            high, best = probe, matching
        if low >= high and matching is not None:
            return float(candidates[high]), best
        probe = (low + high) // 2


def _matching_up_to(weights: np.ndarray, heaviest: float) -> np.ndarray | None:
    """A perfect matching of edges no heavier than ``heaviest``, or None."""
    too_heavy = weights > heaviest
    rows, columns = linear_sum_assignment(too_heavy)
    return None if too_heavy[rows, columns].any() else columns
