"""The arithmetic in plain torch: the specification that the native codec equals bit for bit.

Every verb works on any device, slowly. Tensors are 1-D and contiguous; a payload is uint8 and laid out by `wire`.
For a group x with absmax m and Q = max(1, 2**(bits-1) - 1):  scale = max(m / Q, 2**-118),  y = x * (1 / scale),
code = round(y) to nearest even, or stochastically floor((round(y * 256) + r) / 256) with a random byte r: P(up)
is the fraction of y rounded to a multiple of 1/256;  x is restored as code * scale. A value on the grid stays; the
bias of any other is at most 2**-9 of the distance between two levels, opposite for y and -y, and zero on average over
the fraction. At 1 bit, plus has the probability round(y * 128 + 128) / 256 (the levels are 2 * scale apart).
All of it in fp32, each operation rounded once, none fused. A group of zeros has scale 0, one with a NaN or an
infinity has scale NaN; the codes of both are 0. Formulas: SDP4Bit, arXiv 2410.15526.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdp4bit_patches.wire import Layout, MessageFormat, Segment, StochasticRounding, check_rounding

SMALLEST_SCALE = 2.0**-118  # 256 times the reciprocal of every scale is finite
LARGEST_BF16_BITS = 0x7F7F0000
PHILOX_ROUNDS = 7
PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
MASK32 = 0xFFFFFFFF


@dataclass(frozen=True)
class NodeSum:
    """What a rank's node has summed so far: messages, uint8[R, bytes], and what the rank itself contributes to them.

    `layout` is a `wire.Layout` here, a prepared one in `codec`. Next to the layout of the sum that this one is part
    of, it has the same `hadamard` and segments of the same sizes; all else may differ. `own.values` is a tensor.
    """

    payloads: Tensor
    layout: Any
    own: Own


@dataclass(frozen=True)
class Own:
    """What a rank itself contributes to a sum, never quantized: it stands in for row `place`, which is not read.

    In a sum that stays transformed it is transformed, too, and added in that place; to one that is transformed back it
    is added last, as it is. A tensor is 1-D, contiguous, fp32, bf16 or fp16, and addressed by the segments of the sum's
    layout.
    """

    place: int
    values: Tensor | NodeSum


def philox(counter: list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox4x32-7 (Salmon et al., SC 2011): four int64 tensors of 32-bit words in, four out."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(PHILOX_ROUNDS):
        (high0, low0), (high1, low1) = (_multiply(m, c) for m, c in zip(PHILOX_MULTIPLIERS, (c0, c2), strict=True))
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + PHILOX_KEY_STEPS[0]) & MASK32, (k1 + PHILOX_KEY_STEPS[1]) & MASK32
    return [c0, c1, c2, c3]


def _multiply(constant: int, words: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of a 32 x 32 bit product, without overflowing int64."""
    upper, lower = constant * (words >> 16), constant * (words & 0xFFFF)
    return (upper + (lower >> 16)) >> 16, (((upper & 0xFFFF) << 16) + lower) & MASK32


def random_bytes(rounding: StochasticRounding, offset: int, num_elements: int, device: torch.device) -> Tensor:
    """int64[num_elements] in [0, 256): element e takes a byte of Philox block e div 32.

    Elements 0 to 15 of a block's 32 take its 16 bytes, lowest first, elements 16 to 31 the same bytes mirrored.
    """
    assert offset % 32 == 0, "random offsets are multiples of a group"
    block = torch.arange(offset // 32, (offset + num_elements + 31) // 32, dtype=torch.int64, device=device)
    names = (rounding.source << 8 | block >> 32, torch.full_like(block, rounding.step))
    counter = [block & MASK32, *names, torch.full_like(block, rounding.bucket << 8 | rounding.hop)]
    words = torch.stack(philox(counter, (rounding.seed & MASK32, rounding.seed >> 32)), dim=1)
    drawn = torch.stack([words >> shift & 0xFF for shift in (0, 8, 16, 24)], dim=2).reshape(-1, 16)
    return torch.cat([drawn, mirror(drawn)], dim=1).reshape(-1)[:num_elements]


def mirror(random: Tensor) -> Tensor:
    """Bytes with their bits in reverse order, xor 0x55: each is as uniform as the byte it comes from, and what the
    two round is uncorrelated on average over all pairs of fractions."""
    bits = [(random >> place & 1) << (7 - place) for place in range(8)]
    return sum(bits[1:], bits[0]) ^ 0x55


def hadamard_transform(values: Tensor, size: int) -> Tensor:
    """Unnormalized Walsh-Hadamard transform of every `size` consecutive elements, strides 1, 2, 4, ... in turn."""
    stride = 1
    while stride < size:
        pairs = values.reshape(-1, 2, stride)
        values = torch.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], dim=1)
        stride *= 2
    return values.reshape(-1)


