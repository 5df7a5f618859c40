"""A rank's own contribution to a sum stays unquantized: the reference's arithmetic, and that all else has its bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from codec_helpers import (
    DTYPES,
    ROUNDING,
    SIZES,
    adversarial_values,
    assert_same,
    empty_payload,
    implementations,
    quantized,
    ragged_layout,
    using,
)
from torch import Tensor

from sdp4bit_patches import codec, reference, wire
from sdp4bit_patches.reference import NodeSum, Own
from sdp4bit_patches.wire import Layout, MessageFormat, StochasticRounding

BITS = (1, 2, 4, 8, 32)
every_implementation = pytest.mark.parametrize("implementation", implementations())
Prepare = Callable[[Layout], object]


def num_elements(layout: Layout) -> int:
    return max((s.element_offset + s.num_elements for s in layout.segments), default=0)


def rows_without(place: int, layout: Layout, num_sources: int, seed: int = 0) -> Tensor:
    """Messages of `num_sources` ranks; the row at `place` holds NaN in every scale, and must not be read."""
    values = [adversarial_values(num_elements(layout), seed + row) for row in range(num_sources)]
    rows = torch.stack([quantized(v, layout) for v in values])
    rows[place] = 0xFF
    return rows


def packed_like(layout: Layout, fmt: MessageFormat) -> Layout:
    return wire.pack(fmt, [wire.Piece(*segment[:3]) for segment in layout.segments])


class Case:
    """A sum with something of its own: its messages, and how to say the rest with either kind of layout."""

    def __init__(
        self,
        layout: Layout,
        place: int,
        dtype: torch.dtype,
        inner: tuple[Layout, int] | None = None,
        num_sources: int = 3,
        num_inner_sources: int = 2,
    ) -> None:
        self.layout, self.place, self.inner = layout, place, inner
        self.rows = rows_without(place, layout, num_sources)
        self.values = adversarial_values(num_elements(inner[0] if inner else layout), seed=11).to(dtype)
        self.inner_rows = rows_without(inner[1], inner[0], num_inner_sources, seed=5) if inner else None

    def own(self, values: Tensor, prepare: Prepare = lambda layout: layout) -> Own:
        if self.inner is None:
            return Own(self.place, values)
        layout, place = self.inner
        return Own(self.place, NodeSum(self.inner_rows.to(values.device), prepare(layout), Own(place, values)))

    def check_reduce(self, name: str, dtype: torch.dtype) -> None:
        expected = torch.full((num_elements(self.layout),), -1.0, dtype=dtype)
        reference.dequantize_reduce(self.rows, expected, self.layout, self.own(self.values))
        with using(name) as device:
            output = torch.full_like(expected, -1.0, device=device)
            own = self.own(self.values.to(device), lambda layout: codec.prepare(layout, device))
            codec.dequantize_reduce(self.rows.to(device), output, codec.prepare(self.layout, device), own)
        assert_same(output, expected)

    def check_reduce_in_place(self, name: str) -> None:
        expected = self.values.clone()
        reference.dequantize_reduce(self.rows, expected, self.layout, self.own(self.values))
        with using(name) as device:
            output = self.values.to(device, copy=True)
            own = self.own(output, lambda layout: codec.prepare(layout, device))
            codec.dequantize_reduce(self.rows.to(device), output, codec.prepare(self.layout, device), own)
        assert_same(output, expected)

    def check_reduce_quantize(self, name: str, fmt: MessageFormat, rounding: StochasticRounding | None) -> None:
        output_layout = packed_like(self.layout, fmt)
        expected = empty_payload(output_layout)
        layouts = (self.layout, output_layout)
        reference.dequantize_reduce_quantize(self.rows, expected, *layouts, rounding, self.own(self.values))
        with using(name) as device:
            payload = empty_payload(output_layout).to(device)
            prepared = [codec.prepare(layout, device) for layout in layouts]
            own = self.own(self.values.to(device), lambda layout: codec.prepare(layout, device))
            codec.dequantize_reduce_quantize(self.rows.to(device), payload, *prepared, rounding, own)
        floats = fmt.bits == 32  # where one NaN is as good as another
        assert_same(*(p.view(torch.float32) if floats else p for p in (payload, expected)))

    def check(self, name: str, fmt: MessageFormat, rounding: StochasticRounding | None) -> None:
        self.check_reduce(name, self.values.dtype)
        self.check_reduce_quantize(name, fmt, rounding)


@every_implementation
@pytest.mark.parametrize("hadamard", (0, 32))
@pytest.mark.parametrize("bits", BITS)
def test_a_tensor_of_any_dtype_stands_in_for_any_row_in_every_format(
    bits: int, hadamard: int, implementation: str
) -> None:
    for turn, group_size in enumerate((32, 96, 128, 1056)):
        scale_dtype, place = ("fp32", "bf16")[turn % 2], turn % 3
        layout = wire.single_message(MessageFormat(bits, group_size, hadamard, scale_dtype), 2500)
        output = MessageFormat(BITS[turn], 160, hadamard, one_bit_scale="absmax")
        for dtype in DTYPES:
            Case(layout, place, dtype).check(implementation, output, (None, ROUNDING)[turn % 2])


@every_implementation
@pytest.mark.parametrize("inner_bits", BITS)
@pytest.mark.parametrize("bits", BITS)
def test_the_sum_of_a_node_stands_in_for_any_row_in_any_two_formats(
    bits: int, inner_bits: int, implementation: str
) -> None:
    groups = ((32, 96), (1056, 128), (128, 32), (96, 1056))
    for turn, (group_size, inner_group_size) in enumerate(groups):
        hadamard, scale_dtypes = 32 * (turn // 2), ("fp32", "bf16")[:: 1 - turn % 2 * 2]
        layout = wire.single_message(MessageFormat(bits, group_size, hadamard, scale_dtypes[0]), 2491)
        inner = wire.single_message(MessageFormat(inner_bits, inner_group_size, hadamard, scale_dtypes[1]), 2491)
        case = Case(layout, turn % 3, DTYPES[turn % 3], (inner, turn % 2))
        case.check(implementation, MessageFormat(4, 64, hadamard), (None, ROUNDING)[turn % 2])


@every_implementation
@pytest.mark.parametrize("size", SIZES)
def test_every_size_gives_the_same_bits_out_of_place_and_in_place(size: int, implementation: str) -> None:
    for hadamard in (0, 32):
        layout = wire.single_message(MessageFormat(4, 64, hadamard), size)
        inner = wire.single_message(MessageFormat(8, 96, hadamard), size)
        for case in (Case(layout, 0, torch.float32), Case(layout, 1, torch.bfloat16, (inner, 0))):
            case.check(implementation, MessageFormat(2, 32, hadamard), ROUNDING)
            case.check_reduce_in_place(implementation)


@every_implementation
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_level_addresses_its_own_tensor_by_its_own_segments(dtype: torch.dtype, implementation: str) -> None:
    layout = ragged_layout(MessageFormat(4, 96, 32))
    inner = packed_like(layout, MessageFormat(8, 32, 32)).shifted(-7)  # in a tensor that begins 7 elements earlier
    for case in (Case(layout, 2, dtype), Case(layout, 1, dtype, (inner, 1))):
        case.check(implementation, MessageFormat(4, 128, 32), ROUNDING)
    Case(layout.shifted(-3), 0, dtype).check_reduce_in_place(implementation)


@every_implementation
def test_a_large_sum_with_several_threads_has_the_same_bits_even_where_it_overwrites_own_values(
    implementation: str,
) -> None:
    """From a megabyte on, fp32 is written past the caches of a CPU, unless the sum's own elements were there."""
    size, before = 2**18 + 77, torch.get_num_threads()
    layout, inner = (wire.single_message(MessageFormat(bits, 128, 32), size) for bits in (4, 8))
    try:
        torch.set_num_threads(5)
        Case(layout, 1, torch.float32).check_reduce(implementation, torch.float32)
        Case(layout, 0, torch.float32, (inner, 1)).check_reduce_in_place(implementation)
    finally:
        torch.set_num_threads(before)


