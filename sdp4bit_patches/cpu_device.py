"""Lets megatron-core run where there is no CUDA: gloo for NCCL, the CPU for the GPU.

megatron-core 0.16 asks ``torch.cuda`` for the current device, streams, events and random states, and writes
``device='cuda'`` into factory functions. :func:`install` answers those questions for the CPU. It has to run before
the first import of ``megatron.core`` (which binds some of the names at import) and does nothing where CUDA exists.

Two ways were weighed. A ``TorchFunctionMode`` that rewrites devices needs no list of names, but puts a Python frame
around every tensor operation. Replacing the few names that megatron-core uses costs nothing elsewhere, and a name
that is missing fails loudly with torch's own "not compiled with CUDA". The second was chosen.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _device

from sdp4bit_patches import cpu_matmul
from sdp4bit_patches.gloo_device import device_of_ranks

CPU = torch.device("cpu")

# Factory functions that megatron-core calls with device='cuda' or device=torch.cuda.current_device().
_FACTORIES = (
    "arange empty empty_like empty_strided eye full full_like linspace ones ones_like rand rand_like randint "
    "randint_like randn randn_like randperm tensor zeros zeros_like"
).split()

# torch's CPU tensor types under their CUDA spelling: megatron-core's optimizer compares these strings.
_TENSOR_TYPES = "Float Double Half BFloat16 Byte Char Short Int Long Bool".split()

# Parameters of glibc's mallopt(3); it takes no larger threshold than this one on 64-bit machines.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20

_installed = False


class Stream:
    """A CUDA stream where everything is already in order: all of its methods return at once."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        self.device = CPU

    def _nothing(self, *_args: Any, **_kwargs: Any) -> None:
        return None

    wait_stream = wait_event = synchronize = _nothing

    def record_event(self, event: Event | None = None) -> Event:
        """Return ``event`` (or a new one) as recorded now."""
        event = event or Event()
        event.record()
        return event

    def query(self) -> bool:
        """Return True: nothing is ever pending."""
        return True


class Event:
    """A CUDA event that is complete as soon as it is recorded; keeps host time for ``elapsed_time``."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        self._seconds = 0.0

    def record(self, _stream: Stream | None = None) -> None:
        """Remember the host's time."""
        self._seconds = time.perf_counter()

    def wait(self, _stream: Stream | None = None) -> None:
        """Return at once."""

    def synchronize(self) -> None:
        """Return at once."""

    def query(self) -> bool:
        """Return True: a recorded event is complete."""
        return True

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds of host time between this event and ``end``."""
        return (end._seconds - self._seconds) * 1e3


class _DefaultGenerators:
    """``torch.cuda.default_generators`` whose every entry is the CPU generator."""

    def __getitem__(self, _index: Any) -> torch.Generator:
        return torch.default_generator

    def __len__(self) -> int:
        return 1


def _is_cuda(device: Any) -> bool:
    """Whether ``device`` (a string, an ordinal or a torch.device) names a GPU."""
    if isinstance(device, bool) or device is None:
        return False
    if isinstance(device, int):
        return True
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, torch.device) and device.type == "cuda"


def _on_cpu(function: Callable) -> Callable:
    """``function`` with ``device=`` of a GPU turned into the CPU, and page-locked memory into ordinary memory."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return function(*args, **kwargs)

    return call


def _to(tensor_to: Callable) -> Callable:
    """``Tensor.to`` / ``Module.to`` for which a GPU as the first argument or as ``device=`` means the CPU."""

    @functools.wraps(tensor_to)
    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args and _is_cuda(args[0]):
            args = (CPU, *args[1:])
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        return tensor_to(self, *args, **kwargs)

    return to


