"""Products of bf16 and fp16 matrices on processors without AVX-512, for which torch has no fast kernels.

There torch multiplies such matrices ten times slower than fp32 ones. Here they are multiplied in fp32 and the result is
rounded once, as kernels that accumulate in fp32 do. The functions below stand behind autograd, so that backward passes
use them, too; replacing `torch.matmul` and its like by name would miss those.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

NARROW = (torch.bfloat16, torch.float16)
# Keeps the functions registered.
_library: torch.library.Library | None = None


def is_needed() -> bool:
    """Whether torch has none of its fast kernels for this processor."""
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def install() -> None:
    """Take the place of torch's kernels on the CPU, once."""
    global _library
    if _library is not None:
        return
    _library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")  # that kernels are replaced
        for name, function in (("mm", _mm), ("bmm", _bmm), ("addmm", _addmm), ("baddbmm", _baddbmm)):
            _library.impl(name, function, "CPU")


def _in_fp32(operation: Any, shape: list[int], *tensors: Tensor, **factors: Any) -> Tensor:
    """`operation` by torch's own kernel for results that are given: those are not replaced."""
    dtype = tensors[0].dtype
    if dtype not in NARROW:
        return operation(*tensors, **factors, out=tensors[0].new_empty(shape))
    wide = [tensor.float() for tensor in tensors]
    return operation(*wide, **factors, out=wide[0].new_empty(shape)).to(dtype)


def _mm(a: Tensor, b: Tensor) -> Tensor:
    return _in_fp32(torch.mm, [a.shape[0], b.shape[1]], a, b)


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    return _in_fp32(torch.bmm, [*a.shape[:2], b.shape[2]], a, b)


def _addmm(added: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _in_fp32(torch.addmm, [a.shape[0], b.shape[1]], added, a, b, beta=beta, alpha=alpha)


def _baddbmm(added: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _in_fp32(torch.baddbmm, [*a.shape[:2], b.shape[2]], added, a, b, beta=beta, alpha=alpha)
