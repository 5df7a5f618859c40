"""Measure the codec against memcpy and against named peers, interleaved in one run.

    python tools/bench_codec.py [--quick | --gate] [--json rows.json] [--threads 2] [--rounds 9] [--device cuda]

A rate counts the fp32 elements that a kernel handles, 4 bytes each (`dequantize_reduce_quantize_8to4_r4` handles those
of its four sources), whatever it really reads and writes; memcpy's rate is that of copying one such array by torch's
`copy_` on one thread (`libc_memcpy` is the C library's, which may write past the caches). A ratio is the median over
rounds; in each, every kernel runs right behind a memcpy, so that a slow second slows both sides. One thread is timed
by its own processor time. On CUDA a rate counts the bytes read and written, the copy's too.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()  # before torch is loaded, which takes seconds on a busy machine

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from sdp4bit_patches import codec
from tools.atomic_files import atomic_files
from tools.codec_kernels import Arrays, codec_kernels, peers, verbs
from tools.codec_timing import AT_LEAST, Row, at_least, below_gate, gate_sentence, measure
from tools.command_line import positive_int

# --quick ends within 50 s of its start; seconds after it at which the codec's and the peers' last runs begin.
QUICK_UNTIL = (30.0, 38.0)
GATE_UNTIL = 20.0
GATE_MEBIBYTES = 64


def wide_instruction_sets() -> list[str]:
    """The instruction sets with something to reach that this machine has, the widest first."""
    best = codec.best_instruction_set()
    if best == "reference":
        return []
    return list(reversed(codec.INSTRUCTION_SETS[2 : codec.INSTRUCTION_SETS.index(best) + 1]))


def quick_rows(mebibytes: int) -> list[Row]:
    """The rows that have something to reach, and the peers, within 50 s."""
    a = Arrays(mebibytes * 2**18, "cpu")
    table = [row for row in verbs(a) if row.name in AT_LEAST]
    kernels = [kernel for isa in wide_instruction_sets() for kernel in codec_kernels(table, isa, 1)]
    rows = measure(kernels, a, 9, 4 * a.n, STARTED + QUICK_UNTIL[0])
    return rows + measure(peers(a), a, 3, 4 * a.n, STARTED + QUICK_UNTIL[1])


def cpu_rows(mebibytes: int, num_threads: int, num_rounds: int) -> list[Row]:
    """Every verb, every instruction set, both roundings; the best instruction set with more threads, too."""
    a = Arrays(mebibytes * 2**18, "cpu")
    table, best = verbs(a), codec.best_instruction_set()
    kernels = [kernel for isa in wide_instruction_sets() for kernel in codec_kernels(table, isa, 1)]
    rows = measure(kernels, a, num_rounds, 4 * a.n)
    rows += measure([*codec_kernels(table, "scalar", 1), *peers(a)], a, num_rounds, 4 * a.n)
    if num_threads > 1:
        rows += measure(codec_kernels(table, best, num_threads), a, num_rounds, 4 * a.n)
    return rows


def cuda_rows(quick: bool) -> list[Row]:
    """Every verb at 64 MiB and 1 GiB; the size stands in the kernel's name."""
    rows = []
    for mebibytes in (64, 1024):
        a = Arrays(mebibytes * 2**18, "cuda")
        measured = measure(codec_kernels(verbs(a), "cuda", 1), a, 9 if quick else 51, 8 * a.n)
        rows += [row | {"kernel": f"{row['kernel']}_{mebibytes}mib"} for row in measured]
    return rows


def gate() -> int:
    """0, or 1 and a sentence where a row stays below half of what it has to reach, measured again twice."""
    if not wide_instruction_sets():
        print(f"codec gate: nothing to measure, the best instruction set here is {codec.best_instruction_set()}")
        return 0
    a = Arrays(GATE_MEBIBYTES * 2**18, "cpu")
    table = [row for row in verbs(a) if row.name in AT_LEAST]
    kernels = [k for isa in wide_instruction_sets() for k in codec_kernels(table, isa, 1, ("nearest",))]
    slow: list[Row] = []
    for num_rounds in (3, 5, 9):
        slow = below_gate(measure(kernels, a, num_rounds, 4 * a.n, STARTED + GATE_UNTIL))
        names = {(row["kernel"], row["isa"]) for row in slow}
        kernels = [kernel for kernel in kernels if (kernel.name, kernel.isa) in names]
        if not kernels:
            print("codec gate: every row reaches half of what is asked")
            return 0
    print(gate_sentence(slow), file=sys.stderr)
    return 1


def print_table(rows: list[Row]) -> None:
    """A line a row, beside what it has to reach, and what stochastic rounding costs."""
    nearest = {(row["kernel"], row["isa"], row["threads"]): row["gigabytes_per_second"]
               for row in rows if row["rounding"] == "nearest"}  # fmt: skip
    print(f"{'kernel':36} {'isa':8} threads {'rounding':10} {'GB/s':>8} {'/memcpy':>8} {'at least':>9}  to nearest")
    for row in rows:
        needed, key = at_least(row), (row["kernel"], row["isa"], row["threads"])
        asked = "" if needed is None else f"{needed:.3f}" + (" MISSED" if row["ratio_to_memcpy"] < needed else "")
        slower = f"{nearest[key] / row['gigabytes_per_second']:.2f}x" if row["rounding"] == "stochastic" else ""
        print(f"{row['kernel']:36} {row['isa']:8} {row['threads']:7} {row['rounding']:10} "
              f"{row['gigabytes_per_second']:8.2f} {row['ratio_to_memcpy']:8.3f} {asked:>9}  {slower}")  # fmt: skip


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the rows of the table only, up to 9 rounds, under 50 s")
    parser.add_argument("--gate", action="store_true", help="fail where a row is below half of what it has to reach")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--mebibytes", type=positive_int, default=256, help="size of the fp32 array (CPU; 256)")
    parser.add_argument("--rounds", type=positive_int, default=9, help="measurements of each CPU row (default 9)")
    parser.add_argument("--threads", type=positive_int, default=torch.get_num_threads(), help="measure so many, too")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args()


def measured_rows(arguments: argparse.Namespace) -> list[Row]:
    if arguments.device == "cuda":
        if not (torch.cuda.is_available() and codec.NATIVE["cuda"]):
            raise SystemExit("--device cuda: needs a GPU and sdp4bit_patches._cuda (reinstall with nvcc on PATH)")
        return cuda_rows(arguments.quick)
    if codec.best_instruction_set() == "reference":
        raise SystemExit("the native codec is not built: nothing to measure (install a C++ compiler, reinstall)")
    if arguments.quick:
        return quick_rows(arguments.mebibytes)
    return cpu_rows(arguments.mebibytes, arguments.threads, arguments.rounds)


def main() -> None:
    arguments = read_arguments()
    if arguments.gate:
        raise SystemExit(gate())
    rows = measured_rows(arguments)
    print_table(rows)
    if arguments.json:
        with atomic_files(arguments.json) as [path]:
            path.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
