"""The byte formula, and layouts that put every element of every shard into exactly one place."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from codec_helpers import SIZES

from sdp4bit_patches import codec, wire
from sdp4bit_patches.wire import MessageFormat, Piece


def test_a_message_of_4_bit_codes_and_fp32_scales_costs_a_quarter_bit_of_scale_an_element() -> None:
    fmt = MessageFormat(4, 128)
    assert fmt.num_bytes(1 << 20) == (1 << 20) * (4 + 32 / 128) / 8


@pytest.mark.parametrize("bits", wire.BITS)
@pytest.mark.parametrize("group_size", (32, 96, 128, 2048))
@pytest.mark.parametrize("scale_dtype", ("fp32", "bf16"))
def test_message_bytes_are_whole_groups_then_scales_on_16_bytes(bits: int, group_size: int, scale_dtype: str) -> None:
    fmt = MessageFormat(bits, group_size, scale_dtype=scale_dtype)
    for n in SIZES:
        groups = math.ceil(n / group_size)
        scales = 0 if bits == 32 else groups * {"fp32": 4, "bf16": 2}[scale_dtype]
        codes = groups * group_size * bits // 8
        assert fmt.scales_offset(n) == math.ceil(codes / 16) * 16
        assert fmt.num_bytes(n) == math.ceil(codes / 16) * 16 + math.ceil(scales / 16) * 16


@pytest.mark.skipif(codec.NATIVE["cpu"] is None, reason="no native codec here")
def test_python_and_c_agree_on_the_bytes_of_every_message() -> None:
    for bits in wire.BITS:
        for group_size in (32, 96, 128, 2048, 8192):
            for scale_dtype in wire.SCALE_BYTES:
                fmt = MessageFormat(bits, group_size, scale_dtype=scale_dtype)
                native = codec.prepare(wire.single_message(fmt, 1), "cpu").native
                for n in (*SIZES, 10**10 + 7):
                    assert native.message_bytes(n) == fmt.num_bytes(n), (fmt, n)


@pytest.mark.parametrize("num_chunks", (1, 2, 3, 8))
def test_chunks_cut_every_ragged_shard_at_whole_groups_and_lose_nothing(num_chunks: int) -> None:
    sizes = (130, 0, 1, 257, 64, 4097)
    pieces = wire.split_shards(sizes, num_chunks, 64)
    begin = 0
    for shard, size in enumerate(sizes):
        own = [row[shard] for row in pieces]
        assert sum(piece.num_elements for piece in own) == size
        for piece, following in zip(own, own[1:], strict=False):
            assert piece.element_offset + piece.num_elements == following.element_offset
            assert following.num_elements == 0 or piece.num_elements % 64 == 0
        assert own[0].element_offset == begin
        begin += size


def test_the_number_of_chunks_does_not_move_an_elements_random_numbers() -> None:
    def random_offset_of_each_element(num_chunks: int) -> list[int]:
        pieces = [piece for row in wire.split_shards((130, 7, 300), num_chunks, 32) for piece in row]
        offsets = {p.element_offset + i: p.random_offset + i for p in pieces for i in range(p.num_elements)}
        return [offsets[element] for element in range(437)]

    whole = random_offset_of_each_element(1)
    assert len(set(whole)) == 437
    assert all(random_offset_of_each_element(num_chunks) == whole for num_chunks in (2, 3, 8))


def test_shards_go_to_slot_local_rank_times_nodes_plus_node() -> None:
    order = [shard for shards in wire.two_level_destinations([range(4), range(4, 8)]) for shard in shards]
    assert order == [0, 4, 1, 5, 2, 6, 3, 7]


def test_a_destination_finds_its_payload_where_the_sender_put_it() -> None:
    fmt = MessageFormat(8, 64)
    pieces = wire.split_shards((130, 0, 1, 257, 64, 40), 2, 64)
    exact = wire.split_shards((3, 0, 0, 40, 1, 0), 1, 32) + [[Piece(0, 0, 0)] * 6]
    streams = [wire.Stream(fmt, pieces), wire.Stream(MessageFormat(32, 32), exact)]
    destinations = wire.two_level_destinations([[0, 1], [2, 3], [4, 5]])
    exchange = wire.plan_exchange(streams, destinations)
    sent = [iter(layout.segments) for layout in exchange.layouts]
    for chunk, splits in enumerate(exchange.splits):
        start = exchange.chunk_offsets[chunk]
        for destination, num_bytes in enumerate(splits):
            alone = [wire.Stream(stream.format, [stream.pieces[chunk]]) for stream in streams]
            received = wire.plan_exchange(alone, [destinations[destination]])
            assert received.num_bytes == num_bytes
            for layout, segments in zip(received.layouts, sent, strict=True):
                for segment in layout.segments:
                    assert next(segments) == segment._replace(message_offset=segment.message_offset + start)
            start += num_bytes
    assert start == exchange.num_bytes


def test_a_sender_leaves_its_own_place_empty_and_the_others_where_they_were() -> None:
    streams = [wire.Stream(MessageFormat(8, 64), wire.split_shards((130, 70, 257, 64), 2, 64))]
    destinations = [[0, 2], [1, 3]]
    whole, others = (wire.plan_exchange(streams, destinations, sender) for sender in (None, 1))
    assert others.splits == whole.splits and others.num_bytes == whole.num_bytes
    kept = [s for s in whole.layouts[0].segments if s.element_offset < 130 or 200 <= s.element_offset < 457]
    assert list(others.layouts[0].segments) == kept and len(kept) == 4


def test_one_segment_of_a_layout_and_the_others_are_where_they_were() -> None:
    layout = wire.pack(MessageFormat(4, 32), [Piece(0, 40, 0), Piece(40, 10, 64), Piece(50, 3, 96)])
    assert layout.only(1).segments == layout.segments[1:2]
    assert layout.without(1).segments == (layout.segments[0], layout.segments[2])
    assert layout.only(1).num_bytes == layout.without(1).num_bytes == layout.num_bytes


def test_two_level_destinations_follow_the_nodes_whatever_the_order_of_ranks() -> None:
    assert wire.two_level_destinations([[0, 2], [1, 3]]) == [[0, 1], [2, 3]]


def test_two_level_destinations_are_in_the_order_of_the_ranks_in_a_process_group() -> None:
    assert wire.two_level_destinations([[0, 5], [1, 4], [2, 3]]) == [[0, 1, 2], [3, 4, 5]]


def test_exact_elements_follow_the_message_of_their_shard() -> None:
    fmt = MessageFormat(4, 2048)
    pieces = [Piece(0, 4096, 0), Piece(4096, 4096, 4096)]
    gather = wire.plan_gather(fmt, pieces, [0, 9], element_bytes=2)
    message = fmt.num_bytes(4096)
    assert gather.stride == message + 32
    assert gather.exact_offsets == (message, gather.stride + message)
    assert gather.layout.num_bytes == 2 * gather.stride


def test_a_gathers_messages_start_at_equal_strides() -> None:
    fmt = MessageFormat(4, 2048)
    pieces = [Piece(0, 5000, 0), Piece(5000, 10, 6144)]
    layout = wire.pack(fmt, pieces, message_stride=fmt.num_bytes(5000))
    assert [s.message_offset for s in layout.segments] == [0, fmt.num_bytes(5000)]
    with pytest.raises(ValueError, match="message_stride=16"):
        wire.pack(fmt, pieces, message_stride=16)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    (
        ({"bits": 3, "group_size": 128}, "bits=3: use one of"),
        ({"bits": 4, "group_size": 100}, "group_size=100: use a multiple of 32"),
        ({"bits": 4, "group_size": 16384}, "group_size=16384"),
        ({"bits": 4, "group_size": 128, "hadamard": 16}, "hadamard=16"),
        ({"bits": 4, "group_size": 128, "scale_dtype": "fp8"}, "scale_dtype='fp8'"),
        ({"bits": 1, "group_size": 128, "one_bit_scale": "median"}, "one_bit_scale='median'"),
    ),
)
def test_a_wrong_format_is_refused_with_the_value_and_the_remedy(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        MessageFormat(**arguments)


def test_names_of_random_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bucket=16777216: use an integer from 0 to 2\*\*24 - 1"):
        wire.StochasticRounding(seed=1, step=1, bucket=1 << 24)


def test_wire_needs_nothing_but_the_standard_library() -> None:
    load = f"import runpy, sys; runpy.run_path({wire.__file__!r}, run_name='wire')"
    check = "assert not {'torch', 'numpy', 'megatron'} & set(sys.modules)"
    subprocess.run([sys.executable, "-S", "-c", f"{load}; {check}"], check=True)
