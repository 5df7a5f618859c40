"""What tools/bench_codec.py runs: every verb of the codec over shared arrays, and the peers it is held against."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from sdp4bit_patches import codec, wire
from sdp4bit_patches.reference import NodeSum, Own
from sdp4bit_patches.wire import MessageFormat, StochasticRounding

ROUNDING = StochasticRounding(seed=1, step=1)


@dataclass
class Kernel:
    """One row: `run` handles `num_bytes` bytes, by the convention of tools/bench_codec.py."""

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
    own = Own(0, a.values)
    in_node = Own(0, NodeSum(sources[:2], g8h, Own(0, a.copy)))  # the two reductions of an exchange between 2x2 ranks
    halves = a.sources(g4h, 2)
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
        Verb("dequantize_reduce4_node8_own_hadamard32", fp32, 2 * fp32 + b8 + b4,
             lambda: codec.dequantize_reduce(halves, a.copy, g4h, in_node), False),
        Verb("dequantize_reduce_quantize_8to4_own", fp32, fp32 + b8 + b4,
             lambda r: codec.dequantize_reduce_quantize(sources[:2], out, g8h, g4h, r, own)),
        Verb("quantize_difference4_g2048", fp32, fp32 + fp32 // 2 + bw,
             lambda r: codec.quantize_difference(a.values, a.model, out, g4w, r)),
        Verb("dequantize4_add_bf16_g2048", fp32, fp32 + bw, lambda: codec.dequantize_add(weights, a.model, g4w), False),
    ]  # fmt: skip


def under(isa: str, num_threads: int, call: Callable[..., object], *arguments: object) -> Callable[[], object]:
    """`call` with an instruction set forced and a number of threads set."""

    def run() -> None:
        torch.set_num_threads(num_threads)
        with codec.instruction_set(isa) if isa in codec.INSTRUCTION_SETS else nullcontext():
            call(*arguments)

    return run


def codec_kernels(
    rows: list[Verb], isa: str, num_threads: int, roundings: tuple[str, ...] = ("nearest", "stochastic")
) -> list[Kernel]:
    """A kernel for each verb and rounding; verbs that do not round have the rounding "none"."""
    names = {"nearest": (None,), "stochastic": (ROUNDING,), "none": ()}
    return [
        Kernel(row.name, isa, num_threads, rounding, row.moved if isa == "cuda" else row.handled,
               under(isa, num_threads, row.call, *names[rounding]))
        for row in rows
        for rounding in (roundings if row.rounds else ("none",))
    ]  # fmt: skip


def torch_eager_quantize4(values: Tensor) -> Tensor:
    groups = values.view(-1, 128)
    scales = groups.abs().amax(dim=1, keepdim=True) / 7
    codes = torch.round(groups / scales).to(torch.int8).view(-1, 2)
    return (codes[:, 0] << 4) | (codes[:, 1] & 15)


def libc_memcpy(target: Tensor, source: Tensor) -> None:
    copy = ctypes.CDLL(None).memcpy
    copy(*map(ctypes.c_void_p, (target.data_ptr(), source.data_ptr())), ctypes.c_size_t(source.nbytes))


def peers(a: Arrays) -> list[Kernel]:
    """PyTorch's own 4-bit quantizer, the same in eager torch, and the C library's copy."""
    prepack = under("torch", 1, torch.ops.quantized.embedding_bag_4bit_prepack, a.values.view(-1, 128))
    eager = under("torch", 1, torch_eager_quantize4, a.values)
    return [
        Kernel("libc_memcpy", "libc", 1, "none", 4 * a.n, under("libc", 1, libc_memcpy, a.copy, a.values)),
        Kernel("embedding_bag_4bit_prepack", "torch", 1, "nearest", 4 * a.n, prepack),
        Kernel("torch_eager_quantize4", "torch", 1, "nearest", 4 * a.n, eager),
    ]