def _pad(values: Tensor, multiple: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, -values.numel() % multiple))


def _mean_magnitude(groups: Tensor, num_valid: int) -> Tensor:
    """Mean of |x| a group over its valid elements, summed as a tree of neighbours (the same on every device)."""
    num_groups, size = groups.shape
    sums = torch.nn.functional.pad(groups.abs(), (0, (1 << (size - 1).bit_length()) - size))
    while sums.shape[1] > 1:
        sums = sums[:, 0::2] + sums[:, 1::2]
    first = torch.arange(num_groups, device=groups.device) * size
    counts = (num_valid - first).clamp(max=size).to(torch.float32)
    return sums[:, 0] / counts


def _store_bf16_upwards(scales: Tensor) -> Tensor:
    """fp32 scales that bf16 holds, rounded up so that no code has to be clipped; NaN stays."""
    bits = ((scales.view(torch.int32) + 0xFFFF) & ~0xFFFF).clamp(max=LARGEST_BF16_BITS)
    return torch.where(scales.isnan(), scales, bits.view(torch.float32))


def group_scales(groups: Tensor, num_valid: int, message_format: MessageFormat) -> Tensor:
    """fp32[num_groups]: what one code step is worth."""
    absmax = groups.abs().amax(dim=1)
    if message_format.bits == 1 and message_format.one_bit_scale == "mean":
        scales = _mean_magnitude(groups, num_valid)
    else:
        scales = absmax / max(1, 2 ** (message_format.bits - 1) - 1)
    scales = scales.clamp(min=SMALLEST_SCALE)
    scales = torch.where(absmax == 0, 0.0, scales)
    finite = groups.isfinite().all(dim=1) & scales.isfinite()
    scales = torch.where(finite, scales, torch.nan)
    return _store_bf16_upwards(scales) if message_format.scale_dtype == "bf16" else scales


def group_codes(groups: Tensor, scales: Tensor, bits: int, noise: Tensor | None) -> Tensor:
    """int32[num_groups, group_size]: signed codes in [-Q, Q]; at 1 bit, 1 stands for minus. `noise`: random bytes."""
    coded = (scales > 0)[:, None]
    values = groups * (1.0 / scales)[:, None] if bits > 1 or noise is not None else groups
    values = torch.where(coded, values, 0.0)
    if bits == 1:
        up = values >= 0 if noise is None else torch.round(values * 128).int() + 128 + noise >= 256
        return (~up & coded).int()
    if noise is not None:
        return (torch.round(values * 256).int() + noise) >> 8
    largest = 2 ** (bits - 1) - 1
    return torch.round(values).int().clamp(-largest, largest)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """uint8: two's complement codes, the first element in a byte's highest bits."""
    per_byte = 8 // bits
    shifts = torch.arange(per_byte - 1, -1, -1, device=codes.device, dtype=torch.int32) * bits
    return ((codes.reshape(-1, per_byte) & (2**bits - 1)) << shifts).sum(dim=1).to(torch.uint8)


