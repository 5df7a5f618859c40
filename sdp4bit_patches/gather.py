"""All-gather of bytes, source by source. gloo's own passes everything around a ring; a message to each other rank is
twice as fast, and what has arrived can be used while the rest travels. Where nodes pair, a message crosses to each
other node once, to the rank in the sender's place, who lets the others of its node have it. Receives are posted before
sends, for the reason in `all_to_all`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch.distributed as dist
from torch import Tensor

from sdp4bit_patches.topology import Topology


def gather_by_node(received: Tensor, own: Tensor, topology: Topology) -> Iterator[int]:
    """Put every rank's `own` into `received`, in the order of the ranks; yields each rank whose message is there.

    Where the ranks of a node share memory, `received` is in it and `own` is this rank's part of `received`. When all
    is yielded, one's own messages have left, too.
    """
    if not own.numel():
        yield from range(topology.size)
    elif topology.shape == "two-level":
        yield from _across_nodes(received.view(topology.size, -1), own, topology)
    else:
        yield from _within_node(received.view(topology.size, -1), own, topology, range(topology.size))


def _across_nodes(parts: Tensor, own: Tensor, topology: Topology) -> Iterator[int]:
    """The messages of this rank's node, and then of each node as its message in this rank's place arrives.

    All ranks of a node go through the nodes in one order, which need not be that of the ranks in their places.
    """
    peers = [node[topology.local_rank] for node in topology.nodes]
    circle = [sorted(peers).index(peer) for peer in peers]
    node_of = dict(zip(peers, topology.nodes, strict=True))
    for rank in gather_one_by_one(parts, own, topology.inter_group, peers, circle):
        yield from _within_node(parts, parts[rank], topology, node_of[rank])


def _within_node(parts: Tensor, own: Tensor, topology: Topology, ranks: Sequence[int]) -> Iterator[int]:
    """The messages of `ranks`, of which each rank of this node has one, in its own place among them."""
    if topology.node_memory:
        topology.node_memory.written([own.numel()] * len(ranks)).wait()
        yield from ranks
    else:
        group = topology.flat_group if topology.intra_group is None else topology.intra_group
        yield from gather_one_by_one(parts, own, group, ranks, range(len(ranks)))


def gather_one_by_one(
    parts: Tensor, own: Tensor, group: dist.ProcessGroup, places: Sequence[int], circle: Sequence[int]
) -> Iterator[int]:
    """Put `own` of rank `circle[i]` of `group` into row `places[i]` of `parts`; yields each place that is filled.

    The last one is yielded when one's own messages have left, too.
    """
    position, size = circle.index(group.rank()), len(circle)
    # Beginning with the next rank in the circle, so that not all write to the same.
    targets = [circle[(position + distance) % size] for distance in range(1, size)]
    sources = [position - distance for distance in range(1, size)]
    coming = [(places[s], dist.irecv(parts[places[s]], group=group, group_src=circle[s])) for s in sources]
    sent = [dist.isend(own, group=group, group_dst=target) for target in targets]
    arrived = places[position]
    if parts[arrived].data_ptr() != own.data_ptr():
        parts[arrived].copy_(own)
    for place, work in coming:
        yield arrived
        work.wait()
        arrived = place
    for work in sent:
        work.wait()
    yield arrived


def all_gather(received: Tensor, own: Tensor, group: dist.ProcessGroup) -> None:
    """Put every rank's `own` into `received`, in the order of the ranks of `group`."""
    if dist.get_backend(group) != "gloo":
        dist.all_gather_into_tensor(received, own, group=group)
        return
    everybody = range(group.size())
    for _rank in gather_one_by_one(received.view(group.size(), -1), own, group, everybody, everybody):
        pass
