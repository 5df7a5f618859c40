"""The codec's verbs over torch tensors, by the native modules `_cpu` and `_cuda`, chosen by the tensors' device.

    layout = codec.prepare(wire.single_message(wire.MessageFormat(4, 128, hadamard=32), gradient.numel()), "cpu")
    payload = torch.empty(layout.num_bytes, dtype=torch.uint8)
    codec.quantize(gradient, payload, layout, wire.StochasticRounding(seed=1, step=7))
    codec.dequantize(payload, gradient, layout)

Every output is the caller's: no verb allocates, synchronizes, or holds the GIL while it computes. On CUDA work is
queued on the current stream, on the CPU up to `torch.get_num_threads()` threads take part; neither changes a bit of
the result. Tensors are 1-D and contiguous, payloads uint8 and start on 16 bytes; a `ValueError` says what is wrong
with an argument. `reference` defines the arithmetic and takes over, saying so once, where no native module was built.

SDP4BIT_ISA=scalar|avx2|avx512 in the environment forces an instruction set on the CPU; all of them give the same bytes.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib import import_module, util
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sdp4bit_patches import reference
from sdp4bit_patches.reference import Own
from sdp4bit_patches.wire import ALIGNMENT, Layout, StochasticRounding, check_rounding

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
SCALE_TYPES = {"fp32": 0, "bf16": 1}
ONE_BIT_SCALES = {"mean": 0, "absmax": 1}
INSTRUCTION_SETS = ("best", "scalar", "avx2", "avx512")


def _native(device_type: str) -> ModuleType | None:
    """`_cpu` or `_cuda`; None where it was not built. A module that was built and does not load is an error."""
    name = f"sdp4bit_patches._{device_type}"
    return import_module(name) if util.find_spec(name) else None


NATIVE = {device_type: _native(device_type) for device_type in ("cpu", "cuda")}
NEAREST = {device_type: module.Rounding() for device_type, module in NATIVE.items() if module}


@functools.cache
def warn_about_reference(device_type: str) -> None:
    """Say once that a native module is absent, and what to do about it."""
    remedy = "a C++ compiler" if device_type == "cpu" else "nvcc"
    sentence = f"sdp4bit_patches._{device_type} was not built: the slow plain-torch reference runs instead"
    warnings.warn(f"{sentence} (reinstall with {remedy} on PATH)", RuntimeWarning, stacklevel=4)


def _require(valid: bool, sentence: str) -> None:
    if not valid:
        raise ValueError(sentence)


class PreparedLayout:
    """A `wire.Layout` with its table on a device. Make it once (it allocates and copies), use it in every step."""

    def __init__(self, layout: Layout, device: torch.device | str) -> None:
        self.layout = layout
        self.device = torch.device(device)
        self.num_bytes = layout.num_bytes
        segments = layout.segments
        self.num_elements = max((s.element_offset + s.num_elements for s in segments), default=0)
        self.sizes = tuple(s.num_elements for s in segments)
        first = min((s.element_offset for s in segments), default=0)
        _require(first >= 0, f"layout: a segment begins at element {first}, before the tensor does")
        table = torch.tensor([list(s) for s in segments], dtype=torch.int64).reshape(-1, 4)
        self._table = table.to(self.device)
        self.module = NATIVE.get(self.device.type)
        if self.module is None:
            warn_about_reference(self.device.type)
            return
        fmt, largest = layout.format, max(self.sizes, default=0)
        kinds = (SCALE_TYPES[fmt.scale_dtype], ONE_BIT_SCALES[fmt.one_bit_scale])
        where = (self._table.data_ptr(), len(segments), largest)
        self.native = self.module.Layout(fmt.bits, fmt.group_size, fmt.hadamard, *kinds, *where)


def prepare(layout: Layout, device: torch.device | str) -> PreparedLayout:
    """Put a layout's table on `device`, for any number of calls."""
    return PreparedLayout(layout, device)


_forced_isa = os.environ.get("SDP4BIT_ISA", "best")


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Use `name` (best, scalar, avx2 or avx512) on the CPU within the context; the whole process is affected."""
    global _forced_isa
    _require(name in INSTRUCTION_SETS, f"instruction set {name!r}: use one of {INSTRUCTION_SETS}")
    before, _forced_isa = _forced_isa, name
    try:
        yield
    finally:
        _forced_isa = before


def best_instruction_set() -> str:
    """The widest instruction set that `_cpu` has code for on this machine; "reference" where `_cpu` was not built."""
    return INSTRUCTION_SETS[NATIVE["cpu"].best_isa()] if NATIVE["cpu"] else "reference"


def execution(device: torch.device) -> Any:
    """How a native verb runs on `device`: the current stream, or the threads and the instruction set."""
    if device.type == "cuda":
        return NATIVE["cuda"].Execution(torch.cuda.current_stream(device).cuda_stream, 0, 0)
    _require(_forced_isa in INSTRUCTION_SETS, f"SDP4BIT_ISA={_forced_isa}: use one of {INSTRUCTION_SETS}")
    return NATIVE["cpu"].Execution(0, torch.get_num_threads(), INSTRUCTION_SETS.index(_forced_isa))


def _rounding(layout: PreparedLayout, rounding: StochasticRounding | None) -> Any:
    check_rounding(layout.layout.format, rounding)
    if rounding is None:
        return NEAREST[layout.device.type]
    return layout.module.Rounding(rounding.seed, rounding.step, rounding.bucket, rounding.hop, rounding.source)


def on_device(device: torch.device) -> Any:
    """The context in which a native verb's kernel is launched."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _same_device(tensor: Tensor, layout: PreparedLayout) -> bool:
    device = layout.device
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)


