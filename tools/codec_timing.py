"""How tools/bench_codec.py takes times, and what its CPU rows have to reach."""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable

import torch
from tqdm import tqdm

from tools.codec_kernels import Arrays, Kernel, under

# What a CPU thread has to reach when it rounds to nearest, as a ratio to memcpy; AVX2 has to reach 0.9 of it.
AT_LEAST = {
    "quantize4_g128": 1.2,
    "quantize4_g128_hadamard32": 1.0,
    "quantize8_g128": 1.15,
    "dequantize4_add_fp32": 1.15,
    "dequantize_reduce_quantize_8to4_r4": 4.5,
    "quantize_difference4_g2048": 1.0,
    "dequantize4_add_bf16_g2048": 2.2,
}
SHARE = {"avx512": 1.0, "avx2": 0.9}
GATE = 0.5  # of "at least": what a busy machine takes away is no reason to fail

Row = dict[str, object]


def at_least(row: Row) -> float | None:
    """The ratio to memcpy that a row has to reach; None where nothing is asked."""
    asked = row["isa"] in SHARE and row["threads"] == 1 and row["rounding"] != "stochastic"
    needed = AT_LEAST.get(row["kernel"], 0.0) if asked else 0.0
    return round(needed * SHARE[row["isa"]], 3) if needed else None


def below_gate(rows: list[Row]) -> list[Row]:
    """The rows that miss the gate, GATE of `at_least`."""
    return [row for row in rows if at_least(row) and row["ratio_to_memcpy"] < GATE * at_least(row)]


def gate_sentence(rows: list[Row]) -> str:
    """What is said of rows below the gate."""
    named = (f"{row['kernel']} with {row['isa']} reached {row['ratio_to_memcpy']:.3f} of memcpy's rate, "
             f"{GATE * at_least(row):.3f} is half of what is asked" for row in rows)  # fmt: skip
    return f"codec slower than the gate: {'; '.join(named)} (docs/codec_performance.md has the rates that were seen)"


def seconds(run: Callable[[], object], device: str, num_threads: int = 1) -> float:
    """One run's time. A single thread's is its processor time, which other processes do not add to.

    Some kernels count that in whole ticks: a run that ends before the clock has moved is repeated until it has.
    """
    if device == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    clock = time.thread_time if num_threads == 1 else time.perf_counter
    begin = clock()
    for num_runs in itertools.count(1):
        run()
        if taken := clock() - begin:
            return taken / num_runs


def measure(
    kernels: list[Kernel], a: Arrays, num_rounds: int, copied: int, deadline: float = float("inf")
) -> list[Row]:
    """Rows of medians; each run of a kernel stands right behind a run of memcpy, and gives one ratio.

    There is one round to warm up and `num_rounds` that count. None begins a kernel once time.perf_counter() has passed
    `deadline`: what was cut then is said on stderr, and a kernel without any time has no row.
    """
    source = a.values if a.device == "cuda" else a.values.clone()
    copy = under("torch", 1, torch.empty_like(source).copy_, source)
    times: list[list[tuple[float, float]]] = [[] for _ in kernels]
    turns = [index for _ in range(num_rounds + 1) for index in range(len(kernels))]
    for index in tqdm(turns, desc="runs", disable=not sys.stderr.isatty()):
        if time.perf_counter() > deadline:
            break
        threads = kernels[index].threads
        times[index].append((seconds(copy, a.device, threads), seconds(kernels[index].run, a.device, threads)))
    _say_what_was_cut(kernels, times, num_rounds)
    return [row_of(kernel, pairs[len(pairs) > 1 :], copied) for kernel, pairs in zip(kernels, times, strict=True)
            if pairs]  # fmt: skip


def _say_what_was_cut(kernels: list[Kernel], times: list[list[tuple[float, float]]], num_rounds: int) -> None:
    fewest = min(map(len, times), default=num_rounds + 1)
    if fewest > num_rounds:
        return
    print(f"the machine is busy: {max(fewest - 1, 0)} rounds instead of {num_rounds}", file=sys.stderr)
    absent = [f"{k.name} ({k.isa}, {k.rounding})" for k, pairs in zip(kernels, times, strict=True) if not pairs]
    if absent:
        print(f"not measured for want of time: {', '.join(absent)}", file=sys.stderr)


def row_of(kernel: Kernel, pairs: list[tuple[float, float]], copied: int) -> Row:
    """One row of the JSON output, from pairs of the seconds of a copy of `copied` bytes and of the kernel."""
    rate = statistics.median(kernel.num_bytes / own for _, own in pairs)
    ratio = statistics.median(kernel.num_bytes / own / (copied / copy) for copy, own in pairs)
    return {
        "kernel": kernel.name, "isa": kernel.isa, "threads": kernel.threads, "rounding": kernel.rounding,
        "gigabytes_per_second": round(rate / 1e9, 3), "ratio_to_memcpy": round(ratio, 3),
    }  # fmt: skip
