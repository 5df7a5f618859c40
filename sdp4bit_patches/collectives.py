"""The two collectives: gradients by a quantized reduce-scatter, parameters by a quantized all-gather.

A bucket's collective is planned once (layouts, groups, scratch sizes) and started every step. The reduce-scatter has
two hops where nodes pair, and runs chunk by chunk, so that one chunk crosses between the nodes while the next is
exchanged inside them:

    1 quantize                     what is for other ranks of the node, in the order of the destinations
    2 all-to-all                   inside the node: local rank l collects the shards of all ranks in place l; through
                                   memory that the node's ranks share, where they do
    3 dequantize_reduce_quantize   for the other nodes: sum over the node, never leaving the Hadamard domain
    4 all-to-all                   between the nodes
    5 dequantize_reduce            sum over the nodes, inverse Hadamard, and one's own elements

What a rank contributes to its own sums, and a node to its own, does not travel and is not quantized: it is added as it
is, to what goes to another node in its place among the others, to the result last of all.

Elements that travel exactly ride in the same payload as a second stream of 32-bit messages, so a hop stays one
collective. Sums run over the ranks of a node, then over the ranks in one place on every node, both in ascending
order: the same bits every time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor

from sdp4bit_patches import codec, wire
from sdp4bit_patches.all_to_all import AllToAll
from sdp4bit_patches.exact_slices import ExactSlices
from sdp4bit_patches.gather import gather_by_node
from sdp4bit_patches.node_memory import Arrival, NodeMemory
from sdp4bit_patches.progress import Scratch
from sdp4bit_patches.reference import NodeSum, Own
from sdp4bit_patches.topology import Topology
from sdp4bit_patches.wire import MessageFormat, StochasticRounding, Stream

# Exact gradients: the identity codec, in its smallest groups.
EXACT_FORMAT = MessageFormat(bits=32, group_size=wire.MIN_GROUP_SIZE)

# Rounding of one message, by its format and hop.
Rounding = Callable[[MessageFormat, int], StochasticRounding | None]


def round_to_nearest(_format: MessageFormat, _hop: int) -> None:
    """A `Rounding` that is none."""


@dataclass(frozen=True)
class LinkBytes:
    """Bytes that this rank sends to other ranks, by where they are. What it keeps for itself counts nowhere."""

    intra: int = 0
    inter: int = 0

    def __add__(self, other: LinkBytes) -> LinkBytes:
        return LinkBytes(self.intra + other.intra, self.inter + other.inter)


class _Hop:
    """One level's all-to-alls, a chunk at a time: what this rank sends, and what it collects from each source.

    place: this rank's among destinations and sources; there it writes and collects nothing.
    memory: what the ranks of `group` share; they exchange through it, and else by messages.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        destinations: Sequence[Sequence[int]],
        place: int,
        group: dist.ProcessGroup,
        device: torch.device,
        memory: NodeMemory | None = None,
    ) -> None:
        self.group, self.place = group, place
        self.sent, self.received, self.splits = [], [], []
        for chunk in range(len(streams[0].pieces)):
            alone = [Stream(stream.format, [stream.pieces[chunk]]) for stream in streams]
            exchange = wire.plan_exchange(alone, destinations, sender=place)
            self.splits.append(exchange.splits[0])
            self.sent.append([codec.prepare(layout, device) for layout in exchange.layouts])
            self.received.append(wire.plan_exchange(alone, [destinations[place]]).layouts)
        self._sent_bytes = [sum(row) for row in self.splits]
        self._memory = memory if any(self._sent_bytes) else None
        self.scratch_sizes = []
        if self._memory:
            self._memory.plan(len(destinations) * sum(self._sent_bytes))
        else:
            self.scratch_sizes = self._sent_bytes + [row[place] * len(row) for row in self.splits]

    def bytes_to(self, destination: int) -> int:
        """What one destination gets, in all chunks."""
        return sum(row[destination] for row in self.splits)

    def buffers(self, scratch: Iterator[Tensor]) -> _HopBuffers:
        """Where messages lie in this run; `scratch` has the parts of `scratch_sizes`. Those of others may arrive."""
        if self._memory:
            return self._shared_buffers()
        send = [next(scratch) for _ in self.splits]
        received = [next(scratch) for _ in self.splits]
        rows = [flat.view(len(row), row[self.place]) for flat, row in zip(received, self.splits, strict=True)]
        expected = [
            AllToAll(flat, [row[self.place]] * len(row), self.group) if any(row) else None
            for flat, row in zip(received, self.splits, strict=True)
        ]
        return _HopBuffers(send, rows, expected)

    def _shared_buffers(self) -> _HopBuffers:
        """Every rank writes its chunks one after the other; what is for this rank is read where it was written."""
        num_sources, sent_bytes = len(self.splits[0]), self._sent_bytes
        ranks = self._memory.half(num_sources * sum(sent_bytes)).view(num_sources, -1).split(sent_bytes, dim=1)
        send = [chunk[self.place] for chunk in ranks]
        return _HopBuffers(
            send, [chunk.split(row, 1)[self.place] for chunk, row in zip(ranks, self.splits, strict=True)]
        )

    def start(self, chunk: int, buffers: _HopBuffers) -> AllToAll | Arrival | None:
        """Exchange a chunk; None where it is empty on all ranks."""
        row = self.splits[chunk]
        if not any(row):
            return None
        if self._memory:
            return self._memory.written(row)
        return buffers.expected[chunk].send(buffers.send[chunk], row)

    def finish(self, chunk: int, work: AllToAll | Arrival | None, buffers: _HopBuffers) -> Tensor:
        """Wait for a chunk: uint8[sources, bytes]."""
        if work is not None:
            work.wait()
        return buffers.rows[chunk]