def _type(tensor_type: Callable) -> Callable:
    """``Tensor.type`` that answers with the CUDA spelling and accepts it."""

    @functools.wraps(tensor_type)
    def type_(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is None:
            return tensor_type(self).replace("torch.", "torch.cuda.", 1)
        if isinstance(dtype, str):
            dtype = dtype.replace("torch.cuda.", "torch.", 1)
        return tensor_type(self, dtype, *args, **kwargs)

    return type_


def _manual_seed(seed: int) -> None:
    """Seed the generator itself: ``torch.manual_seed`` would call back into ``torch.cuda``."""
    torch.default_generator.manual_seed(int(seed))


def _get_rng_state(_device: Any = None, **_kwargs: Any) -> torch.Tensor:
    return torch.default_generator.get_state()


def _set_rng_state(state: torch.Tensor, _device: Any = None, **_kwargs: Any) -> None:
    torch.default_generator.set_state(state)


def _constant(value: Any) -> Callable:
    """A function that returns ``value``; a new one each time, since torch.compile's tables map each to one name."""
    return lambda *_args, **_kwargs: value


def _no_memory_stats(*_args: Any, **_kwargs: Any) -> dict[str, int]:
    return {}


def _cuda_answers() -> dict[str, Any]:
    """What ``torch.cuda.NAME`` becomes, for every NAME that megatron-core uses."""
    stream = Stream()
    generator = {
        "default_generators": _DefaultGenerators(),
        "manual_seed": _manual_seed,
        "manual_seed_all": _constant(None),  # called back by torch.manual_seed, which has seeded the generator already
        "get_rng_state": _get_rng_state,
        "set_rng_state": _set_rng_state,
    }
    order = {
        "Stream": Stream,
        "Event": Event,
        "stream": contextlib.nullcontext,
        "current_stream": _constant(stream),
        "default_stream": _constant(stream),
        "set_stream": _constant(None),
        "synchronize": _constant(None),
    }
    device = {
        "current_device": _constant(CPU),
        "set_device": _constant(None),
        "device_count": _constant(1),
        "get_device_capability": _constant((0, 0)),
        "empty_cache": _constant(None),
        "memory_stats": _no_memory_stats,
        "memory_allocated": _constant(0),
        "max_memory_allocated": _constant(0),
        "memory_reserved": _constant(0),
        "max_memory_reserved": _constant(0),
        "reset_peak_memory_stats": _constant(None),
        "_lazy_call": lambda callback, **_kwargs: callback(),
        "_lazy_init": _constant(None),
    }
    return generator | order | device


def _replace_cuda_names() -> None:
    for name, answer in _cuda_answers().items():
        setattr(torch.cuda, name, answer)
    torch.cuda.random.get_rng_state = _get_rng_state
    torch.cuda.random.set_rng_state = _set_rng_state
    torch.cuda.nvtx.range_push = torch.cuda.nvtx.range_pop = _constant(0)
    torch.cuda.nvtx.range = _constant(contextlib.nullcontext())
    for name in _TENSOR_TYPES:
        setattr(torch.cuda, f"{name}Tensor", getattr(torch, f"{name}Tensor"))


def _replace_split_sizes() -> None:
    """megatron-core's token dispatcher copies split sizes off the GPU into NumPy arrays, and CPU tensors not at all."""
    original = torch.distributed.all_to_all_single

    @functools.wraps(original)
    def all_to_all_single(*args: Any, **kwargs: Any) -> Any:
        for split_sizes in ("output_split_sizes", "input_split_sizes"):
            if isinstance(kwargs.get(split_sizes), torch.Tensor):
                kwargs[split_sizes] = kwargs[split_sizes].tolist()
        return original(*args, **kwargs)

    torch.distributed.all_to_all_single = all_to_all_single


def _replace_new_group() -> None:
    """megatron-core makes many groups, most of them of the same ranks, which seldom exchange at the same time."""
    original = torch.distributed.new_group

    @functools.wraps(original)
    def new_group(ranks: Any = None, *args: Any, **kwargs: Any) -> Any:
        with device_of_ranks(ranks).serves_new_groups():
            return original(ranks, *args, **kwargs)

    torch.distributed.new_group = new_group


def _replace_device_arguments() -> None:
    # `with torch.device(...)` knows the factories by identity and lists them at its first use, which may come later.
    _device._device_constructors()
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    torch.Tensor.to = _to(torch.Tensor.to)
    torch.Tensor.type = _type(torch.Tensor.type)
    torch.Tensor.cuda = lambda self, *_args, **_kwargs: self
    torch.Tensor.pin_memory = lambda self, *_args, **_kwargs: self
    torch.nn.Module.to = _to(torch.nn.Module.to)
    torch.nn.Module.cuda = lambda self, *_args, **_kwargs: self


def _drop_rng_fork_warning() -> None:
    """megatron-core warns when the CPU's generator moves inside a GPU generator's fork; here they are one."""
    message = "CPU RNG state changed within GPU RNG context"
    logging.getLogger("megatron.core.tensor_parallel.random").addFilter(lambda record: record.getMessage() != message)


def _keep_freed_memory() -> None:
    """Have glibc keep the memory of freed activations for the next micro-batch instead of giving it back.

    Otherwise each large tensor is new memory to the kernel, and a training step spends a quarter of its time on page
    faults. Where the C library has no ``mallopt`` this is left out: it changes speed only.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def notes() -> list[str]:
    """What is computed here in another way than torch would; for start-up reports."""
    if _installed and cpu_matmul.is_needed():
        return [
            "bf16 and fp16 matrices are multiplied in fp32 and rounded once: torch is slow at them on this processor"
        ]
    return []


def is_installed() -> bool:
    """Whether :func:`install` has turned this process's ``torch.cuda`` into answers for the CPU."""
    return _installed


def install() -> bool:
    """Make ``megatron.core`` run on the CPU where there is no CUDA; return whether it does.

    Does nothing (and returns False) on a machine with CUDA.

    Raises:
        RuntimeError: ``megatron.core`` was imported first and has bound the unanswered names already.
    """
    global _installed
    if _installed or torch.cuda.is_available():
        return _installed
    if "megatron.core.tensor_parallel.random" in sys.modules:
        raise RuntimeError("sdp4bit_patches.cpu_device.install() has to run before the first import of megatron.core")
    # torch.compile would build C++ at step 0 for functions that are a few elementwise operations.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    _replace_cuda_names()
    _replace_device_arguments()
    _replace_split_sizes()
    _replace_new_group()
    _drop_rng_fork_warning()
    _keep_freed_memory()
    if cpu_matmul.is_needed():
        cpu_matmul.install()
    _installed = True
    return True
