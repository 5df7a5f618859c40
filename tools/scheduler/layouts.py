"""Which device holds which part of the model: [stages, replicas, tensor ranks], and where such layouts come from."""

from __future__ import annotations

import numpy as np

from tools.scheduler.cost_model import CostModel
from tools.scheduler.starts import structured_starts


def megatron_layout(num_devices: int, stages: int, tensor: int = 1) -> np.ndarray:
    """Megatron's own order, int [stages, replicas, tensor]: tensor ranks are neighbours, then replicas, then stages.

    Raises:
        ValueError: the devices do not divide into the degrees.
    """
    if num_devices % (stages * tensor):
        raise ValueError(
            f"{num_devices} devices do not divide into {stages} stages x {tensor} tensor ranks; choose other degrees"
        )
    return np.arange(num_devices).reshape(stages, -1, tensor)


def random_layout(num_devices: int, stages: int, generator: np.random.Generator) -> np.ndarray:
    """Any device anywhere, int [stages, replicas, 1]."""
    return generator.permutation(num_devices).reshape(stages, -1, 1)


def pipelines_in_a_row(num_devices: int, stages: int, tensor: int = 1) -> np.ndarray:
    """Neighbouring devices form a pipeline, int [stages, replicas, tensor]."""
    return np.arange(num_devices).reshape(-1, stages, tensor).transpose(1, 0, 2)


def tensor_groups(host: np.ndarray, tensor: int) -> np.ndarray | None:
    """Devices cut into groups of ``tensor`` that never leave a host, int [groups, tensor]; None where that fails."""
    counts = np.bincount(host)
    if (counts % tensor).any():
        return None
    return np.arange(len(host)).reshape(-1, tensor)


def candidate_layouts(
    delay: np.ndarray,
    bandwidth: np.ndarray,
    groups: np.ndarray,
    stages: int,
    activation_bytes: float,
    sync_bytes: float,
) -> list[np.ndarray]:
    """Layouts along the network's clusters, each with its best order of stages and pipelines; Megatron's first.

    Args:
        delay, bandwidth: [devices, devices], seconds and bit/s.
        groups: tensor groups, int [units, tensor]; the first device of each stands for it.
        stages: the units divide into them.
        activation_bytes, sync_bytes: for weighing links, as :class:`CostModel` takes them.

    Returns:
        int [stages, replicas, tensor] each.
    """
    units = np.arange(len(groups))
    plain = [units.reshape(stages, -1), units.reshape(-1, stages).T]
    first = groups[:, 0]
    model = CostModel(
        delay[np.ix_(first, first)], bandwidth[np.ix_(first, first)], activation_bytes, sync_bytes, stages
    )
    for labels in structured_starts(model.activation_time, stages):
        plain.append(model.arrange(np.argsort(labels, kind="stable").reshape(stages, -1)))
    return [groups[layout] for layout in plain]
