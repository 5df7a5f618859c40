"""An all-to-all whose receives are posted before anything is sent.

gloo sends a message once its receiver has announced that it waits for it, and an announcement queues behind whatever
the receiver itself is sending. torch's all-to-all over gloo posts a rank's sends first: the ranks that come late send
all that they have before the others may begin, and a link that could work both ways at a time works one way after the
other (`tools/bench_exchange.py`). Here every announcement goes ahead of all data, and leaves as early as the caller
knows where the data is to lie: before it computes what it sends.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor


class AllToAll:
    """One exchange between the ranks of `group`: made, it expects `received`; then call `send`, then `wait`.

    received: flat, `splits[i]` elements from rank i. It is written to from now on; what stands in this rank's own place
    means nothing.
    """

    def __init__(self, received: Tensor, splits: Sequence[int], group: dist.ProcessGroup) -> None:
        self._received, self._splits, self._group = received, list(splits), group
        self._posts = dist.get_backend(group) == "gloo"
        self._works: list[dist.Work] = []
        if self._posts:
            sources = self._others(received.split(self._splits))
            self._works = [dist.irecv(part, group=group, group_src=rank) for rank, part in sources]

    def _others(self, parts: Sequence[Tensor]) -> list[tuple[int, Tensor]]:
        """The other ranks whose part has elements, with it: the next one first, so that not all write to the same."""
        own = self._group.rank()
        ranks = [*range(own + 1, len(parts)), *range(own)]
        return [(rank, parts[rank]) for rank in ranks if parts[rank].numel()]

    def send(self, sent: Tensor, splits: Sequence[int]) -> AllToAll:
        """Send `splits[i]` elements of the flat `sent` to rank i; those in this rank's own place stay there."""
        group, splits = self._group, list(splits)
        if not self._posts:
            work = dist.all_to_all_single(self._received, sent, self._splits, splits, group=group, async_op=True)
            self._works = [work]
            return self
        targets = self._others(sent.split(splits))
        self._works += [dist.isend(part, group=group, group_dst=rank) for rank, part in targets]
        return self

    def wait(self) -> None:
        """Return when all has arrived and left; on CUDA the current stream waits."""
        for work in self._works:
            work.wait()