def unpack_codes(packed: Tensor, bits: int) -> Tensor:
    """int32: the signed codes of `pack_codes` (1 bit comes back as +1 or -1)."""
    shifts = torch.arange(8 // bits - 1, -1, -1, device=packed.device, dtype=torch.int32) * bits
    codes = (packed.int()[:, None] >> shifts & (2**bits - 1)).reshape(-1)
    return 1 - 2 * codes if bits == 1 else codes - ((codes >> (bits - 1)) << bits)


def _encode(values: Tensor, segment: Segment, payload: Tensor, fmt: MessageFormat, rounding: StochasticRounding | None,
            num_valid: int) -> None:  # fmt: skip
    """Write fp32 values (already transformed) as one message."""
    groups = _pad(values, fmt.group_size).reshape(-1, fmt.group_size)
    num_bytes = fmt.num_bytes(segment.num_elements)
    message = payload[segment.message_offset : segment.message_offset + num_bytes].zero_()
    if fmt.bits == 32:
        message[: fmt.codes_bytes(segment.num_elements)] = groups.reshape(-1).view(torch.uint8)
        return
    noise = None
    if rounding is not None:
        noise = random_bytes(rounding, segment.random_offset, groups.numel(), values.device).int().view_as(groups)
    scales = group_scales(groups, num_valid, fmt)
    message[: fmt.codes_bytes(segment.num_elements)] = pack_codes(
        group_codes(groups, scales, fmt.bits, noise), fmt.bits
    )
    stored = scales if fmt.scale_dtype == "fp32" else (scales.view(torch.int32) >> 16).to(torch.int16)  # exact
    start = fmt.scales_offset(segment.num_elements)
    message[start : start + groups.shape[0] * fmt.scale_bytes] = stored.view(torch.uint8)


def _decode(segment: Segment, payload: Tensor, fmt: MessageFormat) -> Tensor:
    """fp32 values of one message, as transformed as they were sent; zeros behind the last Hadamard block."""
    message = payload[segment.message_offset : segment.message_offset + fmt.num_bytes(segment.num_elements)]
    codes = message[: fmt.codes_bytes(segment.num_elements)]
    if fmt.bits == 32:
        return codes.clone().view(torch.float32)[: _num_valid(segment, fmt)]
    start, num_groups = fmt.scales_offset(segment.num_elements), fmt.num_groups(segment.num_elements)
    scale_dtype = torch.float32 if fmt.scale_dtype == "fp32" else torch.bfloat16
    scales = message[start : start + num_groups * fmt.scale_bytes].clone().view(scale_dtype).float()
    values = unpack_codes(codes, fmt.bits).float().reshape(num_groups, fmt.group_size) * scales[:, None]
    return values.reshape(-1)[: _num_valid(segment, fmt)]


def _num_valid(segment: Segment, fmt: MessageFormat) -> int:
    """Elements that are no filling: those of the tensor, rounded up to whole Hadamard blocks."""
    return -(-segment.num_elements // fmt.hadamard) * fmt.hadamard if fmt.hadamard else segment.num_elements


def _slice(tensor: Tensor, segment: Segment) -> Tensor:
    return tensor[segment.element_offset : segment.element_offset + segment.num_elements]


def _transform(values: Tensor, fmt: MessageFormat) -> Tensor:
    """fp32 values as they are quantized: `_num_valid` of them, transformed where the format says so."""
    return hadamard_transform(_pad(values, fmt.hadamard), fmt.hadamard) if fmt.hadamard else values


def _transform_and_encode(values: Tensor, segment: Segment, payload: Tensor, fmt: MessageFormat,
                          rounding: StochasticRounding | None) -> None:  # fmt: skip
    _encode(_transform(values, fmt), segment, payload, fmt, rounding, _num_valid(segment, fmt))


def _own_values(number: int, own: Own, layout: Layout) -> Tensor:
    """Segment `number` of `own` as `_decode` would give it, had it been sent without a loss."""
    if isinstance(own.values, NodeSum):
        return _reduce(number, own.values.payloads, own.values.layout, own.values.own)
    return _transform(_slice(own.values, layout.segments[number]).float(), layout.format)


def _reduce(number: int, payloads: Tensor, layout: Layout, own: Own | None = None) -> Tensor:
    """Sum of segment `number` over the sources 0, 1, ..., R-1 in that order, in fp32, still transformed."""
    summands = (
        _own_values(number, own, layout)
        if own is not None and place == own.place
        else _decode(layout.segments[number], payload, layout.format)
        for place, payload in enumerate(payloads)
    )
    return functools.reduce(torch.add, summands)


def _others(number: int, payloads: Tensor, layout: Layout, own: Own) -> list[Tensor]:
    """Segment `number` of every source, without what is `own`: in its place the sum of what else its node has."""
    summands = []
    for place, payload in enumerate(payloads):
        if place != own.place:
            summands.append(_decode(layout.segments[number], payload, layout.format))
        elif isinstance(own.values, NodeSum):
            node = _others(number, own.values.payloads, own.values.layout, own.values.own)
            summands += [functools.reduce(torch.add, node)] if node else []
    return summands


def _own_elements(number: int, own: Own, layout: Layout) -> Tensor:
    """Segment `number` of the tensor of `own`, in fp32 and not transformed."""
    if isinstance(own.values, NodeSum):
        return _own_elements(number, own.values.own, own.values.layout)
    return _slice(own.values, layout.segments[number]).float()


def _invert(total: Tensor, number: int, layout: Layout) -> Tensor:
    size = layout.format.hadamard
    if size:
        total = hadamard_transform(total, size) * (1.0 / size)
    return total[: layout.segments[number].num_elements]


def _reduce_and_invert(number: int, payloads: Tensor, layout: Layout, own: Own | None = None) -> Tensor:
    if own is None:
        return _invert(_reduce(number, payloads, layout), number, layout)
    elements, others = _own_elements(number, own, layout), _others(number, payloads, layout, own)
    return elements + _invert(functools.reduce(torch.add, others), number, layout) if others else elements


def quantize(input: Tensor, payload: Tensor, layout: Layout, rounding: StochasticRounding | None = None) -> None:
    """fp32, bf16 or fp16 `input` -> the messages of `payload`."""
    check_rounding(layout.format, rounding)
    for segment in layout.segments:
        _transform_and_encode(_slice(input, segment).float(), segment, payload, layout.format, rounding)


def quantize_difference(main: Tensor, model: Tensor, payload: Tensor, layout: Layout,
                        rounding: StochasticRounding | None = None) -> None:  # fmt: skip
    """fp32 `main` - fp32, bf16 or fp16 `model`, subtracted in fp32, -> the messages of `payload`."""
    check_rounding(layout.format, rounding)
    for segment in layout.segments:
        difference = _slice(main, segment) - _slice(model, segment).float()
        _transform_and_encode(difference, segment, payload, layout.format, rounding)


def dequantize(payload: Tensor, output: Tensor, layout: Layout) -> None:
    """The messages of `payload` -> fp32, bf16 or fp16 `output` (transformed back)."""
    dequantize_reduce(payload[None], output, layout)


def dequantize_add(payload: Tensor, output: Tensor, layout: Layout) -> None:
    """output += the messages of `payload`: added in fp32, then rounded to output's dtype."""
    for number, segment in enumerate(layout.segments):
        target = _slice(output, segment)
        target.copy_(target.float() + _reduce_and_invert(number, payload[None], layout))


def dequantize_reduce(payloads: Tensor, output: Tensor, layout: Layout, own: Own | None = None) -> None:
    """Sum of the R sources of `payloads`, uint8[R, bytes], one of which `own` stands in for, -> `output`."""
    for number, segment in enumerate(layout.segments):
        _slice(output, segment).copy_(_reduce_and_invert(number, payloads, layout, own))


def dequantize_reduce_quantize(payloads: Tensor, payload: Tensor, layout: Layout, output_layout: Layout,
                               rounding: StochasticRounding | None = None, own: Own | None = None) -> None:  # fmt: skip
    """Sum of the R sources of `payloads`, uint8[R, bytes], one of which `own` stands in for, quantized anew into
    `payload`, still transformed."""
    check_rounding(output_layout.format, rounding)
    for number, (segment, target) in enumerate(zip(layout.segments, output_layout.segments, strict=True)):
        total = _reduce(number, payloads, layout, own)
        _encode(total, target, payload, output_layout.format, rounding, _num_valid(segment, layout.format))
