"""The codec's benchmark: its rows, its gate, and that it stops in time. How fast the codec is, is not tested here."""

from __future__ import annotations

import json
import sys
import time

import pytest
import torch

from sdp4bit_patches import codec
from tools import bench_codec
from tools.codec_kernels import Arrays, Kernel
from tools.codec_timing import AT_LEAST, at_least, below_gate, gate_sentence, measure, seconds

KEYS = ["kernel", "isa", "threads", "rounding", "gigabytes_per_second", "ratio_to_memcpy"]
needs_wide = pytest.mark.skipif(not bench_codec.wide_instruction_sets(), reason="neither AVX2 nor a native codec here")


def table(share: float) -> list[dict[str, object]]:
    """A table in which every row reaches `share` of what is asked."""
    rows = [dict(zip(KEYS, (name, isa, 1, "nearest", 10.0, 0.0), strict=True))
            for name in AT_LEAST for isa in ("avx512", "avx2")]  # fmt: skip
    return [row | {"ratio_to_memcpy": share * at_least(row)} for row in rows]


def compute_for(duration: float) -> None:
    """Seconds that count as the processor's, too."""
    begin = time.perf_counter()
    while time.perf_counter() < begin + duration:
        pass


def test_avx2_has_to_reach_nine_tenths_and_only_one_thread_to_nearest_is_asked() -> None:
    row = dict(zip(KEYS, ("quantize8_g128", "avx512", 1, "nearest", 10.0, 1.0), strict=True))
    assert (at_least(row), at_least(row | {"isa": "avx2"})) == (1.15, 1.035)
    others = ({"isa": "scalar"}, {"threads": 2}, {"rounding": "stochastic"}, {"kernel": "libc_memcpy"})
    assert [at_least(row | other) for other in others] == [None] * 4


def test_a_doctored_table_fails_the_gate_by_the_names_of_its_rows() -> None:
    rows = table(0.51)
    assert below_gate(rows) == []
    rows[3]["ratio_to_memcpy"] = 0.49 * at_least(rows[3])
    assert below_gate(rows) == [rows[3]]
    assert "quantize4_g128_hadamard32 with avx2 reached 0.441 of memcpy's rate, 0.450" in gate_sentence([rows[3]])


@needs_wide
@pytest.mark.parametrize(("share", "code"), ((0.49, 1), (0.51, 0)))
def test_the_gate_ends_with_1_where_rows_stay_slow_and_measures_them_again_first(
    share: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def doctored(kernels: list[Kernel], *_: object) -> list[dict[str, object]]:
        asked.append(sorted((kernel.name, kernel.isa) for kernel in kernels))
        return [row for row in table(share) if (row["kernel"], row["isa"]) in asked[-1]]

    monkeypatch.setattr(bench_codec, "measure", doctored)
    monkeypatch.setattr(bench_codec, "GATE_MEBIBYTES", 1)
    assert bench_codec.gate() == code
    assert len(asked) == (3 if code else 1) and len(asked[0]) == 7 * len(bench_codec.wide_instruction_sets())
    assert ("codec slower than the gate" in capsys.readouterr().err) == bool(code)


@needs_wide
def test_a_row_that_is_slow_once_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter((table(0.4)[:1], table(1.0)[:1]))
    monkeypatch.setattr(bench_codec, "measure", lambda *_: next(measured))
    monkeypatch.setattr(bench_codec, "GATE_MEBIBYTES", 1)
    monkeypatch.setattr(bench_codec, "wide_instruction_sets", lambda: [table(1.0)[0]["isa"]])
    assert bench_codec.gate() == 0


def test_a_deadline_cuts_the_rounds_and_what_was_cut_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    a = Arrays(1024, "cpu")
    kernels = [Kernel(name, "torch", 1, "none", 4096, lambda: a.copy.copy_(a.values)) for name in ("one", "two")]
    assert [list(row) for row in measure(kernels, a, 2, 4096)] == [KEYS, KEYS]
    assert capsys.readouterr().err == ""
    kernels[0].run = lambda: compute_for(0.02)
    assert [row["kernel"] for row in measure(kernels, a, 2, 4096, time.perf_counter() + 0.01)] == ["one"]
    assert "0 rounds instead of 2\nnot measured for want of time: two (torch, none)" in capsys.readouterr().err


def test_a_run_shorter_than_a_tick_of_the_clock_is_repeated_until_it_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    monkeypatch.setattr(time, "thread_time", lambda: 0.01 * (len(runs) // 4))
    assert seconds(lambda: runs.append(1), "cpu") == 0.01 / 4 and len(runs) == 4


@needs_wide
def test_the_json_rows_have_the_promised_keys_kernels_and_peers(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    path, threads = tmp_path / "rows.json", torch.get_num_threads()
    monkeypatch.setattr(bench_codec, "STARTED", time.perf_counter())
    monkeypatch.setattr(sys, "argv", ["bench_codec.py", "--quick", "--mebibytes", "1", "--json", str(path)])
    try:
        bench_codec.main()
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(path.read_text())
    assert all(list(row) == KEYS for row in rows)
    assert {row["kernel"] for row in rows if row["isa"] == codec.best_instruction_set()} == set(AT_LEAST)
    assert {row["kernel"] for row in rows} - set(AT_LEAST) == {
        "libc_memcpy", "embedding_bag_4bit_prepack", "torch_eager_quantize4"}  # fmt: skip
