"""The benchmark of AdamW: its rows, and how it compares. How fast AdamW is, is not tested here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from sdp4bit_patches import codec
from tools import bench_adamw
from tools.codec_kernels import Kernel


def kernel(name: str, num_bytes: int) -> Kernel:
    return Kernel(name, "torch", 1, "none", num_bytes, lambda: None)


def row(name: str, rate: float) -> dict[str, object]:
    return {"kernel": name, "rounding": "none", "gigabytes_per_second": rate}


def test_times_faster_divides_times_and_not_rates_of_different_bytes() -> None:
    names = ("own", "torch", "torch_foreach", "torch_fused")
    kernels = [kernel(name, num_bytes) for name, num_bytes in zip(names, (20_000_000, *[28_000_000] * 3), strict=True)]
    rates = (10.0, 1.4, 2.8, 14.0)
    own = bench_adamw.compared(kernels, [row(*pair) for pair in zip(names, rates, strict=True)])[0]
    faster = [own[f"times_faster_than_{name}"] for name in names[1:]]
    assert (own["milliseconds"], faster) == (2.0, [10.0, 5.0, 1.0])


@pytest.mark.skipif(codec.NATIVE["cpu"] is None, reason="no native codec here")
def test_the_quick_table_has_every_kernel_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, before = tmp_path / "rows.json", torch.get_num_threads()
    arguments = ["--quick", "--mebibytes", "1", "--rounds", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["bench_adamw.py", *arguments])
    try:
        bench_adamw.main()
    finally:
        torch.set_num_threads(before)
    names = [row["kernel"] for row in json.loads(path.read_text())]
    own = ["adamw", *(f"adamw_provisional_{rule}" for rule in ("updated", "state", "largest", "bounded"))]
    assert names == [*own, "torch", "torch_foreach", "torch_fused", "reference"]
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(names)
