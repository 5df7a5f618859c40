"""Partitions that follow the network's own clusters: where a search may start."""

from __future__ import annotations

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

ROUNDING = 1e-9  # equal links have equal heights up to the order in which their averages were summed


def structured_starts(link_time: np.ndarray, num_stages: int) -> list[np.ndarray]:
    """For every height at which the network falls into clusters, two partitions, int [devices], group of each device.

    In one the groups keep inside clusters, so that gradients stay on fast links; in the other the pipelines do.

    Args:
        link_time: [devices, devices], symmetric, seconds to send something; the diagonal is not read.
    """
    if len(link_time) == 1:
        return [np.zeros(1, dtype=np.int64)]
    distance = link_time.copy()
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), method="average")
    starts: dict[bytes, np.ndarray] = {}
    for height in np.unique(tree[:, 2].round(12)):
        clusters = fcluster(tree, height * (1 + ROUNDING) + ROUNDING, criterion="distance")
        for labels in (_inside_groups(clusters, num_stages), _inside_pipelines(clusters, num_stages)):
            starts[labels.tobytes()] = labels
    return list(starts.values())


def _inside_groups(clusters: np.ndarray, num_stages: int) -> np.ndarray:
    bins = _pack(clusters, num_stages)
    labels = np.empty(len(clusters), dtype=np.int64)
    for group, devices in enumerate(bins):
        labels[devices] = group
    return labels


def _inside_pipelines(clusters: np.ndarray, num_stages: int) -> np.ndarray:
    """The k-th device of every bin goes to stage k; within a bin the largest pieces of clusters come first."""
    bins = _pack(clusters, len(clusters) // num_stages)
    labels = np.empty(len(clusters), dtype=np.int64)
    for devices in bins:
        labels[devices] = np.arange(num_stages)
    return labels


def _pack(clusters: np.ndarray, num_bins: int) -> list[list[int]]:
    """Devices in bins of equal size, clusters kept whole where they fit: largest first, into the emptiest bin."""
    capacity = len(clusters) // num_bins
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    numbers, counts = np.unique(clusters, return_counts=True)
    for cluster in numbers[np.argsort(-counts, kind="stable")]:
        rest = np.flatnonzero(clusters == cluster).tolist()
        while rest:
            emptiest = min(bins, key=len)
            room = capacity - len(emptiest)
            emptiest += rest[:room]
            rest = rest[room:]
    return bins
