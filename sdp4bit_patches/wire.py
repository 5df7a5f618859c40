"""How many bytes a message has and where each part lies. Standard library only; the simulator uses these very formulas.

A *message* carries one contiguous range of elements: whole groups of codes, then one scale a group, both parts
starting on 16 bytes. A *payload* is the messages that go to one destination, one after the other. A `Layout` says
which range of a tensor belongs to which byte of a payload; the order of its segments is the only place where the
destination-major order (the swizzle) of the two-level exchange exists. csrc/common/wire.h holds the same constants.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

ALIGNMENT = 16
BITS = (1, 2, 4, 8, 32)
MIN_GROUP_SIZE, MAX_GROUP_SIZE = 32, 8192
HADAMARD_SIZES = (0, 32)
SCALE_BYTES = {"fp32": 4, "bf16": 2}
ONE_BIT_SCALES = ("mean", "absmax")


def align(num_bytes: int) -> int:
    """The next multiple of 16."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def _require(valid: bool, sentence: str) -> None:
    if not valid:
        raise ValueError(sentence)


@dataclass(frozen=True)
class MessageFormat:
    """How elements are written: `bits` a code (32 = fp32, unquantized), `group_size` elements a scale.

    `hadamard`: 32 transforms every 32 consecutive elements before they are quantized, 0 does not.
    `one_bit_scale`: the magnitude that 1-bit codes stand for, the group's mean magnitude or its largest.
    """

    bits: int
    group_size: int
    hadamard: int = 0
    scale_dtype: str = "fp32"
    one_bit_scale: str = "mean"

    def __post_init__(self) -> None:
        size = self.group_size
        _require(self.bits in BITS, f"bits={self.bits}: use one of {BITS} (32 is the unquantized identity)")
        fits = MIN_GROUP_SIZE <= size <= MAX_GROUP_SIZE and size % MIN_GROUP_SIZE == 0
        _require(fits, f"group_size={size}: use a multiple of 32 from {MIN_GROUP_SIZE} to {MAX_GROUP_SIZE}")
        _require(self.hadamard in HADAMARD_SIZES, f"hadamard={self.hadamard}: use one of {HADAMARD_SIZES}")
        _require(self.scale_dtype in SCALE_BYTES, f"scale_dtype={self.scale_dtype!r}: use one of {[*SCALE_BYTES]}")
        known = self.one_bit_scale in ONE_BIT_SCALES
        _require(known, f"one_bit_scale={self.one_bit_scale!r}: use one of {ONE_BIT_SCALES}")

    @property
    def scale_bytes(self) -> int:
        """Bytes of one scale; the identity has none."""
        return 0 if self.bits == 32 else SCALE_BYTES[self.scale_dtype]

    def num_groups(self, num_elements: int) -> int:
        """Groups are whole on the wire: the codec fills the last one with zeros."""
        return -(-num_elements // self.group_size)

    def codes_bytes(self, num_elements: int) -> int:
        """Bytes of the codes of one message, before alignment."""
        return self.num_groups(num_elements) * self.group_size * self.bits // 8

    def scales_offset(self, num_elements: int) -> int:
        """First byte of the scales within a message."""
        return align(self.codes_bytes(num_elements))

    def num_bytes(self, num_elements: int) -> int:
        """Bytes of one message of `num_elements` elements: a multiple of 16."""
        return self.scales_offset(num_elements) + align(self.num_groups(num_elements) * self.scale_bytes)


@dataclass(frozen=True)
class StochasticRounding:
    """Names the random numbers of one quantization; the same names give the same bits on any device.

    `source` is the sender's rank, so that the errors of different ranks are independent and average out.
    Where a verb takes `rounding=None`, it rounds to nearest, ties to even.
    """

    seed: int
    step: int
    bucket: int = 0
    hop: int = 0
    source: int = 0

    def __post_init__(self) -> None:
        for name, width in (("seed", 64), ("step", 32), ("bucket", 24), ("hop", 8), ("source", 24)):
            value = getattr(self, name)
            _require(0 <= value < 1 << width, f"{name}={value}: use an integer from 0 to 2**{width} - 1")


def check_rounding(message_format: MessageFormat, rounding: StochasticRounding | None) -> None:
    """Raise ValueError where the format has no unbiased rounding."""
    biased = rounding is not None and message_format.bits == 1 and message_format.one_bit_scale == "mean"
    sentence = "1 bit with one_bit_scale='mean' keeps signs only: round to nearest, or use one_bit_scale='absmax'"
    _require(not biased, sentence)


class Piece(NamedTuple):
    """A chunk of a shard: where it lies in the bucket, and its index in the stream of random numbers."""

    element_offset: int
    num_elements: int
    random_offset: int


class Segment(NamedTuple):
    """A piece and the first byte of its message."""

    element_offset: int
    num_elements: int
    random_offset: int
    message_offset: int


@dataclass(frozen=True)
class Layout:
    """The messages of a payload (or of several in a row): `num_bytes` in all."""

    format: MessageFormat
    segments: tuple[Segment, ...]
    num_bytes: int

    def shifted(self, num_elements: int) -> Layout:
        """The same bytes for a tensor that begins `num_elements` later in the bucket, a shard's own say."""
        moved = (s._replace(element_offset=s.element_offset - num_elements) for s in self.segments)
        return Layout(self.format, tuple(moved), self.num_bytes)

    def only(self, index: int) -> Layout:
        """The same bytes, of which one segment's are looked at."""
        return Layout(self.format, self.segments[index : index + 1], self.num_bytes)

    def without(self, index: int) -> Layout:
        """The same bytes, of which all but one segment's are looked at."""
        return Layout(self.format, self.segments[:index] + self.segments[index + 1 :], self.num_bytes)


def pack(message_format: MessageFormat, pieces: Iterable[Piece], message_stride: int | None = None) -> Layout:
    """One message a piece, one after the other; with `message_stride`, one every so many bytes (an all-gather)."""
    segments, offset = [], 0
    for piece in pieces:
        num_bytes = message_format.num_bytes(piece.num_elements)
        stride = num_bytes if message_stride is None else message_stride
        fits = stride >= num_bytes and stride % ALIGNMENT == 0
        _require(fits, f"message_stride={stride}: use a multiple of 16 of at least {num_bytes}")
        segments.append(Segment(*piece, offset))
        offset += stride
    return Layout(message_format, tuple(segments), offset)


def single_message(message_format: MessageFormat, num_elements: int) -> Layout:
    """The layout of a whole tensor in one message."""
    return pack(message_format, [Piece(0, num_elements, 0)])


def split_shards(shard_sizes: Sequence[int], num_chunks: int, multiple: int) -> list[list[Piece]]:
    """Pieces as [chunk][shard]: each shard is cut into `num_chunks` at multiples of `multiple` elements.

    `multiple`: the least common multiple of all hops' group sizes, so that no group straddles a chunk and cutting
    changes no bit. A short shard leaves its last chunks empty.
    """
    pieces: list[list[Piece]] = [[] for _ in range(num_chunks)]
    element = random = 0
    for size in shard_sizes:
        padded = -(-size // multiple) * multiple
        chunk = -(-padded // (multiple * num_chunks)) * multiple
        for index, row in enumerate(pieces):
            begin = min(index * chunk, size)
            row.append(Piece(element + begin, min(chunk, size - begin), random + min(index * chunk, padded)))
        element, random = element + size, random + padded
    return pieces


class Stream(NamedTuple):
    """One tensor's part in an exchange: its messages' format, and its pieces as [chunk][shard]."""

    format: MessageFormat
    pieces: Sequence[Sequence[Piece]]


@dataclass(frozen=True)
class Exchange:
    """What one rank sends in one hop: chunk `c` starts at byte `chunk_offsets[c]` and has `splits[c][destination]`
    bytes for each destination, one after the other (the arguments of an all-to-all); `layouts` has one a stream."""

    layouts: tuple[Layout, ...]
    chunk_offsets: tuple[int, ...]
    splits: tuple[tuple[int, ...], ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole payload, the sender's own place included."""
        return sum(map(sum, self.splits))


def plan_exchange(
    streams: Sequence[Stream], destinations: Sequence[Sequence[int]], sender: int | None = None
) -> Exchange:
    """Lay the streams' pieces out by chunk, destination, stream, then shard; destinations[d] lists d's shards.

    sender: the destination that is the sender itself: it has its place, but no messages are made for it.
    What destination d receives from each source in chunk c is planned the same way: with chunk c's pieces and d alone.
    """
    segments: list[list[Segment]] = [[] for _ in streams]
    splits: list[tuple[int, ...]] = []
    offset = 0
    for chunk in range(len(streams[0].pieces)):
        row = []
        for destination, shards in enumerate(destinations):
            begin = offset
            for stream, listed in zip(streams, segments, strict=True):
                for piece in (stream.pieces[chunk][shard] for shard in shards):
                    if destination != sender:
                        listed.append(Segment(*piece, offset))
                    offset += stream.format.num_bytes(piece.num_elements)
            row.append(offset - begin)
        splits.append(tuple(row))
    layouts = tuple(Layout(s.format, tuple(listed), offset) for s, listed in zip(streams, segments, strict=True))
    return Exchange(layouts, tuple(sum(map(sum, splits[:chunk])) for chunk in range(len(splits))), tuple(splits))


def two_level_destinations(nodes: Sequence[Sequence[int]]) -> list[list[int]]:
    """The shards that local rank l collects inside a node: those of the ranks in l's place on every node, ascending
    as the ranks of a process group are (where ranks are not placed in a row, that is not the order of the nodes).

    nodes[n][l] is the shard of the l-th rank of node n; all nodes have as many ranks.
    """
    return [sorted(node[local] for node in nodes) for local in range(len(nodes[0]))]


@dataclass(frozen=True)
class Gather:
    """An all-gather of shards: rank r's message starts at byte r * `stride`, its exact elements at
    `exact_offsets[r]`, unquantized and in their own dtype."""

    layout: Layout
    exact_offsets: tuple[int, ...]
    stride: int


def plan_gather(
    message_format: MessageFormat, pieces: Sequence[Piece], num_exact: Sequence[int], element_bytes: int
) -> Gather:
    """One message a shard and `num_exact[r]` elements of `element_bytes` behind it; the longest sets the stride."""
    quantized = [message_format.num_bytes(piece.num_elements) for piece in pieces]
    sizes = zip(quantized, num_exact, strict=True)
    stride = max((size + align(count * element_bytes) for size, count in sizes), default=0)
    offsets = tuple(rank * stride + size for rank, size in enumerate(quantized))
    return Gather(pack(message_format, pieces, message_stride=stride), offsets, stride)
