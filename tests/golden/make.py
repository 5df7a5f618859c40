"""Writes codec.txt: the bytes of a small message in every format, and a digest of what is restored from it.

    python -m tests.golden.make

A line is a case, then the message's size and its bytes as OFFSET:HEX, long runs of zeros left out, then the SHA-256
(16 digits) of the restored tensor in the case's dtype. The plain-torch reference makes them: run this only after a
change of the format or of the arithmetic that is meant, and read the difference before it is kept.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sdp4bit_patches import reference, wire
from sdp4bit_patches.wire import Layout, MessageFormat, StochasticRounding

PATH = Path(__file__).with_name("codec.txt")
NUM_ELEMENTS = 37  # ends inside a byte of 1-bit codes, and behind the first Hadamard block
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ROUNDING = StochasticRounding(seed=0x0123456789ABCDEF, step=3, bucket=4, hop=1, source=5)


class Case(NamedTuple):
    """One message: its format, the tensor's dtype, and whether it is rounded stochastically."""

    format: MessageFormat
    dtype: str
    stochastic: bool

    @property
    def name(self) -> str:
        fmt = self.format
        kind = f"{fmt.bits}{fmt.one_bit_scale if fmt.bits == 1 else ''} g{fmt.group_size} h{fmt.hadamard}"
        return f"{kind} {fmt.scale_dtype}-scales {self.dtype} {'stochastic' if self.stochastic else 'nearest'}"

    @property
    def layout(self) -> Layout:
        return wire.single_message(self.format, NUM_ELEMENTS)

    @property
    def rounding(self) -> StochasticRounding | None:
        return ROUNDING if self.stochastic else None

    @property
    def values(self) -> Tensor:
        """Sevenths of integers, which no dtype holds exactly."""
        return ((torch.arange(NUM_ELEMENTS) * 37 % 101 - 50).double() / 7).to(DTYPES[self.dtype])


def cases() -> Iterator[Case]:
    """Every bits x group x dtype x scale dtype x Hadamard to nearest; without transform and with fp32 scales, both."""
    for bits, group_size, hadamard in itertools.product(wire.BITS, (32, 96, 128, 2048), wire.HADAMARD_SIZES):
        for scale_dtype, dtype in itertools.product(wire.SCALE_BYTES, DTYPES):
            for one_bit_scale in wire.ONE_BIT_SCALES if bits == 1 else ("mean",):
                fmt = MessageFormat(bits, group_size, hadamard, scale_dtype, one_bit_scale)
                yield Case(fmt, dtype, False)
                biased = bits == 1 and one_bit_scale == "mean"
                if not (hadamard or biased or bits == 32 or scale_dtype == "bf16"):
                    yield Case(fmt, dtype, True)


def spelled(payload: Tensor) -> str:
    """The size, then every stretch of bytes between runs of at least 8 zeros, as OFFSET:HEX."""
    data = bytes(payload.tolist())
    stretches = re.finditer(rb"(?:(?!\x00{8,}).)+", data, re.DOTALL)
    return " ".join([f"{len(data)}", *(f"{s.start()}:{s.group().hex()}" for s in stretches if any(s.group()))])


def digest(restored: Tensor) -> str:
    """16 digits that stand for a tensor's bits."""
    return hashlib.sha256(bytes(restored.view(torch.uint8).tolist())).hexdigest()[:16]


def line(case: Case, payload: Tensor, restored: Tensor) -> str:
    return f"{case.name} | {spelled(payload)} | {digest(restored)}"


def reference_line(case: Case) -> str:
    payload = torch.full((case.layout.num_bytes,), 0xA5, dtype=torch.uint8)
    reference.quantize(case.values, payload, case.layout, case.rounding)
    restored = torch.empty_like(case.values)
    reference.dequantize(payload, restored, case.layout)
    return line(case, payload, restored)


if __name__ == "__main__":
    lines = [reference_line(case) for case in cases()]
    PATH.write_text("\n".join(lines) + "\n")
    print(f"wrote {len(lines)} lines to {PATH}")