@every_implementation
@pytest.mark.parametrize("num_sources", (1, 2, 5))
@pytest.mark.parametrize("num_inner_sources", (None, 1, 4))
def test_any_number_of_other_sources_even_none(
    num_inner_sources: int | None, num_sources: int, implementation: str
) -> None:
    for hadamard in (0, 32):
        layout, node = (wire.single_message(MessageFormat(bits, 128, hadamard), 1500) for bits in (4, 8))
        for dtype in DTYPES:
            for place in {0, num_sources // 2, num_sources - 1}:
                if num_inner_sources is None:
                    case = Case(layout, place, dtype, num_sources=num_sources)
                else:
                    inner = (node, num_inner_sources // 2)
                    case = Case(layout, place, dtype, inner, num_sources, num_inner_sources)
                case.check(implementation, MessageFormat(4, 64, hadamard), ROUNDING)
                case.check_reduce(implementation, torch.float32)
                case.check_reduce_in_place(implementation)


def random_ranks(num_ranks: int) -> Tensor:
    return torch.randn(num_ranks, 1000, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("hadamard", (0, 32))
@pytest.mark.parametrize("place", (0, 1, 2))
def test_what_stays_transformed_has_own_values_as_a_32_bit_message_would_have_brought_them(
    place: int, hadamard: int
) -> None:
    ranks, layout = random_ranks(3), wire.single_message(MessageFormat(32, 64, hadamard), 1000)
    rows = torch.stack([quantized(values, layout) for values in ranks])
    expected, payload = empty_payload(layout), empty_payload(layout)
    reference.dequantize_reduce_quantize(rows, expected, layout, layout)
    rows[place] = 0xFF
    reference.dequantize_reduce_quantize(rows, payload, layout, layout, None, Own(place, ranks[place]))
    assert torch.equal(payload, expected)


@pytest.mark.parametrize("place", (0, 1, 2))
def test_what_is_transformed_back_has_own_values_added_last_and_exactly(place: int) -> None:
    ranks, layout = random_ranks(3), wire.single_message(MessageFormat(4, 64, 32), 1000)
    rows, others, output = torch.stack([quantized(v, layout) for v in ranks]), torch.empty(1000), torch.empty(1000)
    reference.dequantize_reduce(rows[[row for row in range(3) if row != place]], others, layout)
    reference.dequantize_reduce(rows, output, layout, Own(place, ranks[place]))
    assert torch.equal(output, others + ranks[place])


def test_a_sum_over_two_levels_is_taken_in_the_order_of_the_rows_with_own_values_last() -> None:
    a, b, c, d, own = random_ranks(5)
    layout = wire.single_message(MessageFormat(32, 64), 1000)
    outer, inner = (torch.stack([quantized(v, layout) for v in rows]) for rows in ((a, own, d), (b, own, c)))
    output, payload = torch.empty(1000), empty_payload(layout)
    of_node = Own(1, NodeSum(inner, layout, Own(1, own)))
    reference.dequantize_reduce(outer, output, layout, of_node)
    assert torch.equal(output, ((a + (b + c)) + d) + own)
    assert not torch.equal(output, (a + ((b + c) + own)) + d)
    reference.dequantize_reduce_quantize(outer, payload, layout, layout, None, of_node)
    assert torch.equal(payload.view(torch.float32)[:1000], (a + ((b + own) + c)) + d)


def test_a_sum_of_4_bits_is_closer_to_the_exact_one_with_own_values() -> None:
    ranks, layout = random_ranks(2), wire.single_message(MessageFormat(4, 128, 32), 1000)
    rows, errors = torch.stack([quantized(values, layout) for values in ranks]), []
    for own in (None, Own(1, ranks[1])):
        output = torch.empty(1000)
        reference.dequantize_reduce(rows, output, layout, own)
        errors.append((output - ranks.sum(0)).norm().item())
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("special", (torch.nan, torch.inf, -torch.inf))
def test_a_nan_or_an_infinity_of_ones_own_surfaces_where_it_was(special: float) -> None:
    values, layout = random_ranks(1)[0], wire.single_message(MessageFormat(4, 128, 32), 1000)
    rows, output, payload = quantized(values, layout).repeat(2, 1), torch.empty(1000), empty_payload(layout)
    values[200] = special
    own = Own(0, NodeSum(rows, layout, Own(1, values)))
    reference.dequantize_reduce(rows, output, layout, own)
    assert (~output.isfinite()).nonzero().flatten().tolist() == [200]
    reference.dequantize_reduce_quantize(rows, payload, layout, layout, None, own)
    reference.dequantize(payload, output, layout)
    assert output.isnan().nonzero().flatten().tolist() == list(range(128, 256))  # its group
