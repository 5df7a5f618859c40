"""The arithmetic itself: golden bytes, exact values, bounds, unbiasedness, and data that hurts.

The reference is tested here; test_codec_equals_reference.py holds every native implementation to it.
"""

from __future__ import annotations

import pytest
import torch
from codec_helpers import (
    DTYPES,
    ROUNDING,
    empty_payload,
    implementations,
    quantized,
    restored,
    round_trip,
    using,
)

from sdp4bit_patches import codec, reference, wire
from sdp4bit_patches.wire import MessageFormat, StochasticRounding


def philox_of(counter: list[int], key: tuple[int, int]) -> list[int]:
    return [int(word) for word in reference.philox([torch.tensor([word]) for word in counter], key)]


def test_philox_gives_the_published_words() -> None:
    ones, pi = 0xFFFFFFFF, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    assert philox_of([0] * 4, (0, 0)) == [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]
    assert philox_of([ones] * 4, (ones, ones)) == [0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662]
    assert philox_of(pi, (0xA4093822, 0x299F31D0)) == [0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A]


# The group 1, -2, 3, -4, ... scaled so that its absmax is the largest code: what stands in the message's first bytes.
GOLDEN = {
    8: ([127, -127, 64, -1, 0, 1], [0x7F, 0x81, 0x40, 0xFF, 0x00, 0x01]),
    4: ([7, -7, 3, -1, 0, 1], [0x79, 0x3F, 0x01]),
    2: ([1, -1, 0, 1, -1, -1, 0, 0], [0b01110001, 0b11110000]),
    1: ([1, -1, 1, 1, -1, 1, 1, -1], [0b01001001]),
}


@pytest.mark.parametrize("group_size", (32, 96, 128))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", GOLDEN)
def test_golden_bytes_the_first_element_is_in_the_highest_bits(bits: int, dtype: torch.dtype, group_size: int) -> None:
    integers, expected = GOLDEN[bits]
    values = torch.zeros(group_size, dtype=dtype)
    values[: len(integers)] = torch.tensor(integers, dtype=dtype)
    layout = wire.single_message(MessageFormat(bits, group_size, one_bit_scale="absmax"), group_size)
    payload = quantized(values, layout)
    assert payload[: len(expected)].tolist() == expected
    scale = payload[layout.format.scales_offset(group_size) :][:4].clone().view(torch.float32)
    assert scale.item() == 1.0


