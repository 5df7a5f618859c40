"""How long collectives take: rings and all-to-alls over two levels, several groups sharing a node's network cards."""

from __future__ import annotations

from tools.simulator.constants import Constants
from tools.simulator.job import Placement
from tools.simulator.machine import Cluster

# Latency of one step of a ring or of one send, inside a node and between nodes.
LOCAL_STEP_S, NETWORK_STEP_S = 3e-6, 15e-6


def line_rate(cluster: Cluster, constants: Constants) -> float:
    """Bytes/s out of a node that collectives reach where every group has one rank there. Over gloo, what the processes
    of a node do for a byte is not overlapped with the line: the times of both add up."""
    share = constants.tcp_efficiency if cluster.network == "tcp" else constants.nic_efficiency
    line = cluster.node_bytes_per_s * share
    if cluster.collectives != "gloo":
        return line
    return 1 / (1 / line + constants.gloo_host_ms_per_mb * 1e-9)


def ring_seconds(num_bytes: float, group: Placement, cluster: Cluster, constants: Constants) -> float:
    """A ring all-gather or reduce-scatter of a buffer of `num_bytes`, in all groups of a node at once.

    Every link of a ring of n ranks carries (n - 1)/n of the bytes; devices / local such rings leave a node.
    """
    if group.size == 1:
        return 0.0
    share = num_bytes * (group.size - 1) / group.size
    local = share / min(cluster.bus_bytes_per_s, cluster.rank_gb_per_s * 1e9)
    if group.nodes == 1:
        return local + (group.size - 1) * LOCAL_STEP_S
    rate = line_rate(cluster, constants)
    if group.local > 1 and cluster.nics < cluster.devices and cluster.network == "rdma":
        rate *= constants.shared_ring
    leaving = share * cluster.devices / group.local
    return max(leaving / rate, local) + (group.size - 1) * NETWORK_STEP_S


def gather_seconds(num_bytes: float, group: Placement, cluster: Cluster, constants: Constants) -> float:
    """The all-gather of compressed parameters: a ring on NCCL. On gloo every node's shards cross to each other node
    once, and ranks of a node share memory."""
    if cluster.collectives == "nccl" or group.nodes == 1:
        return ring_seconds(num_bytes, group, cluster, constants)
    crossing = num_bytes * group.local / group.size * (group.nodes - 1) * cluster.devices / group.local
    return crossing / line_rate(cluster, constants) + num_bytes / cluster.bus_bytes_per_s + NETWORK_STEP_S


def exchange_seconds(num_bytes: float, ranks: int, crossing: bool, cluster: Cluster, constants: Constants) -> float:
    """An all-to-all of `num_bytes` a rank among `ranks`, between nodes or in one; a node's devices send at once."""
    if ranks == 1 or num_bytes == 0:
        return 0.0
    share = num_bytes * (ranks - 1) / ranks
    local = share / min(cluster.bus_bytes_per_s, cluster.rank_gb_per_s * 1e9)
    if crossing:
        return max(share * cluster.devices / line_rate(cluster, constants), local) + (ranks - 1) * NETWORK_STEP_S
    return local + (ranks - 1) * LOCAL_STEP_S


def send_seconds(num_bytes: float, senders: float, crossing: bool, cluster: Cluster, constants: Constants) -> float:
    """Point to point, from `senders` ranks of a node at once."""
    if crossing:
        return num_bytes * senders / line_rate(cluster, constants) + NETWORK_STEP_S
    return num_bytes / cluster.bus_bytes_per_s + LOCAL_STEP_S
