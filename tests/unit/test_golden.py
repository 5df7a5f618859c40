"""The bytes in tests/golden are what every implementation writes and reads, in every format."""

from __future__ import annotations

import pytest
import torch
from codec_helpers import implementations, using
from golden.make import PATH, Case, cases, line, reference_line

from sdp4bit_patches import codec

GOLDEN = PATH.read_text().splitlines()


def native_line(case: Case, name: str) -> str:
    with using(name) as device:
        layout = codec.prepare(case.layout, device)
        payload = torch.full((layout.num_bytes,), 0xA5, dtype=torch.uint8, device=device)
        codec.quantize(case.values.to(device), payload, layout, case.rounding)
        restored = torch.empty_like(case.values, device=device)
        codec.dequantize(payload, restored, layout)
    return line(case, payload.cpu(), restored.cpu())


def test_the_reference_writes_and_reads_the_golden_bytes() -> None:
    assert [reference_line(case) for case in cases()] == GOLDEN


@pytest.mark.parametrize("implementation", implementations())
def test_every_native_implementation_writes_and_reads_the_golden_bytes(implementation: str) -> None:
    assert [native_line(case, implementation) for case in cases()] == GOLDEN


def test_the_golden_bytes_tell_every_format_and_every_byte_apart() -> None:
    assert len({golden.split(" | ")[0] for golden in GOLDEN}) == len(GOLDEN) == len(list(cases()))
    case = next(iter(cases()))
    payload, restored = torch.arange(48, dtype=torch.uint8), torch.zeros(37)
    other = payload.clone()
    other[47] = 0
    assert line(case, payload, restored) != line(case, other, restored)
    assert line(case, payload, restored) != line(case, payload, restored + 1)