@dataclass(frozen=True)
class _HopBuffers:
    """By chunk, what this rank sends, uint8[bytes], and what it collects, uint8[sources, bytes]; the exchanges that
    bring it, where ranks do not share memory."""

    send: Sequence[Tensor]
    rows: Sequence[Tensor]
    expected: Sequence[AllToAll | None] = ()


class QuantizedReduceScatter:
    """Reduce-scatters buckets of `num_elements` elements over the ranks of a topology, in equal shards.

    intra_format, inter_format: of the hops inside and between nodes. With one level the hop has that level's format;
    uneven nodes take one hop over all ranks in the format between nodes.
    exact: elements that travel in fp32.
    num_chunks: of the two-level schedule; a single hop has one.

    Raises:
        ValueError: `num_elements` does not split into equal shards, or the formats do not fit each other.
    """

    def __init__(
        self,
        num_elements: int,
        topology: Topology,
        intra_format: MessageFormat,
        inter_format: MessageFormat,
        device: torch.device,
        exact: ExactSlices | None = None,
        num_chunks: int = 1,
    ) -> None:
        self.topology, self.exact = topology, exact if exact and exact.num_elements else None
        self.num_elements, self.shard_size = num_elements, topology.shard_size(num_elements)
        two_level = topology.shape == "two-level"
        self.formats = (
            [intra_format, inter_format] if two_level else [_only_format(topology, intra_format, inter_format)]
        )
        self._pieces = self._split(num_chunks if two_level else 1)
        self._hops = self._plan_two_hops(device) if two_level else [self._plan_one_hop(device)]
        last = self._hops[-1]
        self._outputs = [self._of_own_shard(row, device) for row in last.received]
        if two_level:
            # What a node's ranks have for this one: for other nodes, and for its own shard.
            collected = self._hops[0].received
            self._forwarded = [
                [codec.prepare(layout.without(last.place), device) for layout in row] for row in collected
            ]
            self._kept = [self._of_own_shard([layout.only(last.place) for layout in row], device) for row in collected]
        self.scratch_sizes = [size for hop in self._hops for size in hop.scratch_sizes]
        if self.exact:
            self._compact = torch.empty(self.exact.num_elements, dtype=torch.float32, device=device)
            self._own_exact = self.exact.within_shard(topology.rank)
            self._exact_sum = torch.empty(len(self._own_exact), dtype=torch.float32, device=device)

    def _split(self, num_chunks: int) -> list[list[list[wire.Piece]]]:
        """Pieces as [stream][chunk][shard]; exact elements are in the first chunk."""
        multiple = math.lcm(*(message_format.group_size for message_format in self.formats))
        pieces = [wire.split_shards([self.shard_size] * self.topology.size, num_chunks, multiple)]
        if self.exact:
            [first] = wire.split_shards(self.exact.counts, 1, EXACT_FORMAT.group_size)
            nothing = [piece._replace(num_elements=0) for piece in first]
            pieces.append([first, *[nothing] * (num_chunks - 1)])
        return pieces

    def _streams(self, hop: int) -> list[Stream]:
        return [
            Stream(form, pieces) for form, pieces in zip([self.formats[hop], EXACT_FORMAT], self._pieces, strict=False)
        ]

    def _plan_one_hop(self, device: torch.device) -> _Hop:
        topology = self.topology
        everybody = [[shard] for shard in range(topology.size)]
        memory = topology.node_memory if topology.shape == "intra" else None
        return _Hop(self._streams(0), everybody, topology.rank, topology.flat_group, device, memory)

    def _plan_two_hops(self, device: torch.device) -> list[_Hop]:
        topology = self.topology
        inside = wire.two_level_destinations(topology.nodes)
        between = [[shard] for shard in inside[topology.local_rank]]
        place = between.index([topology.rank])
        memory = topology.node_memory
        first = _Hop(self._streams(0), inside, topology.local_rank, topology.intra_group, device, memory)
        return [first, _Hop(self._streams(1), between, place, topology.inter_group, device)]

    def _of_own_shard(self, layouts: Sequence[wire.Layout], device: torch.device) -> list[codec.PreparedLayout]:
        """Layouts of each stream, for tensors that are this rank's shard alone."""
        begins = [self.topology.rank * self.shard_size]
        if self.exact:
            begins.append(self.exact.offsets[self.topology.rank])
        return [codec.prepare(layout.shifted(begin), device) for layout, begin in zip(layouts, begins, strict=True)]

    @cached_property
    def link_bytes(self) -> LinkBytes:
        """What one run sends to other ranks."""
        topology = self.topology
        if len(self._hops) == 1:
            return _by_link(topology, self._hops[0].bytes_to)
        inside, between = self._hops
        intra = sum(inside.bytes_to(place) for place in range(len(topology.nodes[0])) if place != inside.place)
        inter = sum(between.bytes_to(place) for place in range(len(topology.nodes)) if place != between.place)
        return LinkBytes(intra, inter)

    def run(self, output: Tensor, input: Tensor, scratch: Scratch, rounding: Rounding = round_to_nearest) -> None:
        """Sum `input` [num_elements] (fp32 or bf16) over the ranks; `output` [shard] may be its part of `input`.

        `input` is otherwise what it was when this returns. Call it within a job of `progress`.
        """
        inputs, own, targets = [input], [self._own_part(input)], [output]
        if self.exact:
            self._compact.copy_(input.index_select(0, self.exact.index))
            input.index_fill_(0, self.exact.index, 0.0)
            inputs.append(self._compact)
            own.append(self._compact[self.exact.offsets[self.topology.rank] :][: len(self._own_exact)])
            targets.append(self._exact_sum)
        buffers = self._buffers(scratch)
        works = [self._quantize(chunk, inputs, buffers[0], rounding) for chunk in range(len(self._outputs))]
        if len(self._hops) == 2:
            works = [self._requantize(chunk, work, inputs, buffers, rounding) for chunk, work in enumerate(works)]
        for chunk, work in enumerate(works):
            rows = self._hops[-1].finish(chunk, work, buffers[-1])
            for stream, (target, layout) in enumerate(zip(targets, self._outputs[chunk], strict=True)):
                codec.dequantize_reduce(rows, target, layout, self._own_source(chunk, stream, own[stream], buffers[0]))
        if self.exact:
            input.index_copy_(0, self.exact.index, self._compact.to(input.dtype))
            output.index_copy_(0, self._own_exact, self._exact_sum.to(output.dtype))

    def _own_part(self, bucket: Tensor) -> Tensor:
        return bucket[self.topology.rank * self.shard_size :][: self.shard_size]

    def _own_source(self, chunk: int, stream: int, values: Tensor, first: _HopBuffers) -> Own:
        """What the last sum has in this rank's place: `values` of its shard, or its node's sum of them."""
        own = Own(self._hops[0].place, values)
        if len(self._hops) == 1:
            return own
        return Own(self._hops[1].place, NodeSum(first.rows[chunk], self._kept[chunk][stream], own))

    def _buffers(self, scratch: Scratch) -> list[_HopBuffers]:
        parts = iter(scratch.parts(self.scratch_sizes))
        return [hop.buffers(parts) for hop in self._hops]

    def _quantize(
        self, chunk: int, inputs: Sequence[Tensor], buffers: _HopBuffers, rounding: Rounding
    ) -> AllToAll | Arrival | None:
        hop = self._hops[0]
        for tensor, layout in zip(inputs, hop.sent[chunk], strict=True):
            codec.quantize(tensor, buffers.send[chunk], layout, rounding(layout.layout.format, 0))
        return hop.start(chunk, buffers)

    def _requantize(
        self,
        chunk: int,
        work: AllToAll | Arrival | None,
        inputs: Sequence[Tensor],
        buffers: Sequence[_HopBuffers],
        rounding: Rounding,
    ) -> AllToAll | Arrival | None:
        inside, between = self._hops
        rows = inside.finish(chunk, work, buffers[0])
        for tensor, received, sent in zip(inputs, self._forwarded[chunk], between.sent[chunk], strict=True):
            names, own = rounding(sent.layout.format, 1), Own(inside.place, tensor)
            codec.dequantize_reduce_quantize(rows, buffers[1].send[chunk], received, sent, names, own)
        return between.start(chunk, buffers[1])


