"""Measure AdamW against memcpy and against torch's own, interleaved in one run.

    python tools/bench_adamw.py [--quick] [--json rows.json] [--threads 2] [--rounds 9] [--isa avx2]

A rate counts what a step has to read and write once: 28 bytes an element in place (four tensors read, three written),
20 provisionally (four read, one written), 8 for memcpy, torch's `copy_` on one thread. A ratio to it is the median over
rounds; in each, every kernel runs right behind a memcpy, so that a slow second slows both sides. `x faster` divides
the median times of torch.optim.AdamW and of the row, both on as many threads. One thread is timed by its own processor
time, several by the clock. Where torch's square root is MKL's for AVX-512, other instruction sets have to imitate it
one element at a time; MKL_ENABLE_INSTRUCTIONS=AVX2 in the environment shows them as on a processor without AVX-512.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from sdp4bit_patches import adamw_reference, codec
from sdp4bit_patches.adamw import SECOND_MOMENTS, AdamWState, AdamWStep, adamw, adamw_provisional
from tools.atomic_files import atomic_files
from tools.codec_kernels import Arrays, Kernel, under
from tools.codec_timing import Row, measure
from tools.command_line import positive_int

STEP = AdamWStep(step=10, lr=1e-4, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
IN_PLACE_BYTES, PROVISIONAL_BYTES, COPY_BYTES = 28, 20, 8  # an element
TORCH = {"torch": {"foreach": False}, "torch_foreach": {"foreach": True}, "torch_fused": {"fused": True}}


class State:
    """A parameter's tensors, fp32[n], which the steps of this project share."""

    def __init__(self, num_elements: int) -> None:
        self.main, self.exp_avg, self.gradient = torch.randn(3, num_elements)
        self.exp_avg_sq = self.gradient.square()
        self.published = torch.empty(num_elements)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """In the order that the reference takes them."""
        return self.main, self.exp_avg, self.exp_avg_sq, self.gradient

    @property
    def arguments(self) -> tuple[list[AdamWState], list[torch.Tensor], list[AdamWStep]]:
        """Of the verbs, for this parameter alone."""
        return [AdamWState(*self.tensors[:3], self.published)], [self.gradient], [STEP]


def torch_step(gradient: torch.Tensor, **keywords: bool) -> Callable[[], object]:
    """A step of torch.optim.AdamW over a parameter of its own."""
    parameter = torch.nn.Parameter(torch.randn_like(gradient))
    parameter.grad = gradient
    betas = (STEP.beta1, STEP.beta2)
    return torch.optim.AdamW([parameter], STEP.lr, betas, STEP.eps, STEP.weight_decay, **keywords).step


def own_kernels(state: State, isa: str, num_threads: int) -> list[Kernel]:
    """Both verbs, the provisional one with every second moment."""
    n = state.main.numel()
    kernels = [Kernel("adamw", isa, num_threads, "none", IN_PLACE_BYTES * n,
                      under(isa, num_threads, adamw, *state.arguments))]  # fmt: skip
    for rule in SECOND_MOMENTS:
        call = under(isa, num_threads, adamw_provisional, *state.arguments, [rule])
        kernels.append(Kernel(f"adamw_provisional_{rule}", isa, num_threads, "none", PROVISIONAL_BYTES * n, call))
    return kernels


def peers(state: State, steps: dict[str, Callable[[], object]], num_threads: int) -> list[Kernel]:
    """Torch's three optimizers, and the plain-torch reference."""
    num_bytes = IN_PLACE_BYTES * state.main.numel()
    plain = {"reference": lambda: adamw_reference.adamw(*state.tensors, STEP)}
    return [
        Kernel(name, "torch", num_threads, "none", num_bytes, under("torch", num_threads, call))
        for name, call in (steps | plain).items()
    ]


def measured_rows(num_elements: int, threads: list[int], isa: str, num_rounds: int) -> list[Row]:
    """All kernels of one number of threads take turns."""
    state, a, rows = State(num_elements), Arrays(num_elements, "cpu"), []
    steps = {name: torch_step(state.gradient, **keywords) for name, keywords in TORCH.items()}
    for num_threads in threads:
        kernels = own_kernels(state, isa, num_threads) + peers(state, steps, num_threads)
        rows += compared(kernels, measure(kernels, a, num_rounds, COPY_BYTES * num_elements))
    return rows


def compared(kernels: list[Kernel], rows: list[Row]) -> list[Row]:
    """Rows with their milliseconds, and how many times as fast as each of torch's optimizers they are."""
    milliseconds = {id(row): kernel.num_bytes / (row["gigabytes_per_second"] * 1e6)
                    for kernel, row in zip(kernels, rows, strict=True)}  # fmt: skip
    torchs = {row["kernel"]: milliseconds[id(row)] for row in rows if row["kernel"] in TORCH}
    result = []
    for row in rows:
        own = milliseconds[id(row)]
        faster = {f"times_faster_than_{name}": round(other / own, 2) for name, other in torchs.items()}
        kept = {name: value for name, value in row.items() if name != "rounding"}
        result.append(kept | {"milliseconds": round(own, 2)} | faster)
    return result


def print_table(rows: list[Row]) -> None:
    """A line a row."""
    print(f"{'kernel':26} {'isa':7} threads {'ms':>8} {'GB/s':>7} {'/memcpy':>8}   x faster than torch, foreach, fused")
    for row in rows:
        faster = " ".join(f"{row[f'times_faster_than_{name}']:7.2f}" for name in TORCH)
        print(f"{row['kernel']:26} {row['isa']:7} {row['threads']:7} {row['milliseconds']:8.2f} "
              f"{row['gigabytes_per_second']:7.2f} {row['ratio_to_memcpy']:8.3f}   {faster}")  # fmt: skip


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one thread only")
    parser.add_argument("--isa", choices=codec.INSTRUCTION_SETS[1:], help="default: the widest of this processor")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--mebibytes", type=positive_int, default=64, help="size of the fp32 parameters (64)")
    parser.add_argument("--rounds", type=positive_int, default=9, help="measurements of each row (default 9)")
    parser.add_argument("--threads", type=positive_int, default=2, help="measure so many beside one (default 2)")
    return parser.parse_args()


def main() -> None:
    arguments = read_arguments()
    best = codec.best_instruction_set()
    if best == "reference":
        raise SystemExit("the native codec is not built: nothing to measure (install a C++ compiler, reinstall)")
    threads = [1] if arguments.quick else sorted({1, arguments.threads})
    rows = measured_rows(arguments.mebibytes * 2**18, threads, arguments.isa or best, arguments.rounds)
    print_table(rows)
    if arguments.json:
        with atomic_files(arguments.json) as [path]:
            path.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
