"""What the two collectives have to give, in plain torch on one process: no layouts, chunks or payloads.

Only the arithmetic of one quantization group is the package's own (`reference`, which has tests of its own). Sums run
over the ranks of a node, then over the ranks in the owner's place on every node, both in ascending order. What a rank
adds up itself of its own, and the owner of its own node, is not quantized; the owner adds its own elements last, to
what has been transformed back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdp4bit_patches import reference
from sdp4bit_patches.config import CommConfig, rounding_of
from sdp4bit_patches.exact_slices import ExactSlices
from sdp4bit_patches.topology import Topology, group_by_node, shape
from sdp4bit_patches.wire import MessageFormat, StochasticRounding

EXACT = MessageFormat(bits=32, group_size=32)


@dataclass(frozen=True)
class Case:
    """One reduce-scatter: `hosts[r]` names rank r's node, `exact` the ranges that travel unquantized."""

    hosts: str
    shard_size: int
    intra: MessageFormat
    inter: MessageFormat
    num_chunks: int = 1
    exact: tuple[tuple[int, int], ...] = ()
    dtype: torch.dtype = torch.float32
    rounding: str = "nearest"
    seed: int = 0

    @property
    def num_ranks(self) -> int:
        return len(self.hosts)

    @property
    def num_elements(self) -> int:
        return self.shard_size * self.num_ranks

    @property
    def topology(self) -> Topology:
        """The nodes alone, without groups, as rank 0 sees them."""
        return Topology(group_by_node(self.hosts), 0, None, None, None)

    def gradients(self) -> Tensor:
        """[rank, element]: magnitudes that differ from group to group, and from rank to rank."""
        generator = torch.Generator().manual_seed(1000 + self.seed)
        values = torch.randn(self.num_ranks, self.num_elements, generator=generator)
        spread = 10.0 ** torch.randint(-3, 2, (self.num_ranks, -(-self.num_elements // 16)), generator=generator)
        return (values * spread.repeat_interleave(16, 1)[:, : self.num_elements]).to(self.dtype)

    def slices(self) -> ExactSlices | None:
        """The exact elements as the package describes them."""
        if not self.exact:
            return None
        return ExactSlices(self.exact, self.num_elements, self.num_ranks, torch.device("cpu"))

    def rounding_name(self, message_format: MessageFormat, hop: int, source: int) -> StochasticRounding | None:
        """The random numbers of one message."""
        config = CommConfig(quantization_rounding=self.rounding)
        return rounding_of(config, message_format, 7, 3, hop, source)


def received(values: Tensor, message_format: MessageFormat, names: StochasticRounding | None, offset: int) -> Tensor:
    """Transformed fp32 values as their receiver restores them: whole groups through codes and scales.

    offset: index of the first element in the stream of random numbers.
    """
    if message_format.bits == 32:
        return values
    size = message_format.group_size
    groups = torch.nn.functional.pad(values, (0, -values.numel() % size)).view(-1, size)
    noise = None
    if names is not None:
        noise = reference.random_bytes(names, offset, groups.numel(), values.device).int().view_as(groups)
    scales = reference.group_scales(groups, values.numel(), message_format)
    codes = reference.group_codes(groups, scales, message_format.bits, noise)
    if message_format.bits == 1:
        codes = 1 - 2 * codes
    return (codes.float() * scales[:, None]).view(-1)[: values.numel()]


def transformed(values: Tensor, size: int) -> Tensor:
    """The Hadamard transform of whole blocks; size 0 leaves all as it is."""
    if not size:
        return values.float()
    return reference.hadamard_transform(torch.nn.functional.pad(values.float(), (0, -values.numel() % size)), size)


def reduce_scattered(case: Case, gradients: Tensor | None = None, nodes: tuple | None = None) -> Tensor:
    """[element] in the dtype of the gradients: the shards of all owners, one after the other."""
    gradients = case.gradients() if gradients is None else gradients
    nodes = group_by_node(case.hosts) if nodes is None else nodes
    places = torch.cat([torch.arange(*pair) for pair in sorted(case.exact)] or [torch.empty(0, dtype=torch.int64)])
    quantized = gradients.clone()
    quantized[:, places] = 0
    shards = [_reduced_shard(case, quantized, nodes, owner) for owner in range(case.num_ranks)]
    exact = [_exact_shard(case, gradients, nodes, owner) for owner in range(case.num_ranks)]
    total = torch.cat(shards)
    total[places] = torch.cat(exact)[places]
    return total.to(case.dtype)


def _levels(nodes: tuple, place: int) -> list[tuple[int, ...]]:
    """The ranks that are summed first: those of a node where nodes pair, else all; in the order of the second sum."""
    if shape(nodes) == "two-level":
        return sorted(nodes, key=lambda ranks: ranks[place])
    return [tuple(sorted(rank for node in nodes for rank in node))]


def _place(nodes: tuple, owner: int) -> int:
    return next(node.index(owner) for node in nodes if owner in node)


def _exact_shard(case: Case, gradients: Tensor, nodes: tuple, owner: int) -> Tensor:
    rows = gradients[:, owner * case.shard_size : (owner + 1) * case.shard_size].float()
    levels = _levels(nodes, _place(nodes, owner))
    sums = [_summed([rows[rank] for rank in ranks if rank != owner]) for ranks in levels]
    return _owner_last(rows[owner], _summed([total for total in sums if total is not None]))


def _owner_last(own: Tensor, others: Tensor | None) -> Tensor:
    return own if others is None else others + own


def _summed(rows: list[Tensor]) -> Tensor | None:
    if not rows:
        return None
    total = rows[0]
    for row in rows[1:]:
        total = total + row
    return total


def _reduced_shard(case: Case, gradients: Tensor, nodes: tuple, owner: int) -> Tensor:
    two_level = shape(nodes) == "two-level"
    first = case.inter if shape(nodes) in ("inter", "uneven") else case.intra
    multiple = math.lcm(case.intra.group_size, case.inter.group_size) if two_level else first.group_size
    offset = owner * -(-case.shard_size // multiple) * multiple
    place = _place(nodes, owner)
    own = slice(owner * case.shard_size, (owner + 1) * case.shard_size)

    def sent(rank: int, collector: int) -> Tensor:
        values = transformed(gradients[rank, own], first.hadamard)
        if rank == collector:
            return values
        return received(values, first, case.rounding_name(first, 0, rank), offset)

    def collected(ranks: tuple[int, ...]) -> Tensor | None:
        collector = ranks[place] if two_level else owner
        total = _summed([sent(rank, collector) for rank in ranks if rank != owner])
        if collector == owner:
            return total
        return received(total, case.inter, case.rounding_name(case.inter, 1, collector), offset)

    sums = [collected(ranks) for ranks in _levels(nodes, place)]
    total = _summed([total for total in sums if total is not None])
    if first.hadamard and total is not None:
        total = reference.hadamard_transform(total, first.hadamard) * (1.0 / first.hadamard)
    return _owner_last(gradients[owner, own].float(), None if total is None else total[: case.shard_size])


def gathered(case: Case, model: Tensor, main: Tensor, message_format: MessageFormat, direct: bool = False) -> Tensor:
    """[element]: `model` brought to fp32 `main`, by its difference or (direct) by itself, shard by shard."""
    places = torch.cat([torch.arange(*pair) for pair in sorted(case.exact)] or [torch.empty(0, dtype=torch.int64)])
    goal = main - (0 if direct else model.float())
    goal[places] = 0
    padded = -(-case.shard_size // message_format.group_size) * message_format.group_size
    shards = [
        received(shard, message_format, case.rounding_name(message_format, 2, rank), rank * padded)
        for rank, shard in enumerate(goal.split(case.shard_size) if case.shard_size else ())
    ]
    step = torch.cat(shards) if shards else goal
    result = step if direct else model.float() + step
    result[places] = main[places]
    return result.to(model.dtype)


def same_bits(actual: Tensor, expected: Tensor) -> bool:
    """Equal to the bit, signs of zeros too; one NaN is as good as another."""
    nan = expected.isnan()
    integers = {2: torch.int16, 4: torch.int32}[expected.element_size()]
    bits = [values[~nan].view(integers) for values in (actual, expected)]
    return actual.dtype == expected.dtype and torch.equal(actual.isnan(), nan) and torch.equal(*bits)
