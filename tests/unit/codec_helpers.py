"""What the codec's tests share: payloads, data that hurts, and every implementation to hold against the reference."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pybind11
import pytest
import torch
from torch import Tensor

from sdp4bit_patches import codec, reference, wire
from sdp4bit_patches.wire import Layout, MessageFormat, StochasticRounding

SIZES = (0, 1, 2, 31, 32, 33, 63, 64, 65, 127, 129, 2047, 2049, 4097)
ROUNDING = StochasticRounding(seed=0x123456789ABCDEF, step=77, bucket=5, hop=1, source=3)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("g++") or shutil.which("c++")


@functools.cache
def emulated_cuda() -> ModuleType:
    """csrc/cuda compiled for the CPU, its threads run as coroutines: the same code where there is no GPU."""
    folder = Path(tempfile.mkdtemp(prefix="sdp4bit_emulation_"))
    library = folder / "_cuda_emulated.so"
    includes = ("tests/native/cuda_emulation", "csrc/include", "csrc/common")
    includes = [*(str(ROOT / path) for path in includes), pybind11.get_include(), sysconfig.get_paths()["include"]]
    flags = "-std=c++17 -O1 -fPIC -shared -ffp-contract=off -fvisibility=hidden -w -DSDP4BIT_MODULE=_cuda_emulated"
    sources = [str(ROOT / "csrc/bindings.cpp"), "-x", "c++", *map(str, sorted((ROOT / "csrc/cuda").glob("*.cu")))]
    command = [COMPILER, *flags.split(), *(f"-I{path}" for path in includes), *sources, "-o", str(library)]
    subprocess.run(command, check=True)
    spec = importlib.util.spec_from_file_location("_cuda_emulated", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def implementations() -> list:
    """One parameter an instruction set and device; those this machine lacks are skipped by name."""
    names = [*codec.INSTRUCTION_SETS[1:], "cuda_emulated", "cuda"]
    return [pytest.param(name, marks=pytest.mark.skipif(not is_here(name), reason=f"no {name} here")) for name in names]


def is_here(name: str) -> bool:
    if name == "cuda":
        return codec.NATIVE["cuda"] is not None and torch.cuda.is_available()
    if name == "cuda_emulated":
        return COMPILER is not None
    best = codec.best_instruction_set()
    if best == "reference":
        return False
    return codec.INSTRUCTION_SETS.index(name) <= codec.INSTRUCTION_SETS.index(best)


@contextmanager
def using(name: str) -> Iterator[str]:
    """The device of an implementation, with its instruction set forced."""
    if name == "cuda":
        yield "cuda"
        return
    if name == "cuda_emulated":
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(codec.NATIVE, "cpu", emulated_cuda())
            patch.setitem(codec.NEAREST, "cpu", emulated_cuda().Rounding())
            yield "cpu"
        return
    with codec.instruction_set(name):
        yield "cpu"


def empty_payload(layout: Layout, num_sources: int | None = None) -> Tensor:
    """A payload of garbage, so that a byte nobody wrote shows."""
    shape = (layout.num_bytes,) if num_sources is None else (num_sources, layout.num_bytes)
    return torch.full(shape, 0xA5, dtype=torch.uint8)


def quantized(values: Tensor, layout: Layout, rounding: StochasticRounding | None = None) -> Tensor:
    payload = empty_payload(layout)
    reference.quantize(values, payload, layout, rounding)
    return payload


def restored(payload: Tensor, layout: Layout, dtype: torch.dtype = torch.float32) -> Tensor:
    output = torch.empty(max((s.element_offset + s.num_elements for s in layout.segments), default=0), dtype=dtype)
    reference.dequantize(payload, output, layout)
    return output


def round_trip(values: Tensor, fmt: MessageFormat, rounding: StochasticRounding | None = None) -> Tensor:
    layout = wire.single_message(fmt, values.numel())
    return restored(quantized(values, layout, rounding), layout)


def ragged_layout(fmt: MessageFormat, sizes: tuple[int, ...] = (130, 0, 1, 257, 64), num_chunks: int = 2) -> Layout:
    """Shards of odd sizes in two chunks, sent to two destinations: odd element offsets and empty messages."""
    pieces = wire.split_shards(sizes, num_chunks, fmt.group_size)
    return wire.plan_exchange([wire.Stream(fmt, pieces)], [[0, 2, 4], [1, 3]]).layouts[0]


def adversarial_values(num_elements: int, seed: int = 0) -> Tensor:
    """Normal data with an outlier, zeros, a constant, denormals, tiny and huge values, -0, NaN and infinities."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(num_elements, generator=generator)
    spans = [1.0, 0.0, 1e-8, 1e-40, 1e-42, 5e37, 1e30, 1.0]
    for index in range(0, num_elements, 96):
        values[index : index + 96] *= spans[index // 96 % len(spans)]
    for position, special in ((5, 1e6), (40, -0.0), (700, torch.nan), (1500, torch.inf), (2040, -torch.inf)):
        if position < num_elements:
            values[position] = special
    if num_elements > 2304:
        values[2208:2304] = 0.7
    return values


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal to the bit, but that one NaN is as good as another."""
    actual = actual.cpu()
    nan = expected.isnan() if expected.is_floating_point() else torch.zeros_like(expected, dtype=torch.bool)
    assert torch.equal(actual.isnan() if nan.any() else nan, nan)
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[expected.element_size()]
    assert torch.equal(actual.view(integers)[~nan], expected.view(integers)[~nan])
