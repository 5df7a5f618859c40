"""Measure the codec against memcpy and against named peers, interleaved in one run.

    python tools/bench_codec.py [--quick] [--json rows.json] [--threads 1] [--mebibytes 256] [--device cpu|cuda]

A rate counts the fp32 elements that a kernel handles, 4 bytes each (`dequantize_reduce_quantize_8to4_r4` handles those
of its four sources), whatever it really reads and writes; memcpy's rate is that of copying one such array. A ratio is
the median over rounds; in each, every kernel runs right behind a memcpy, so that a slow second slows both sides. One
thread is timed by its own processor time. On CUDA a rate counts the bytes read and written, the copy's too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from sdp4bit_patches import codec, wire  # noqa: E402
from sdp4bit_patches.wire import MessageFormat, StochasticRounding  # noqa: E402

ROUNDING = StochasticRounding(seed=1, step=1)
STARTED = time.perf_counter()
# Seconds after the start at which --quick begins no further round of the codec and of its peers: it has to end within
# 50 s on a machine that others use too.
QUICK_UNTIL = (26.0, 36.0)
MIN_ROUNDS = 3
# What a CPU thread has to reach, as a ratio to memcpy; AVX2 has to reach 0.9 of it.
AT_LEAST = {
    "quantize4_g128": 1.2,
    "quantize4_g128_hadamard32": 1.0,
    "quantize8_g128": 1.15,
    "dequantize4_add_fp32": 1.15,
    "dequantize_reduce_quantize_8to4_r4": 4.5,
    "quantize_difference4_g2048": 1.0,
    "dequantize4_add_bf16_g2048": 2.2,
}


@dataclass
class Kernel:
    """One row: `run` handles `num_bytes` bytes, by the convention above."""

    name: str
    isa: str
    threads: int
    rounding: str
    num_bytes: int
    run: Callable[[], object]


class Arrays:
    """The tensors that all kernels share: n elements, drawn from a normal distribution."""

    def __init__(self, num_elements: int, device: str) -> None:
        self.n, self.device = num_elements, device
        self.values = torch.randn(num_elements, device=device)
        self.copy = torch.empty_like(self.values)
        self.model = (self.values * 0.999).to(torch.bfloat16)
        self.payload = torch.empty(num_elements + num_elements // 8 + 64, dtype=torch.uint8, device=device)

    def layout(self, bits: int, group_size: int, hadamard: int = 0) -> codec.PreparedLayout:
        return codec.prepare(wire.single_message(MessageFormat(bits, group_size, hadamard), self.n), self.device)

    def sources(self, layout: codec.PreparedLayout, num_sources: int) -> Tensor:
        payloads = torch.empty(num_sources, layout.num_bytes, dtype=torch.uint8, device=self.device)
        for payload in payloads:
            codec.quantize(self.values, payload, layout)
        return payloads


@dataclass
class Verb:
    """A row's name, the bytes it counts on the CPU, the bytes it really moves, and its call.

    `call` takes a rounding where `rounds` says so.
    """

    name: str
    handled: int
    moved: int
    call: Callable[..., object]
    rounds: bool = True


def verbs(a: Arrays) -> list[Verb]:
    """Every row of the table, over the same arrays."""
    g4, g4h, g8, g8h = a.layout(4, 128), a.layout(4, 128, 32), a.layout(8, 128), a.layout(8, 128, 32)
    g4w, sources = a.layout(4, 2048), a.sources(g8h, 4)
    codes, codes_h, weights = a.sources(g4, 1)[0], a.sources(g4h, 1)[0], a.sources(g4w, 1)[0]
    fp32, b4, b8, bw = 4 * a.n, g4.num_bytes, g8.num_bytes, g4w.num_bytes
    out = a.payload
    return [
        Verb("quantize4_g128", fp32, fp32 + b4, lambda r: codec.quantize(a.values, out, g4, r)),
        Verb("quantize4_g128_hadamard32", fp32, fp32 + b4, lambda r: codec.quantize(a.values, out, g4h, r)),
        Verb("quantize8_g128", fp32, fp32 + b8, lambda r: codec.quantize(a.values, out, g8, r)),
        Verb("quantize8_g128_hadamard32", fp32, fp32 + b8, lambda r: codec.quantize(a.values, out, g8h, r)),
        Verb("dequantize4_fp32", fp32, fp32 + b4, lambda: codec.dequantize(codes, a.copy, g4), False),
        Verb("dequantize4_fp32_hadamard32", fp32, fp32 + b4, lambda: codec.dequantize(codes_h, a.copy, g4h), False),
        Verb("dequantize4_add_fp32", fp32, 2 * fp32 + b4, lambda: codec.dequantize_add(codes, a.copy, g4), False),
        Verb("dequantize_reduce8_r4_hadamard32", 4 * fp32, fp32 + 4 * b8,
             lambda: codec.dequantize_reduce(sources, a.copy, g8h), False),
        Verb("dequantize_reduce_quantize_8to4_r4", 4 * fp32, 4 * b8 + b4,
             lambda r: codec.dequantize_reduce_quantize(sources, out, g8h, g4h, r)),
        Verb("quantize_difference4_g2048", fp32, fp32 + fp32 // 2 + bw,
             lambda r: codec.quantize_difference(a.values, a.model, out, g4w, r)),
        Verb("dequantize4_add_bf16_g2048", fp32, fp32 + bw, lambda: codec.dequantize_add(weights, a.model, g4w), False),
    ]  # fmt: skip


def under(isa: str, num_threads: int, call: Callable[..., object], *arguments: object) -> Callable[[], object]:
    def run() -> None:
        torch.set_num_threads(num_threads)
        with codec.instruction_set(isa) if isa in codec.INSTRUCTION_SETS else nullcontext():
            call(*arguments)

    return run


def codec_kernels(rows: list[Verb], isa: str, num_threads: int) -> list[Kernel]:
    kernels = []
    for row in rows:
        num_bytes = row.moved if isa == "cuda" else row.handled
        for rounding, arguments in (
            (("nearest", (None,)), ("stochastic", (ROUNDING,))) if row.rounds else (("none", ()),)
        ):
            run = under(isa, num_threads, row.call, *arguments)
            kernels.append(Kernel(row.name, isa, num_threads, rounding, num_bytes, run))
    return kernels


def torch_eager_quantize4(values: Tensor) -> Tensor:
    groups = values.view(-1, 128)
    scales = groups.abs().amax(dim=1, keepdim=True) / 7
    codes = torch.round(groups / scales).to(torch.int8).view(-1, 2)
    return (codes[:, 0] << 4) | (codes[:, 1] & 15)


def peers(a: Arrays) -> list[Kernel]:
    rows = a.values.view(-1, 128)
    prepack = under("torch", 1, torch.ops.quantized.embedding_bag_4bit_prepack, rows)
    eager = under("torch", 1, torch_eager_quantize4, a.values)
    return [
        Kernel("embedding_bag_4bit_prepack", "torch", 1, "nearest", 4 * a.n, prepack),
        Kernel("torch_eager_quantize4", "torch", 1, "nearest", 4 * a.n, eager),
    ]


def seconds(run: Callable[[], object], device: str, num_threads: int = 1) -> float:
    """One run's time. A single thread's is its processor time, which other processes do not add to."""
    if device == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    clock = time.thread_time if num_threads == 1 else time.perf_counter
    begin = clock()
    run()
    return clock() - begin


def measure(
    kernels: list[Kernel], a: Arrays, num_rounds: int, copied: int, until: float = float("inf")
) -> list[dict[str, object]]:
    """Rows of medians; each run of a kernel stands right behind a run of memcpy, and gives one ratio.

    There are `num_rounds` rounds, or as many (but MIN_ROUNDS) as begin within `until` seconds of the start.
    """
    source = a.values if a.device == "cuda" else a.values.clone()
    target = torch.empty_like(source)
    times: list[list[tuple[float, float]]] = [[] for _ in kernels]
    for kernel in kernels:
        kernel.run()
    for done in tqdm(range(num_rounds), desc="rounds", disable=not sys.stderr.isatty()):
        if done >= MIN_ROUNDS and time.perf_counter() - STARTED > until:
            print(f"the machine is busy: {done} rounds instead of {num_rounds}", file=sys.stderr)
            break
        for kernel, pairs in zip(kernels, times, strict=True):
            copy = under("torch", 1, target.copy_, source)
            pairs.append((seconds(copy, a.device, kernel.threads), seconds(kernel.run, a.device, kernel.threads)))
    return [row_of(kernel, pairs, copied) for kernel, pairs in zip(kernels, times, strict=True)]


def row_of(kernel: Kernel, pairs: list[tuple[float, float]], copied: int) -> dict[str, object]:
    rate = statistics.median(kernel.num_bytes / own for _, own in pairs)
    ratio = statistics.median(kernel.num_bytes / own / (copied / copy) for copy, own in pairs)
    needed = AT_LEAST.get(kernel.name, 0.0) * (0.9 if kernel.isa == "avx2" else 1.0)
    counts = kernel.isa in ("avx2", "avx512") and kernel.threads == 1 and kernel.rounding != "stochastic"
    return {
        "kernel": kernel.name, "isa": kernel.isa, "threads": kernel.threads, "rounding": kernel.rounding,
        "gigabytes_per_second": round(rate / 1e9, 3), "ratio_to_memcpy": round(ratio, 3),
        "at_least": round(needed, 3) if needed and counts else None,
    }  # fmt: skip


def print_table(rows: list[dict[str, object]]) -> None:
    exact = [row for row in rows if row["rounding"] == "nearest"]
    nearest = {(row["kernel"], row["isa"], row["threads"]): row["gigabytes_per_second"] for row in exact}
    print(f"{'kernel':36} {'isa':8} threads {'rounding':10} {'GB/s':>8} {'/memcpy':>8} {'at least':>9}  to nearest")
    for row in rows:
        at_least = "" if row["at_least"] is None else f"{row['at_least']:.3f}" + ("" if meets(row) else " MISSED")
        key = (row["kernel"], row["isa"], row["threads"])
        slower = f"{nearest[key] / row['gigabytes_per_second']:.2f}x" if row["rounding"] == "stochastic" else ""
        print(f"{row['kernel']:36} {row['isa']:8} {row['threads']:7} {row['rounding']:10} "
              f"{row['gigabytes_per_second']:8.2f} {row['ratio_to_memcpy']:8.3f} {at_least:>9}  {slower}")  # fmt: skip


def meets(row: dict[str, object]) -> bool:
    return row["at_least"] is None or row["ratio_to_memcpy"] >= row["at_least"]


def cpu_rows(quick: bool, mebibytes: int, num_threads: int) -> list[dict[str, object]]:
    a = Arrays(mebibytes * 2**18, "cpu")
    table, best = verbs(a), codec.best_instruction_set()
    if best == "reference":
        raise SystemExit("the native codec is not built: nothing to measure (install a C++ compiler, reinstall)")
    gated = [row for row in table if row.name in AT_LEAST] if quick else table
    isas = codec.INSTRUCTION_SETS[2 : codec.INSTRUCTION_SETS.index(best) + 1]
    kernels = [kernel for isa in reversed(isas) for kernel in codec_kernels(gated, isa, 1)]
    until, until_peers = QUICK_UNTIL if quick else (float("inf"), float("inf"))
    rows = measure(kernels, a, 9 if quick else 21, 4 * a.n, until)
    slow = peers(a) if quick else [*codec_kernels(table, "scalar", 1), *peers(a)]
    rows += measure(slow, a, 4 if quick else 9, 4 * a.n, until_peers)
    if num_threads > 1 and not quick:
        rows += measure(codec_kernels(table, best, num_threads), a, 9, 4 * a.n)
    return rows


def cuda_rows(quick: bool) -> list[dict[str, object]]:
    rows = []
    for mebibytes in (64, 1024):
        a = Arrays(mebibytes * 2**18, "cuda")
        measured = measure(codec_kernels(verbs(a), "cuda", 1), a, 9 if quick else 51, 8 * a.n)
        rows += [row | {"mebibytes": mebibytes} for row in measured]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the rows of the table only, up to 9 rounds, under 50 s")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--mebibytes", type=int, default=256, help="size of the fp32 array on the CPU (default 256)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="also measure so many threads")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not (torch.cuda.is_available() and codec.NATIVE["cuda"]):
        raise SystemExit("--device cuda: needs a GPU and sdp4bit_patches._cuda (reinstall with nvcc on PATH)")
    if arguments.device == "cuda":
        rows = cuda_rows(arguments.quick)
    else:
        rows = cpu_rows(arguments.quick, arguments.mebibytes, arguments.threads)
    print_table(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