@pytest.mark.parametrize("implementation", implementations())
@pytest.mark.parametrize("bits", (1, 2, 4, 8))
def test_every_code_is_restored_exactly(bits: int, implementation: str) -> None:
    every_code = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    layout = wire.single_message(MessageFormat(bits, 2048), 256 * 8 // bits)
    payload = empty_payload(layout)
    payload[:256] = every_code
    start = layout.format.scales_offset(256 * 8 // bits)
    payload[start : start + 4] = torch.tensor([0.25]).view(torch.uint8)
    with using(implementation) as device:
        output = torch.empty(256 * 8 // bits, device=device)
        codec.dequantize(payload.to(device), output, codec.prepare(layout, device))
    expected = []
    for byte in range(256):
        for shift in range(8 - bits, -1, -bits):
            code = byte >> shift & (1 << bits) - 1
            signed = 1 - 2 * code if bits == 1 else code - (1 << bits) * (code >> (bits - 1))
            expected.append(signed * 0.25)
    assert output.tolist() == expected


@pytest.mark.parametrize("bits", (2, 4, 8))
@pytest.mark.parametrize("rounding", (None, ROUNDING))
def test_values_on_the_grid_come_back_exactly_even_with_stochastic_rounding(
    bits: int, rounding: StochasticRounding | None
) -> None:
    largest = 2 ** (bits - 1) - 1
    codes = torch.arange(4096) % (2 * largest + 1) - largest
    codes[::128] = largest  # so that a group's scale is a power of two
    values = codes.float() * 2.0 ** (torch.arange(4096) // 128 - 20)
    assert torch.equal(round_trip(values, MessageFormat(bits, 128), rounding), values)


def test_a_swapped_block_or_scale_is_seen() -> None:
    values = (torch.arange(256) % 15 - 7).float() * torch.tensor([1.0, 1.0, 4.0, 4.0]).repeat_interleave(64)
    layout = wire.single_message(MessageFormat(4, 64), 256)
    payload = quantized(values, layout)
    assert torch.equal(restored(payload, layout), values)
    start = layout.format.scales_offset(256)
    for first, second, size in ((0, 16, 16), (start, start + 8, 4)):
        wrong = payload.clone()
        wrong[first : first + size] = payload[second : second + size]
        wrong[second : second + size] = payload[first : first + size]
        assert not torch.equal(restored(wrong, layout), values)


@pytest.mark.parametrize("bits", (2, 4, 8))
def test_the_error_is_half_a_step_to_nearest_and_less_than_a_step_stochastically(bits: int) -> None:
    values = torch.randn(1 << 14, generator=torch.Generator().manual_seed(1))
    step = values.view(-1, 128).abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    for rounding, bound in ((None, 0.5), (ROUNDING, 1.0)):
        error = (round_trip(values, MessageFormat(bits, 128), rounding) - values).view(-1, 128)
        assert (error.abs() <= bound * step * (1 + 1e-6)).all()


def mean_over_trials(values: torch.Tensor, fmt: MessageFormat, num_trials: int, stochastic: bool) -> torch.Tensor:
    total = torch.zeros_like(values, dtype=torch.float64)
    for step in range(num_trials):
        total += round_trip(values, fmt, StochasticRounding(seed=9, step=step) if stochastic else None)
    return total / num_trials


@pytest.mark.parametrize("fmt", (MessageFormat(4, 128), MessageFormat(8, 64, 32), MessageFormat(2, 32),
                                 MessageFormat(1, 32, one_bit_scale="absmax")))  # fmt: skip
def test_stochastic_rounding_is_unbiased_and_its_error_shrinks_with_the_root_of_the_trials(fmt: MessageFormat) -> None:
    values = torch.randn(2048, generator=torch.Generator().manual_seed(2))
    errors = {}
    for num_trials in (64, 1024):
        difference = mean_over_trials(values, fmt, num_trials, stochastic=True) - values
        transformed = reference.hadamard_transform(values, 32) if fmt.hadamard else values
        step = transformed.view(-1, fmt.group_size).abs().amax(dim=1, keepdim=True) / max(1, 2 ** (fmt.bits - 1) - 1)
        sigma = step * (1.0 if fmt.bits == 1 else 0.5) / (32**0.5 if fmt.hadamard else 1) / num_trials**0.5
        distance = step * (2 if fmt.bits == 1 else 1)  # between two levels
        bias = 2.0**-9 * distance  # with a Hadamard transform: the mean of 32 such, of either sign
        assert (difference.view(-1, fmt.group_size).abs() < 6 * sigma + bias).all()
        errors[num_trials] = difference.norm().item()
    assert 3.0 < errors[64] / errors[1024] < 5.3  # 4, were the trials endless


@pytest.mark.parametrize("implementation", [p for p in implementations() if p.values[0] != "cuda_emulated"])
def test_stochastic_rounding_is_unbiased_in_every_native_implementation(implementation: str) -> None:
    values = torch.randn(2048, generator=torch.Generator().manual_seed(2))
    total, num_trials = torch.zeros(2048, dtype=torch.float64), 256
    with using(implementation) as device:
        layout = codec.prepare(wire.single_message(MessageFormat(4, 128), 2048), device)
        payload, output = empty_payload(layout.layout).to(device), torch.empty(2048, device=device)
        for step in range(num_trials):
            codec.quantize(values.to(device), payload, layout, StochasticRounding(seed=9, step=step))
            codec.dequantize(payload, output, layout)
            total += output.cpu()
    step_size = values.view(-1, 128).abs().amax(dim=1, keepdim=True) / 7
    difference = (total / num_trials - values).view(-1, 128)
    assert (difference.abs() < step_size * (6 * 0.5 / num_trials**0.5 + 2.0**-9)).all()


def test_rounding_to_nearest_fails_the_test_of_unbiasedness() -> None:
    values = torch.randn(2048, generator=torch.Generator().manual_seed(2))
    difference = mean_over_trials(values, MessageFormat(4, 128), 256, stochastic=False) - values
    step = values.view(-1, 128).abs().amax(dim=1, keepdim=True) / 7
    assert (difference.view(-1, 128).abs() > step * (6 * 0.5 / 256**0.5 + 2.0**-9)).any()


@pytest.mark.parametrize("bits", (1, 2, 4, 8))
def test_over_all_random_bytes_the_bias_is_at_most_a_512th_step_odd_and_zero_on_average(bits: int) -> None:
    largest = max(1, 2 ** (bits - 1) - 1)
    distance = 2 if bits == 1 else 1
    values = torch.arange(-4096 * largest, 4096 * largest + 1) / 4096  # 16 values between two of the grid of P(up)
    every_byte = torch.arange(256, dtype=torch.int32)[:, None]
    codes = reference.group_codes(values.expand(256, -1), torch.ones(256), bits, every_byte)
    restored_codes = 1 - 2 * codes if bits == 1 else codes
    assert restored_codes.abs().max() == largest  # nothing to clamp
    bias = restored_codes.double().mean(dim=0) - values
    assert bias.abs().max() == 2.0**-9 * distance
    assert torch.equal(bias, -bias.flip(0)) and bias.sum() == 0
    assert (bias[:: 4096 * distance] == 0).all()  # what is on the grid stays there
    fractions = bias[:-1].view(-1, 4096 * distance)
    assert (fractions.mean(dim=1).abs() < 2.0**-9 * distance / 4096).all()


@pytest.mark.parametrize("implementation", implementations())
def test_golden_bytes_element_0_rounds_up_with_the_first_byte_of_the_published_words(implementation: str) -> None:
    """Elements 0 to 15 take the block's bytes in order, 16 to 31 the same with their bits reversed, xor 0x55."""
    words = (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)  # of counter and key 0
    random = [byte for word in words for byte in word.to_bytes(4, "little")]
    random += [int(f"{byte:08b}"[::-1], 2) ^ 0x55 for byte in random]
    values = torch.zeros(64)
    for element, byte in enumerate(random):  # by turns the largest fraction that stays down, and the next
        values[element] = (256 - byte) / 256 if element % 2 else (255 - byte) / 256
    values[63] = 7.0  # the scale is 1
    layout = wire.single_message(MessageFormat(4, 64), 64)
    with using(implementation) as device:
        payload = empty_payload(layout).to(device)
        codec.quantize(values.to(device), payload, codec.prepare(layout, device), StochasticRounding(seed=0, step=0))
    assert payload[:16].tolist() == [0x01] * 16


def covariances(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Of rounding up by two bytes, over all 256 bytes, for every pair of fractions of 1/256."""
    fractions = torch.arange(256)[:, None]
    first_up, second_up = ((byte[None] + fractions >= 256).double() for byte in (first, second))
    return first_up @ second_up.T / 256 - first_up.mean(1)[:, None] * second_up.mean(1)[None]


def test_two_elements_that_share_a_byte_round_without_correlation_on_average_and_nearly_so_for_any_pair() -> None:
    byte = torch.arange(256)
    mirrored = reference.mirror(byte)
    assert mirrored.sort().values.equal(byte)  # as uniform as the byte
    shared = covariances(byte, mirrored)
    assert shared.mean().abs() < 1e-12 and shared.abs().max() < 0.007  # a rounding's own variance is up to 0.25
    same = covariances(byte, byte)  # the negative control: the byte itself taken twice
    assert same.mean() > 0.08 and same.max() > 0.24


def test_random_numbers_depend_on_every_name() -> None:
    values, fmt = torch.randn(4096, generator=torch.Generator().manual_seed(3)), MessageFormat(4, 128)
    names = {"seed": 5, "step": 6, "bucket": 7, "hop": 1, "source": 2}
    base = round_trip(values, fmt, StochasticRounding(**names))
    assert torch.equal(base, round_trip(values, fmt, StochasticRounding(**names)))
    for name in names:
        other = round_trip(values, fmt, StochasticRounding(**{**names, name: names[name] + 1}))
        share = (base != other).float().mean()
        assert 0.2 < share < 0.5, name  # independent roundings of uniform fractions differ in a third


def test_ranks_of_different_source_average_their_errors_away() -> None:
    values, fmt = torch.randn(8192, generator=torch.Generator().manual_seed(4)), MessageFormat(4, 128)

    def error_of_mean(sources: list[int]) -> float:
        rounded = [round_trip(values, fmt, StochasticRounding(1, 1, source=source)) for source in sources]
        return (torch.stack(rounded).mean(dim=0) - values).norm().item()

    assert error_of_mean(list(range(16))) < 0.35 * error_of_mean([0] * 16)


@pytest.mark.parametrize("hadamard", (0, 32))
@pytest.mark.parametrize("bits", (1, 2, 4, 8))
@pytest.mark.parametrize("special", (torch.nan, torch.inf, -torch.inf))
def test_a_group_with_a_nan_or_an_infinity_comes_out_nan_and_its_neighbours_do_not(
    special: float, bits: int, hadamard: int
) -> None:
    values = torch.randn(384, generator=torch.Generator().manual_seed(5))
    values[130] = special
    output = round_trip(values, MessageFormat(bits, 128, hadamard))
    assert output[128:256].isnan().all()
    assert output[:128].isfinite().all() and output[256:].isfinite().all()


def test_a_nan_survives_the_two_hops() -> None:
    values = torch.randn(512, generator=torch.Generator().manual_seed(6))
    hop1, hop2 = (wire.single_message(MessageFormat(bits, 128, 32), 512) for bits in (8, 4))
    broken = values.clone()
    broken[200] = torch.inf
    payload = empty_payload(hop2)
    reference.dequantize_reduce_quantize(
        torch.stack([quantized(values, hop1), quantized(broken, hop1)]), payload, hop1, hop2
    )
    output = torch.empty(512)
    reference.dequantize_reduce(payload[None], output, hop2)
    assert output.isnan().nonzero().flatten().tolist() == list(range(128, 256))


@pytest.mark.parametrize("bits", (1, 2, 4, 8))
def test_a_group_of_zeros_is_zero_bytes_and_minus_zero_is_zero(bits: int) -> None:
    layout = wire.single_message(MessageFormat(bits, 64, one_bit_scale="absmax"), 128)
    for values in (torch.zeros(128), -torch.zeros(128)):
        for rounding in (None, ROUNDING):
            assert not quantized(values, layout, rounding).any()


@pytest.mark.parametrize("magnitude", (1e-45, 1e-40, 1e-38, 1e-30, 1e-8, 1e6, 1e30, 3.3895e38))
@pytest.mark.parametrize("bits", (2, 4, 8))
def test_any_magnitude_comes_back_finite_and_within_a_step(bits: int, magnitude: float) -> None:
    values = torch.linspace(-1, 1, 128) * magnitude
    for scale_dtype in ("fp32", "bf16"):
        for rounding in (None, ROUNDING):
            output = round_trip(values, MessageFormat(bits, 128, scale_dtype=scale_dtype), rounding)
            step = max(values.abs().max().item() / (2 ** (bits - 1) - 1), 2.0**-118) * (
                1.01 if scale_dtype == "bf16" else 1
            )
            assert output.isfinite().all() and ((output - values).abs().double() <= step * (1 + 1e-6)).all()


def test_the_largest_bf16_comes_back_and_with_hadamard_its_overflow_surfaces_as_nan() -> None:
    values = torch.full((128,), torch.finfo(torch.bfloat16).max, dtype=torch.bfloat16)
    assert torch.allclose(round_trip(values, MessageFormat(4, 128)), values.float(), rtol=1e-6)
    assert round_trip(values, MessageFormat(4, 128, 32)).isnan().all()


def test_a_constant_group_and_an_outlier_keep_their_largest_values() -> None:
    constant = torch.full((128,), 0.7)
    assert torch.allclose(round_trip(constant, MessageFormat(4, 128)), constant, rtol=1e-6)
    outlier = torch.ones(128)
    outlier[17] = 1e6
    output = round_trip(outlier, MessageFormat(4, 128))
    assert abs(output[17].item() / 1e6 - 1) < 1e-6 and (output[:17] == 0).all()


@pytest.mark.parametrize("group_size", (32, 128, 512, 2048, 4096))
def test_hadamard_lowers_the_error_of_a_group_with_outliers(group_size: int) -> None:
    values = torch.randn(8192, generator=torch.Generator().manual_seed(7))
    values[::group_size] = 50.0
    plain, smooth = (
        (round_trip(values, MessageFormat(4, group_size, hadamard)) - values).norm().item() for hadamard in (0, 32)
    )
    assert smooth < 0.8 * plain


@pytest.mark.parametrize("num_elements", (32, 4096))
def test_the_hadamard_transform_is_its_own_inverse_times_32(num_elements: int) -> None:
    values = torch.randint(-1000, 1000, (num_elements,), generator=torch.Generator().manual_seed(8)).float()
    transformed = reference.hadamard_transform(values, 32)
    matrix = torch.tensor([[(-1.0) ** bin(i & j).count("1") for j in range(32)] for i in range(32)])
    assert torch.equal(transformed, (values.view(-1, 32) @ matrix).reshape(-1))
    assert torch.equal(reference.hadamard_transform(transformed, 32) / 32, values)


def test_the_identity_carries_every_bit_of_fp32() -> None:
    values = torch.randint(-(2**31), 2**31 - 1, (1000,), generator=torch.Generator().manual_seed(9)).int()
    output = round_trip(values.view(torch.float32), MessageFormat(32, 64))
    assert torch.equal(output.view(torch.int32), values)


def test_the_two_hops_with_the_identity_equal_a_sum_in_order() -> None:
    sources = torch.randn(4, 1000, generator=torch.Generator().manual_seed(10))
    layout = wire.single_message(MessageFormat(32, 64), 1000)
    payloads, middle = torch.stack([quantized(source, layout) for source in sources]), empty_payload(layout)
    reference.dequantize_reduce_quantize(payloads, middle, layout, layout)
    assert torch.equal(restored(middle, layout), ((sources[0] + sources[1]) + sources[2]) + sources[3])


def test_the_group_size_of_the_second_hop_is_its_own() -> None:
    values = torch.randn(512, generator=torch.Generator().manual_seed(11)) * torch.logspace(0, 3, 512)
    hop1 = wire.single_message(MessageFormat(8, 128), 512)
    outputs = []
    for group_size in (32, 512):
        hop2 = wire.single_message(MessageFormat(4, group_size), 512)
        payload = empty_payload(hop2)
        reference.dequantize_reduce_quantize(quantized(values, hop1)[None], payload, hop1, hop2)
        outputs.append((restored(payload, hop2) - values).norm().item())
    assert outputs[0] < outputs[1]