def _only_format(topology: Topology, intra: MessageFormat, inter: MessageFormat) -> MessageFormat:
    return intra if topology.shape == "intra" else inter


def _by_link(topology: Topology, bytes_to: Callable[[int], int]) -> LinkBytes:
    node = topology.nodes[topology.node]
    intra = sum(bytes_to(rank) for rank in node if rank != topology.rank)
    return LinkBytes(intra, sum(bytes_to(rank) for rank in range(topology.size) if rank not in node))


def exact_bytes(topology: Topology, num_elements: int, element_bytes: int) -> LinkBytes:
    """What a rank sends when shards of a bucket are exchanged as they are: a reduce-scatter's, or an all-gather's."""
    return _by_link(topology, lambda _rank: num_elements // topology.size * element_bytes)


class QuantizedAllGather:
    """All-gathers equal shards of `num_elements` elements in all: quantized differences, or the weights themselves.

    exact: elements that travel in the model's own dtype.
    direct: quantize the main parameters instead of their difference from the model's.

    Raises:
        ValueError: `num_elements` does not split into equal shards.
    """

    def __init__(
        self,
        num_elements: int,
        topology: Topology,
        message_format: MessageFormat,
        model_dtype: torch.dtype,
        device: torch.device,
        exact: ExactSlices | None = None,
        direct: bool = False,
    ) -> None:
        self.topology, self.exact = topology, exact if exact and exact.num_elements else None
        self.num_elements, self.shard_size = num_elements, topology.shard_size(num_elements)
        self.format, self._direct, self._dtype = message_format, direct, model_dtype
        [pieces] = wire.split_shards([self.shard_size] * topology.size, 1, message_format.group_size)
        counts = self.exact.counts if self.exact else [0] * topology.size
        self._gather = wire.plan_gather(message_format, pieces, counts, model_dtype.itemsize)
        own = wire.pack(message_format, [pieces[topology.rank]]).shifted(topology.rank * self.shard_size)
        self._own = codec.prepare(own, device)
        self._all = codec.prepare(self._gather.layout, device)
        self._by_rank = [codec.prepare(wire.pack(message_format, [piece]), device) for piece in pieces]
        self._memory = topology.node_memory if self._gather.stride else None
        self.scratch_sizes = [self._gather.stride, self._gather.layout.num_bytes]
        if self._memory:
            self._memory.plan(self._gather.layout.num_bytes)
            self.scratch_sizes = []
        if self.exact:
            self._own_exact = self.exact.within_shard(topology.rank)
            self._received_exact = self._places_of_exact(device)

    def _places_of_exact(self, device: torch.device) -> Tensor:
        """Where the exact elements lie in what is gathered, in elements of the model's dtype."""
        size = self._dtype.itemsize
        starts = zip(self._gather.exact_offsets, self.exact.counts, strict=True)
        return torch.cat([torch.arange(count) + begin // size for begin, count in starts]).to(device)

    @cached_property
    def link_bytes(self) -> LinkBytes:
        """What one run sends to other ranks: between paired nodes every message once, for the node to share."""
        topology, stride = self.topology, self._gather.stride
        if topology.shape != "two-level":
            return _by_link(topology, lambda _rank: stride)
        nodes, others = len(topology.nodes), len(topology.nodes[0]) - 1
        return LinkBytes(nodes * others * stride, (nodes - 1) * stride)

    def run(self, model: Tensor, main: Tensor, scratch: Scratch, rounding: Rounding = round_to_nearest) -> None:
        """Bring `model` [num_elements] to what the ranks' fp32 `main` [shard] say, the same bits on all ranks.

        Call it within a job of `progress`.
        """
        send, received = self._buffers(scratch)
        shard = model[self.topology.rank * self.shard_size :][: self.shard_size]
        self._write(send, shard, main, rounding(self.format, 0))
        self._gather_and_apply(received, send, model)
        if self.exact:
            values = received.view(self._dtype).index_select(0, self._received_exact)
            model.index_copy_(0, self.exact.index, values)

    def _buffers(self, scratch: Scratch) -> tuple[Tensor, Tensor]:
        """What this rank sends, and what all ranks do, in which its own message lies where ranks share memory."""
        if not self._memory:
            return scratch.parts(self.scratch_sizes)
        received = self._memory.half(self._gather.layout.num_bytes)
        return received.view(self.topology.size, -1)[self.topology.rank], received

    def _gather_and_apply(self, received: Tensor, send: Tensor, model: Tensor) -> None:
        """On gloo each message is used while the others travel; elsewhere one kernel uses all of them."""
        group, stride = self.topology.flat_group, self._gather.stride
        apply = codec.dequantize if self._direct else codec.dequantize_add
        if dist.get_backend(group) != "gloo":
            dist.all_gather_into_tensor(received, send, group=group)
            apply(received, model, self._all)
            return
        for rank in gather_by_node(received, send, self.topology):
            apply(received[rank * stride :][:stride], model, self._by_rank[rank])

    def _write(self, send: Tensor, shard: Tensor, main: Tensor, rounding: StochasticRounding | None) -> None:
        """The quantized message, in which exact elements count as unchanged, and then these themselves."""
        if not self.exact:
            return self._quantize(send, shard, main, rounding)
        exact = main.index_select(0, self._own_exact)
        begin = self._own.num_bytes
        send[begin : begin + exact.numel() * self._dtype.itemsize].view(self._dtype).copy_(exact)
        unchanged = torch.zeros_like(exact) if self._direct else shard.index_select(0, self._own_exact).float()
        main.index_copy_(0, self._own_exact, unchanged)
        self._quantize(send, shard, main, rounding)
        main.index_copy_(0, self._own_exact, exact)

    def _quantize(self, send: Tensor, shard: Tensor, main: Tensor, rounding: StochasticRounding | None) -> None:
        if self._direct:
            codec.quantize(main, send, self._own, rounding)
        else:
            codec.quantize_difference(main, shard, send, self._own, rounding)
