"""Seconds in which data-parallel groups reduce gradients and gather parameters, uncompressed or by SDP4Bit's hops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sdp4bit_patches.config import CommConfig
from tools.simulator.heterogeneous_network import Network

GRADIENT_BYTES = 4  # fp32, as stock megatron-core reduces them
PARAMETER_BYTES = 2


@dataclass(frozen=True)
class Flows:
    """Messages of one hop that are sent at once, by all groups: int [flows] each, and their bytes."""

    senders: np.ndarray
    receivers: np.ndarray
    num_bytes: np.ndarray

    def time(self, network: Network) -> float:
        """Seconds until the last has arrived."""
        return network.direct_time(self.senders, self.receivers, self.num_bytes)


def baseline_time(network: Network, groups: np.ndarray, parameters: np.ndarray) -> float:
    """fp32 gradients reduce-scattered and 16-bit parameters gathered around rings, as NCCL does; the slowest group.

    Args:
        groups: devices, int [groups, ranks]. parameters: of each group's part of the model, [groups].
    """
    num_bytes = parameters * (GRADIENT_BYTES + PARAMETER_BYTES)
    return float(network.ring_time(groups, num_bytes, passes=1).max())


def compressed_time(
    network: Network, groups: np.ndarray, parameters: np.ndarray, node: np.ndarray, config: CommConfig
) -> float:
    """The three hops of SDP4Bit one after the other: gradients inside nodes, between them, parameters to everybody.

    Args:
        node: int [devices], the node of every device; groups of unequal nodes, or of one device each, take one hop.
        config: bits and group sizes.
    """
    shards = parameters / groups.shape[1]
    hops = [_hops(group, shard, node, config) for group, shard in zip(groups, shards, strict=True)]
    return sum(_together([hop[index] for hop in hops]).time(network) for index in range(3))


def slow_sync_time(network: Network, groups: np.ndarray, parameters: np.ndarray) -> float:
    """DUO's exact second sync of the gradients alone."""
    return float(network.ring_time(groups, parameters * GRADIENT_BYTES, passes=1).max())


def _hops(group: np.ndarray, shard: float, node: np.ndarray, config: CommConfig) -> list[Flows]:
    """Gradients inside the node, gradients between nodes, parameters; of one group."""
    members = [group[node[group] == name] for name in dict.fromkeys(node[group].tolist())]
    elements = int(np.ceil(shard))
    weight_bytes = config.weight_format.num_bytes(elements)
    gather = _all_pairs([group], weight_bytes)
    inter_bytes = config.inter_format.num_bytes(elements)
    if len(members) == 1:
        return [_all_pairs(members, config.intra_format.num_bytes(elements)), _all_pairs([], 0), gather]
    if len({len(ranks) for ranks in members}) > 1:
        return [_all_pairs([], 0), _all_pairs([group], inter_bytes), gather]
    intra = _all_pairs(members, len(members) * config.intra_format.num_bytes(elements))
    return [intra, _all_pairs(list(np.array(members).T), inter_bytes), gather]


def _all_pairs(groups: list[np.ndarray], num_bytes: int) -> Flows:
    """A message of so many bytes from every member of a group to every other."""
    senders = [np.repeat(group, len(group)) for group in groups]
    receivers = [np.tile(group, len(group)) for group in groups]
    ends = np.array([np.concatenate([[], *part]) for part in (senders, receivers)], dtype=np.int64)
    ends = ends[:, ends[0] != ends[1]]
    return Flows(ends[0], ends[1], np.full(ends.shape[1], num_bytes))


def _together(flows: list[Flows]) -> Flows:
    parts = zip(*((flow.senders, flow.receivers, flow.num_bytes) for flow in flows), strict=True)
    return Flows(*(np.concatenate(part) for part in parts))
