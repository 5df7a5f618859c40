"""DUO's second sync of a bucket: a reduce-scatter in fp32, or bf16 on the way, of gradients that were kept aside.

    1 keep          the bucket's gradients: where the ranks of a node share memory, in it; where they need not be
                    copied, as they are (`gradient_turns`)
    2 in the node   local rank l sums the rows of all ranks in place l, where they were kept or after an all-to-all
    3 between       all-to-all of the node's sums, summed over the nodes

Where nodes do not pair, one all-to-all over all ranks. Sums are in fp32 and in the same order as those of
`QuantizedReduceScatter` in its exact form, one's own elements last: the same bits. What a rank keeps for itself is
never rounded to bf16.
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
from sdp4bit_patches.gradient_turns import BucketTurns
from sdp4bit_patches.progress import Scratch
from sdp4bit_patches.topology import Topology


def keeps_shards_in_order(topology: Topology) -> bool:
    """Whether gradients are kept as they lie in the bucket. Where they are not, what one rank of the node gets of them
    would not lie together."""
    return topology.node_memory is not None or topology.shape != "two-level"


class ExactReduceScatter:
    """Keeps and sums a bucket of `num_elements` gradients over the ranks of a topology, in equal shards.

    channel: where it runs and keeps them, the CPU or the gradients' own device. All ranks of a node make theirs in the
    same order.
    turns: of a bucket whose gradients need not be copied.

    Raises:
        ValueError: `num_elements` does not split into equal shards.
    """

    def __init__(
        self, num_elements: int, topology: Topology, channel: torch.device, turns: BucketTurns | None = None
    ) -> None:
        self._topology, self.num_elements, self._turns = topology, num_elements, turns
        self._shard = topology.shard_size(num_elements)
        self._memory = topology.node_memory
        two_level = topology.shape == "two-level"
        self._group = topology.intra_group if two_level else topology.flat_group
        self._place = self._group.rank()
        everybody = [[shard] for shard in range(topology.size)]
        self._destinations = wire.two_level_destinations(topology.nodes) if two_level else everybody
        self._across = topology.inter_group if two_level else None
        in_order = keeps_shards_in_order(topology)
        self._order = list(range(topology.size)) if in_order else [*chain(*self._destinations)]
        # [ranks, elements]: of every rank of the node where they share memory, else this one's alone.
        self._kept = turns.left() if turns else self._allocate(channel)
        self._cache = None if turns else self._make_cache(channel)
        self.scratch_sizes = [wire.align(self._shard * num_bytes) for num_bytes in self._scratch_bytes()]

    def _allocate(self, channel: torch.device) -> Tensor:
        if self._memory:
            return self._memory.allocate(4 * self.num_elements).view(torch.float32)
        return torch.empty(1, self.num_elements, device=channel)

    def _make_cache(self, channel: torch.device) -> GradientCache:
        memory = host_memory(self._own_kept) if channel.type == "cpu" else self._own_kept
        return GradientCache(memory, self._order)

    @property
    def _own_kept(self) -> Tensor:
        return self._kept[self._place if self._memory else 0]

    def _scratch_bytes(self) -> list[int]:
        """Bytes an element of the shard in each part of the scratch: sent and received of each hop, and the sum of the
        node's other ranks. In fp32, the first hop sends what is kept as it is; its part is for bf16."""
        first = 0 if self._memory else self._topology.size
        second = len(self._destinations[0]) if self._across else 0
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
        """Put `gradients` [num_elements] aside, or leave them where they are; the run before has to be over."""
        if self._turns:
            self._kept = self._turns.left()
        else:
            self._cache.keep(gradients)

    def run(self, output: Tensor, dtype: torch.dtype, scratch: Scratch) -> None:
        """Sum what the ranks have kept, rounded to `dtype` where it is sent, into fp32 `output` [shard], which is not
        part of it."""
        if self._cache:
            self._cache.wait()
        parts = (part.view(torch.float32) for part in scratch.parts(self.scratch_sizes))
        sent, received, totals, arrived, neighbours = parts
        between = _Exchange(arrived, self._shard, dtype, self._across) if self._across else None
        rows = self._read_in_node() if self._memory else self._exchange_kept(sent, received, dtype)
        node = self._across.rank() if between else 0
        own = rows[self._place][node]
        sums = [row[node] for place, row in enumerate(rows) if place != self._place]
        if between:
            totals = totals.view(dtype)[: between.rows.numel()].view_as(between.rows)
            self._sum_for_others(rows, output, totals)
            neighbours = _sum_of(sums, neighbours[: self._shard])
            sums = list(between.run(totals.view(-1)))
            sums[node] = neighbours
        _sum_rows([*sums, own], output)
        if self._memory:
            self._memory.read().wait()

    def _read_in_node(self) -> list[list[Tensor]]:
        """By rank of the node, the shards that it has kept for this one."""
        row_bytes = 4 * self._shard * len(self._destinations[0])
        self._memory.written([row_bytes] * len(self._destinations)).wait()
        shards = self._destinations[self._place]
        return [[kept.view(-1, self._shard)[shard] for shard in shards] for kept in self._kept]

    def _exchange_kept(self, sent: Tensor, received: Tensor, dtype: torch.dtype) -> list[list[Tensor]]:
        """The same by an all-to-all. What this rank keeps for itself is not rounded."""
        kept = self._own_kept.view(len(self._destinations), -1)
        exchange = _Exchange(received, kept.shape[1], dtype, self._group)
        if dtype == torch.float32:
            sent = kept
        else:
            sent = sent.view(dtype)[: kept.numel()].view_as(kept)
            for place, row in enumerate(kept):
                if place != self._place:
                    sent[place].copy_(row)
        rows = list(exchange.run(sent.view(-1)))
        rows[self._place] = kept[self._place]
        return [list(row.view(-1, self._shard)) for row in rows]

    def _sum_for_others(self, rows: Sequence[Sequence[Tensor]], spare: Tensor, totals: Tensor) -> None:
        """Sum this node's rows for every other node, into `totals`. spare: fp32[shard]."""
        for node, target in enumerate(totals):
            if node == self._across.rank():
                continue
            total = target if target.dtype == torch.float32 else spare
            _sum_rows([row[node] for row in rows], total)
            if total is spare:
                target.copy_(spare)


class _Exchange:
    """A row of `num_elements` from every rank of `group` to every other one; it is made before what is sent.

    rows: [ranks, num_elements], what the others send, once `run` returns. This rank's own row means nothing.
    """

    def __init__(self, received: Tensor, num_elements: int, dtype: torch.dtype, group: dist.ProcessGroup) -> None:
        self._splits = [num_elements] * group.size()
        flat = received.view(dtype)[: sum(self._splits)]
        self.rows = flat.view(-1, num_elements)
        self._all_to_all = AllToAll(flat, self._splits, group)

    def run(self, sent: Tensor) -> Tensor:
        """Send the rows of `sent`, flat, and wait for those of the others."""
        self._all_to_all.send(sent, self._splits).wait()
        return self.rows


def _sum_of(rows: Sequence[Tensor], space: Tensor) -> Tensor:
    """Their sum: in `space`, or where a single one stands."""
    if len(rows) == 1:
        return rows[0]
    _sum_rows(rows, space)
    return space


def _sum_rows(rows: Sequence[Tensor], output: Tensor) -> None:
    """Add up `rows` in their order, in fp32."""
    first, *rest = rows
    total = first if rest and first.dtype == torch.float32 else output.copy_(first)
    for row in rest:
        total = torch.add(total, row, out=output)
