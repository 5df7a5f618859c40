"""What a Megatron script that knows nothing of this package needs around it: checks, a report, metrics."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from functools import partial
from typing import Any

import torch.distributed as dist

from sdp4bit_patches.report import report_lines
from sdp4bit_patches.session import Session

SUPPORTED_MEGATRON_CORE = "0.16."


def check_versions() -> None:
    """Warn where the script's megatron-core is another than the one this package was written for."""
    from megatron.core import package_info

    if not package_info.__version__.startswith(SUPPORTED_MEGATRON_CORE):
        found = f"megatron-core {package_info.__version__} at {package_info.__file__}"
        warnings.warn(f"{found}: this package was tested with {SUPPORTED_MEGATRON_CORE}x only", stacklevel=2)


def step_over_cuda_checks() -> None:
    """On a machine without CUDA, let Megatron-LM's own `initialize_megatron` go on; without effect for other scripts.

    It asserts that there is CUDA unless it is told otherwise, and compiles CUDA kernels that nothing calls any more.
    """
    if not _exists("megatron.training.initialize") or not _exists("megatron.legacy.fused_kernels"):
        return
    from megatron.legacy import fused_kernels

    from megatron.training import initialize

    fused_kernels.load = lambda *_args, **_kwargs: None
    initialize.initialize_megatron = partial(initialize.initialize_megatron, allow_no_cuda=True)


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def watch(session: Session | None) -> None:
    """Have rank 0 print the start-up report, and show measurements as they come."""
    if session is not None:
        session.on_ready = lambda chunks: _print_report(session, chunks)
        session.on_step = lambda step: _show(session.telemetry.take(step), step)


def _print_report(session: Session, chunks: list[Any]) -> None:
    lines = report_lines(session, chunks)
    if dist.get_rank() == 0:
        print("\n".join(lines), flush=True)


def _show(metrics: dict[str, Any], step: int) -> None:
    """To the script's TensorBoard writer where it has one on this rank, and as a line of rank 0."""
    if not metrics:
        return
    writer = _tensorboard_writer()
    if writer is not None:
        for name, value in metrics.items():
            writer.add_scalar(f"compression/{name}", value, step)
    if dist.get_rank() == 0:
        print(" compression: " + " | ".join(f"{name} {value:.5g}" for name, value in metrics.items()), flush=True)


def _tensorboard_writer() -> Any:
    global_vars = sys.modules.get("megatron.training.global_vars")
    return global_vars.get_tensorboard_writer() if global_vars else None
