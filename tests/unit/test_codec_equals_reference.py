"""Every native implementation gives the bytes of the plain-torch reference."""

from __future__ import annotations

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

from sdp4bit_patches import codec, reference, wire
from sdp4bit_patches.wire import Layout, MessageFormat, StochasticRounding

pytestmark = pytest.mark.parametrize("implementation", implementations())
ROUNDINGS = (None, ROUNDING)
BITS = (1, 2, 4, 8, 32)


def formats(bits: int, hadamard: int) -> list[MessageFormat]:
    one_bit = ("mean", "absmax") if bits == 1 else ("mean",)
    sizes = (32, 96, 128, 1056)
    return [MessageFormat(bits, size, hadamard, s, o) for size in sizes for s in ("fp32", "bf16") for o in one_bit]


def roundings(fmt: MessageFormat) -> tuple[StochasticRounding | None, ...]:
    return (None,) if fmt.bits == 1 and fmt.one_bit_scale == "mean" else ROUNDINGS


def check_quantize(values: torch.Tensor, layout: Layout, rounding: StochasticRounding | None, name: str) -> None:
    with using(name) as device:
        payload = empty_payload(layout).to(device)
        codec.quantize(values.to(device), payload, codec.prepare(layout, device), rounding)
    assert_same(payload, quantized(values, layout, rounding))


@pytest.mark.parametrize("hadamard", (0, 32))
@pytest.mark.parametrize("bits", BITS)
def test_quantize_gives_the_same_bytes_for_every_format_of_adversarial_data(
    bits: int, hadamard: int, implementation: str
) -> None:
    for fmt in formats(bits, hadamard):
        for rounding in roundings(fmt):
            for dtype in DTYPES:
                check_quantize(
                    adversarial_values(2500).to(dtype), wire.single_message(fmt, 2500), rounding, implementation
                )


@pytest.mark.parametrize("num_elements", SIZES)
def test_quantize_and_dequantize_give_the_same_bytes_for_every_size(num_elements: int, implementation: str) -> None:
    values = torch.randn(num_elements, generator=torch.Generator().manual_seed(num_elements))
    for bits in BITS:
        for hadamard in (0, 32):
            layout = wire.single_message(MessageFormat(bits, 64, hadamard), num_elements)
            check_quantize(values, layout, None, implementation)
            check_dequantize(quantized(values, layout), layout, torch.float32, implementation)


@pytest.mark.parametrize("hadamard", (0, 32))
def test_the_largest_values_and_the_smallest_give_the_same_bytes(hadamard: int, implementation: str) -> None:
    largest, smallest = torch.finfo(torch.bfloat16).max, 1e-45
    for values in (torch.full((130,), largest), torch.full((130,), smallest), torch.full((130,), -0.0)):
        for bits in BITS:
            layout = wire.single_message(MessageFormat(bits, 64, hadamard, one_bit_scale="absmax"), 130)
            for rounding in ROUNDINGS:
                check_quantize(values, layout, rounding, implementation)
            check_dequantize(quantized(values, layout), layout, torch.bfloat16, implementation)


def check_dequantize(payload: torch.Tensor, layout: Layout, dtype: torch.dtype, name: str) -> None:
    held = adversarial_values(8192, seed=1)[
        : max((s.element_offset + s.num_elements for s in layout.segments), default=0)
    ]
    for verb in ("dequantize", "dequantize_add"):
        expected = held.to(dtype)
        getattr(reference, verb)(payload, expected, layout)
        with using(name) as device:
            output = held.to(dtype).to(device)
            getattr(codec, verb)(payload.to(device), output, codec.prepare(layout, device))
        assert_same(output, expected)


@pytest.mark.parametrize("hadamard", (0, 32))
@pytest.mark.parametrize("bits", BITS)
def test_dequantize_and_dequantize_add_give_the_same_bits_for_every_format_and_dtype(
    bits: int, hadamard: int, implementation: str
) -> None:
    for fmt in formats(bits, hadamard):
        layout = wire.single_message(fmt, 2500)
        payload = quantized(adversarial_values(2500), layout)
        for dtype in DTYPES:
            check_dequantize(payload, layout, dtype, implementation)


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantize_difference_subtracts_in_fp32(dtype: torch.dtype, implementation: str) -> None:
    main = adversarial_values(2500)
    model = (main * 1.001 + 1e-3 * torch.randn(2500, generator=torch.Generator().manual_seed(3))).to(dtype)
    for fmt in (MessageFormat(4, 2048), MessageFormat(8, 64, 32), MessageFormat(4, 128, scale_dtype="bf16")):
        layout = wire.single_message(fmt, 2500)
        for rounding in ROUNDINGS:
            expected = empty_payload(layout)
            reference.quantize_difference(main, model, expected, layout, rounding)
            with using(implementation) as device:
                payload = empty_payload(layout).to(device)
                tensors = (main.to(device), model.to(device), payload)
                codec.quantize_difference(*tensors, codec.prepare(layout, device), rounding)
            assert_same(payload, expected)


