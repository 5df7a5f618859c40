"""DUO's second sync of a bucket: a reduce-scatter in fp32, or bf16 on the way, of gradients that were kept aside.

    1 keep          the bucket's gradients, one row a destination, this rank's own last; where the ranks of a node
                    share memory, in it
    2 in the node   local rank l sums the rows of all ranks in place l, where they were kept or after an all-to-all
    3 between       all-to-all of the node's sums, summed over the nodes

Where nodes do not pair, one all-to-all over all ranks. Sums are in fp32 and in the same order as those of
`QuantizedReduceScatter` in its exact form: the same bits. What a rank keeps for itself is never rounded to bf16.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
import torch.distributed as dist
from torch import Tensor

from sdp4bit_patches import wire
from sdp4bit_patches.all_to_all import AllToAll
from sdp4bit_patches.collectives import LinkBytes, exact_bytes
from sdp4bit_patches.gradient_cache import GradientCache, host_memory
from sdp4bit_patches.progress import Scratch
from sdp4bit_patches.topology import Topology


class ExactReduceScatter:
    """Keeps and sums a bucket of `num_elements` gradients over the ranks of a topology, in equal shards.

    channel: where it runs and keeps them, the CPU or the gradients' own device. All ranks of a node make theirs in the
    same order.

    Raises:
        ValueError: `num_elements` does not split into equal shards.
    """

    def __init__(self, num_elements: int, topology: Topology, channel: torch.device) -> None:
        self._topology, self.num_elements = topology, num_elements
        self._shard = topology.shard_size(num_elements)
        self._memory = topology.node_memory
        two_level = topology.shape == "two-level"
        self._group = topology.intra_group if two_level else topology.flat_group
        self._place = self._group.rank()
        everybody = [[shard] for shard in range(topology.size)]
        self._destinations = wire.two_level_destinations(topology.nodes) if two_level else everybody
        self._across = topology.inter_group if two_level else None
        self._cache = GradientCache(self._kept_memory(channel), self._order())
        self.scratch_sizes = [wire.align(self._shard * num_bytes) for num_bytes in self._scratch_bytes()]

    def _kept_memory(self, channel: torch.device) -> Tensor:
        """fp32[destinations, elements for one], this rank's; `_kept` is that of all ranks that it can read."""
        shape = len(self._destinations), -1
        if self._memory:
            shared = self._memory.allocate(4 * self.num_elements).view(torch.float32)
            self._kept = [own.view(shape) for own in shared]
            return host_memory(self._kept[self._place])
        values = torch.empty(self.num_elements, device=channel)
        own = host_memory(values).view(shape) if channel.type == "cpu" else values.view(shape)
        self._kept = {self._place: own}
        return own

    def _order(self) -> list[int]:
        """The shards as they are kept."""
        others = [shards for place, shards in enumerate(self._destinations) if place != self._place]
        return [*chain(*others), *self._destinations[self._place]]

    def _scratch_bytes(self) -> list[int]:
        """Bytes an element of the shard in each part of the scratch: sent and received of each hop, and the node's own
        sum. In fp32, the first hop sends what is kept as it is; its part is for bf16."""
        per_row = len(self._destinations[0])
        first = 0 if self._memory else (len(self._destinations) - 1) * per_row
        second = per_row - 1 if self._across else 0
        return [2 * first, 4 * first, 4 * second, 4 * second, 4 if self._across else 0]

    @property
    def link_bytes(self) -> LinkBytes:
        """What one run in fp32 sends to other ranks; what they read of shared memory counts as sent."""
        if not self._across:
            return exact_bytes(self._topology, self.num_elements, 4)
        row = 4 * self._shard
        nodes = len(self._topology.nodes)
        return LinkBytes((len(self._destinations) - 1) * nodes * row, (nodes - 1) * row)

    def keep(self, gradients: Tensor) -> None:
        """Put `gradients` [num_elements] aside; the run before has to be over."""
        self._cache.keep(gradients)

    def run(self, output: Tensor, dtype: torch.dtype, scratch: Scratch) -> None:
        """Sum what the ranks have kept, rounded to `dtype` where it is sent, into fp32 `output` [shard]."""
        self._cache.wait()
        parts = (part.view(torch.float32) for part in scratch.parts(self.scratch_sizes))
        sent, received, totals, arrived, own = parts
        between = _Exchange(arrived, self._shard, dtype, self._across) if self._across else None
        rows = self._read_in_node() if self._memory else self._exchange_kept(sent, received, dtype)
        if between:
            own = own[: self._shard]
            totals = totals.view(dtype)[: between.rows.numel()]
            self._sum_in_node(rows, output, totals.view_as(between.rows), own)
        else:
            _sum_rows(rows, output)
        read = self._memory.read() if self._memory else None
        if between:
            place, sums = self._across.rank(), between.run(totals)
            _sum_rows([*sums[:place], own, *sums[place:]], output)
        if read:
            read.wait()

    def _read_in_node(self) -> list[Tensor]:
        """The rows that the ranks of this node have kept for this one."""
        row_bytes = 4 * self._shard * len(self._destinations[0])
        self._memory.written([row_bytes] * len(self._destinations)).wait()
        return [kept[_row_of(self._place, rank)] for rank, kept in enumerate(self._kept)]

    def _exchange_kept(self, sent: Tensor, received: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """The same by an all-to-all."""
        *_, own = kept = self._kept[self._place]
        exchange = _Exchange(received, own.numel(), dtype, self._group)
        if dtype == torch.float32:
            sent = kept[:-1].reshape(-1)
        else:
            sent = sent.view(dtype)[: (len(kept) - 1) * own.numel()].copy_(kept[:-1].view(-1))
        rows = exchange.run(sent)
        return [*rows[: self._place], own, *rows[self._place :]]

    def _sum_in_node(self, rows: Sequence[Tensor], spare: Tensor, totals: Tensor, own: Tensor) -> None:
        """Sum this node's rows for every other node, into `totals`, and for this one. spare: fp32[shard]."""
        targets = list(totals)
        targets.insert(self._across.rank(), own)
        for node, target in enumerate(targets):
            total = target if target.dtype == torch.float32 else spare
            _sum_rows([row.view(-1, self._shard)[node] for row in rows], total)
            if total is spare:
                target.copy_(spare)


class _Exchange:
    """A row of `num_elements` from every rank of `group` to every other one; it is made before what is sent.

    rows: what the others send, ascending, once `run` returns.
    """

    def __init__(self, received: Tensor, num_elements: int, dtype: torch.dtype, group: dist.ProcessGroup) -> None:
        self._splits = [num_elements] * group.size()
        self._splits[group.rank()] = 0
        flat = received.view(dtype)[: sum(self._splits)]
        self.rows = flat.view(-1, num_elements)
        self._all_to_all = AllToAll(flat, self._splits, group)

    def run(self, sent: Tensor) -> Tensor:
        """Send the rows of `sent`, flat, and wait for those of the others."""
        self._all_to_all.send(sent, self._splits).wait()
        return self.rows


def _row_of(place: int, rank: int) -> int:
    """The row of destination `place` in what `rank` keeps, whose own row is the last."""
    return -1 if place == rank else place - (place > rank)


def _sum_rows(rows: Sequence[Tensor], output: Tensor) -> None:
    """Add up `rows` in their order, in fp32."""
    first, *rest = rows
    total = first if rest and first.dtype == torch.float32 else output.copy_(first)
    for row in rest:
        total = torch.add(total, row, out=output)
