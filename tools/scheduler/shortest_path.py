"""The shortest path through all nodes, both ends free, exactly: in which order stages follow each other."""

from __future__ import annotations

from functools import cache

import numpy as np

MOST_NODES = 16  # the table over subsets has 2^n rows


def shortest_open_path(weights: np.ndarray) -> tuple[float, list[int]]:
    """Dynamic programming over subsets, all subsets of one size at once.

    Args:
        weights: [n, n], symmetric; the diagonal is not read.

    Returns:
        The length of the path, and its nodes in order.

    Raises:
        ValueError: more nodes than the table of subsets can hold.
    """
    size = len(weights)
    if size > MOST_NODES:
        raise ValueError(
            f"{size} stages: their order is searched exactly, which takes {MOST_NODES} at most; lower --pp"
        )
    # length[subset, last]: of the shortest path through the subset (a bit mask) that ends in `last`.
    length = np.full((1 << size, size), np.inf)
    previous = np.zeros((1 << size, size), dtype=np.int64)
    length[1 << np.arange(size), np.arange(size)] = 0.0
    for subsets, row, node in _extensions(size):
        through = length[subsets][:, :, None] + weights
        shortest = through.argmin(axis=1)
        extended = subsets[row] | (1 << node)
        length[extended, node] = through[row, shortest[row, node], node]
        previous[extended, node] = shortest[row, node]
    return _walk_back(length, previous)


@cache
def _extensions(size: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each number of nodes below ``size``: its subsets, and (index of subset, node outside) of every extension."""
    subsets = np.arange(1, 1 << size)
    counts = np.array([int(subset).bit_count() for subset in subsets])
    levels = []
    for count in range(1, size):
        level = subsets[counts == count]
        row, node = np.nonzero((level[:, None] >> np.arange(size) & 1) == 0)
        levels.append((level, row, node))
    return levels


def _walk_back(length: np.ndarray, previous: np.ndarray) -> tuple[float, list[int]]:
    subset = len(length) - 1
    node = int(length[subset].argmin())
    total, path = float(length[subset, node]), [node]
    while subset != 1 << node:
        subset, node = subset ^ (1 << node), int(previous[subset, node])
        path.append(node)
    return total, path[::-1]