def sources(layout: Layout, num_sources: int) -> torch.Tensor:
    rows = []
    for source in range(num_sources):
        values = adversarial_values(2500, seed=source) if source == 1 else torch.randn(2500) * 10**source
        rows.append(quantized(values[: sum(s.num_elements for s in layout.segments)], layout))
    return torch.stack(rows)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("num_sources", (1, 2, 3, 4, 7))
def test_dequantize_reduce_adds_the_sources_in_order(bits: int, num_sources: int, implementation: str) -> None:
    for hadamard in (0, 32):
        layout = wire.single_message(MessageFormat(bits, 96, hadamard), 2500)
        payloads = sources(layout, num_sources)
        expected = torch.empty(2500)
        reference.dequantize_reduce(payloads, expected, layout)
        with using(implementation) as device:
            output = torch.empty(2500, device=device)
            codec.dequantize_reduce(payloads.to(device), output, codec.prepare(layout, device))
        assert_same(output, expected)


@pytest.mark.parametrize("first", (0, 1, 8))
def test_a_large_output_has_the_same_bits_wherever_it_starts(first: int, implementation: str) -> None:
    """From a megabyte on, fp32 is written past the caches of a CPU where it starts on a cache line."""
    num_elements = 2**18 + 77
    layout = wire.single_message(MessageFormat(4, 128, 32), num_elements)
    payloads = torch.stack([quantized(torch.randn(num_elements), layout) for _ in range(2)])
    expected = torch.empty(num_elements)
    reference.dequantize_reduce(payloads, expected, layout)
    with using(implementation) as device:
        memory = torch.full((num_elements + 48,), -1.0, device=device)
        begin = -(memory.data_ptr() // 4) % 16 + first
        output = memory[begin : begin + num_elements]
        codec.dequantize_reduce(payloads.to(device), output, codec.prepare(layout, device))
    assert_same(output, expected)
    assert (memory[:begin] == -1).all() and (memory[begin + num_elements :] == -1).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("output_bits", BITS)
def test_dequantize_reduce_quantize_gives_the_same_bytes_with_any_two_formats(
    bits: int, output_bits: int, implementation: str
) -> None:
    for hadamard, group_size, output_group_size in ((0, 128, 128), (32, 128, 128), (32, 64, 160), (0, 96, 64)):
        layout = wire.single_message(MessageFormat(bits, group_size, hadamard), 2491)
        output_format = MessageFormat(output_bits, output_group_size, hadamard, one_bit_scale="absmax")
        output_layout = wire.single_message(output_format, 2491)
        payloads = sources(layout, 3)
        for rounding in ROUNDINGS:
            expected = empty_payload(output_layout)
            reference.dequantize_reduce_quantize(payloads, expected, layout, output_layout, rounding)
            with using(implementation) as device:
                payload = empty_payload(output_layout).to(device)
                layouts = codec.prepare(layout, device), codec.prepare(output_layout, device)
                codec.dequantize_reduce_quantize(payloads.to(device), payload, *layouts, rounding)
            assert_same(payload, expected)


@pytest.mark.parametrize("bits", BITS)
def test_ragged_shards_at_odd_offsets_are_quantized_into_destination_major_payloads(
    bits: int, implementation: str
) -> None:
    layout = ragged_layout(MessageFormat(bits, 32, 32, one_bit_scale="absmax"))
    for dtype in DTYPES:
        values = adversarial_values(452).to(dtype)
        check_quantize(values, layout, ROUNDING, implementation)
        check_dequantize(quantized(values, layout), layout, dtype, implementation)


@pytest.mark.parametrize("group_size", (*range(32, 4097, 32), 8192))
def test_every_group_size_with_hadamard_gives_the_same_bytes(group_size: int, implementation: str) -> None:
    values = torch.randn(5000, generator=torch.Generator().manual_seed(group_size))
    layout = wire.single_message(MessageFormat(4, group_size, 32), 5000)
    check_quantize(values, layout, ROUNDING, implementation)
    check_dequantize(quantized(values, layout)[: layout.num_bytes], layout, torch.float32, implementation)


def test_random_numbers_pass_the_32_bit_block_index(implementation: str) -> None:
    piece = wire.Piece(0, 4096, (1 << 36) - 2048)
    layout = wire.pack(MessageFormat(4, 128), [piece])
    check_quantize(torch.randn(4096, generator=torch.Generator().manual_seed(0)), layout, ROUNDING, implementation)