def _check_elements(name: str, tensor: Tensor, layout: PreparedLayout, dtypes: tuple[torch.dtype, ...]) -> None:
    _require(tensor.dtype in dtypes, f"{name} is {tensor.dtype}: use one of {dtypes}")
    _require(_same_device(tensor, layout), f"{name} is on {tensor.device}, its layout on {layout.device}: move one")
    flat = tensor.dim() == 1 and tensor.is_contiguous()
    _require(flat, f"{name} has shape {tuple(tensor.shape)}, strides {tensor.stride()}: use a contiguous 1-D tensor")
    enough = tensor.numel() >= layout.num_elements
    _require(enough, f"{name} has {tensor.numel()} elements, its layout needs {layout.num_elements}")


def _check_payload(name: str, payload: Tensor, layout: PreparedLayout, num_dims: int = 1) -> None:
    _require(payload.dtype == torch.uint8, f"{name} is {payload.dtype}: use torch.uint8")
    _require(_same_device(payload, layout), f"{name} is on {payload.device}, its layout on {layout.device}: move one")
    flat = payload.dim() == num_dims and (payload.is_contiguous() or num_dims == 2 and payload.stride(1) == 1)
    shapes = "a contiguous 1-D tensor" if num_dims == 1 else "a 2-D tensor [sources, bytes] with contiguous rows"
    _require(flat, f"{name} has shape {tuple(payload.shape)}, strides {payload.stride()}: use {shapes}")
    enough = payload.shape[-1] >= layout.num_bytes and payload.shape[0] >= num_dims - 1
    _require(enough, f"{name} has shape {tuple(payload.shape)}, its layout needs {layout.num_bytes} bytes a source")
    aligned = payload.data_ptr() % ALIGNMENT == 0 and (num_dims == 1 or _row_stride(payload) % ALIGNMENT == 0)
    _require(aligned, f"{name} starts at an address (or has rows) off 16 bytes: allocate whole multiples of 16")


ANY_TYPE = tuple(TYPES)


def quantize(
    input: Tensor, payload: Tensor, layout: PreparedLayout, rounding: StochasticRounding | None = None
) -> None:
    """Write fp32, bf16 or fp16 `input` into `payload` as the messages of `layout`.

    `rounding`: None rounds to nearest even; a `StochasticRounding` is unbiased and reproducible from its names.
    """
    _check_elements("input", input, layout, ANY_TYPE)
    _check_payload("payload", payload, layout)
    if layout.module is None:
        return reference.quantize(input, payload, layout.layout, rounding)
    names = (layout.native, _rounding(layout, rounding), execution(layout.device))
    with on_device(layout.device):
        layout.module.quantize(input.data_ptr(), TYPES[input.dtype], payload.data_ptr(), *names)


def quantize_difference(
    main: Tensor, model: Tensor, payload: Tensor, layout: PreparedLayout, rounding: StochasticRounding | None = None
) -> None:
    """Write fp32 `main` - fp32, bf16 or fp16 `model`, subtracted in fp32, into `payload`; see `quantize`."""
    _check_elements("main", main, layout, (torch.float32,))
    _check_elements("model", model, layout, ANY_TYPE)
    _check_payload("payload", payload, layout)
    if layout.module is None:
        return reference.quantize_difference(main, model, payload, layout.layout, rounding)
    names = (layout.native, _rounding(layout, rounding), execution(layout.device))
    addresses = (main.data_ptr(), model.data_ptr(), TYPES[model.dtype], payload.data_ptr())
    with on_device(layout.device):
        layout.module.quantize_difference(*addresses, *names)


def dequantize(payload: Tensor, output: Tensor, layout: PreparedLayout) -> None:
    """Restore the messages of `payload` into fp32, bf16 or fp16 `output`, transformed back (1/32 folded in)."""
    _check_payload("payload", payload, layout)
    _check_elements("output", output, layout, ANY_TYPE)
    if layout.module is None:
        return reference.dequantize(payload, output, layout.layout)
    addresses = (payload.data_ptr(), output.data_ptr(), TYPES[output.dtype])
    with on_device(layout.device):
        layout.module.dequantize(*addresses, layout.native, execution(layout.device))


