"""All-gather of bytes, source by source. gloo's own passes everything around a ring; a message to each other rank is
twice as fast, and what has arrived can be used while the rest travels."""

from __future__ import annotations

from collections.abc import Iterator

import torch.distributed as dist
from torch import Tensor


def gather_one_by_one(received: Tensor, own: Tensor, group: dist.ProcessGroup) -> Iterator[int]:
    """Put every rank's `own` into `received`, in the order of the ranks of `group`; yields each rank that is there.

    The last one is yielded when one's own messages have left, too.
    """
    parts, rank, size = received.view(group.size(), own.numel()), group.rank(), group.size()
    sent, coming = [], []
    # Beginning with the next rank, so that not all write to the same; empty messages are not sent.
    for distance in range(1, size) if own.numel() else ():
        sent.append(dist.isend(own, group=group, group_dst=(rank + distance) % size))
        source = (rank - distance) % size
        coming.append((source, dist.irecv(parts[source], group=group, group_src=source)))
    parts[rank].copy_(own)
    arrived = rank
    for source, work in coming:
        yield arrived
        work.wait()
        arrived = source
    for work in sent:
        work.wait()
    yield arrived


def all_gather(received: Tensor, own: Tensor, group: dist.ProcessGroup) -> None:
    """Put every rank's `own` into `received`, in the order of the ranks of `group`."""
    if dist.get_backend(group) != "gloo":
        dist.all_gather_into_tensor(received, own, group=group)
        return
    for _rank in gather_one_by_one(received, own, group):
        pass