def dequantize_add(payload: Tensor, output: Tensor, layout: PreparedLayout) -> None:
    """Add the messages of `payload` to fp32, bf16 or fp16 `output`: in fp32, rounded once to output's dtype."""
    _check_payload("payload", payload, layout)
    _check_elements("output", output, layout, ANY_TYPE)
    if layout.module is None:
        return reference.dequantize_add(payload, output, layout.layout)
    addresses = (payload.data_ptr(), output.data_ptr(), TYPES[output.dtype])
    with on_device(layout.device):
        layout.module.dequantize_add(*addresses, layout.native, execution(layout.device))


def dequantize_reduce(payloads: Tensor, output: Tensor, layout: PreparedLayout, own: Own | None = None) -> None:
    """Sum the R sources of `payloads`, uint8[R, bytes], into `output`, transformed back.

    The sum is taken in fp32 in the order of the rows, one source after the other. `own` stands in for one of them: its
    elements are added last, as they are, and may be the memory of `output`, element for element.
    """
    _check_payload("payloads", payloads, layout, num_dims=2)
    _check_elements("output", output, layout, ANY_TYPE)
    _check_own("own", own, payloads, layout)
    if layout.module is None:
        return reference.dequantize_reduce(payloads, output, layout.layout, _own_of_reference(own))
    target = (output.data_ptr(), TYPES[output.dtype])
    with on_device(layout.device):
        layout.module.dequantize_reduce(_sources(payloads, layout, own), *target, execution(layout.device))


def dequantize_reduce_quantize(
    payloads: Tensor,
    payload: Tensor,
    layout: PreparedLayout,
    output_layout: PreparedLayout,
    rounding: StochasticRounding | None = None,
    own: Own | None = None,
) -> None:
    """Sum the R sources of `payloads`, uint8[R, bytes], and write the sum into `payload` in `output_layout`'s format.

    `own` stands in for one of them, in its place. Values stay transformed, so both formats have the same `hadamard`;
    both layouts list the same ranges.
    """
    _check_payload("payloads", payloads, layout, num_dims=2)
    _check_payload("payload", payload, output_layout)
    _check_same_ranges("output_layout", output_layout, layout)
    _check_own("own", own, payloads, layout)
    if layout.module is None:
        layouts = (layout.layout, output_layout.layout)
        return reference.dequantize_reduce_quantize(payloads, payload, *layouts, rounding, _own_of_reference(own))
    names = (output_layout.native, _rounding(output_layout, rounding), execution(layout.device))
    with on_device(layout.device):
        sources = _sources(payloads, layout, own)
        layout.module.dequantize_reduce_quantize(sources, payload.data_ptr(), *names)


def _sources(payloads: Tensor, layout: PreparedLayout, own: Own | None) -> Any:
    """What the native verbs sum."""
    messages = (payloads.data_ptr(), _row_stride(payloads), payloads.shape[0], layout.native)
    if own is None:
        return layout.module.Sources(*messages)
    if isinstance(own.values, Tensor):
        return layout.module.Sources(*messages, own.place, own.values.data_ptr(), TYPES[own.values.dtype])
    node = own.values
    return layout.module.Sources(*messages, own.place, own_sources=_sources(node.payloads, node.layout, node.own))


def _row_stride(payloads: Tensor) -> int:
    """Bytes from one source to the next; torch says 1 for rows without bytes, those of an empty chunk."""
    return payloads.stride(0) if payloads.shape[1] else 0


def _check_same_ranges(name: str, other: PreparedLayout, layout: PreparedLayout) -> None:
    _require(_same_device(other._table, layout), f"layout and {name} are on different devices")
    transforms = [part.layout.format.hadamard for part in (layout, other)]
    _require(transforms[0] == transforms[1], f"hadamard={transforms}: the sum stays transformed, use the same for both")
    same = layout.sizes == other.sizes
    _require(same, f"layout and {name} list segments of different sizes: pack the same pieces")


def _check_own(name: str, own: Own | None, payloads: Tensor, layout: PreparedLayout) -> None:
    if own is None:
        return
    rows = payloads.shape[0]
    _require(0 <= own.place < rows, f"{name}.place is {own.place}: use a row of the payloads, from 0 to {rows - 1}")
    if isinstance(own.values, Tensor):
        return _check_elements(f"{name}.values", own.values, layout, ANY_TYPE)
    inner, node = f"{name}.values", own.values
    _require(isinstance(node.own.values, Tensor), f"{inner}.own is a sum, too: use a tensor, sums have two levels")
    _check_same_ranges(f"{inner}.layout", node.layout, layout)
    _check_payload(f"{inner}.payloads", node.payloads, node.layout, num_dims=2)
    _check_own(f"{inner}.own", node.own, node.payloads, node.layout)


def _own_of_reference(own: Own | None) -> Own | None:
    """The same with a `wire.Layout` in the place of a prepared one."""
    if own is None or isinstance(own.values, Tensor):
        return own
    return replace(own, values=replace(own.values, layout=own.values.layout.layout))
