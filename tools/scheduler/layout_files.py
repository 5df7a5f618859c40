"""layout.toml: which device runs which of Megatron's ranks, and the flags of that layout. `--layout` trains it.

world-size = 4
device-of-rank = [0, 2, 1, 3]    # devices are numbered host by host, as torchrun numbers its processes
node-of-device = [0, 0, 1, 1]    # devices of one node exchange gradients at the bits meant for inside a node

[flags]                          # of pretrain_gpt.py; the command line wins over them
pipeline-model-parallel-size = 2
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tools.atomic_files import atomic_files
from tools.scheduler.plan import Plan


def layout_flags(plan: Plan, global_batch_size: int) -> dict[str, Any]:
    """The flags of pretrain_gpt.py that make a run the plan's."""
    stages, _, tensor = plan.layout.shape
    flags: dict[str, Any] = {
        "tensor-model-parallel-size": tensor,
        "pipeline-model-parallel-size": stages,
        "micro-batch-size": plan.micro_batch,
        "global-batch-size": global_batch_size,
        "compression": plan.scheme.preset,
    }
    if plan.scheme.intra_bits is not None:
        flags["gradient-quantization-bits-intra"] = plan.scheme.intra_bits
    return flags


def write_layout(path: Path, plan: Plan, node: np.ndarray, flags: dict[str, Any], comment: str) -> None:
    """Write the layout whole or not at all.

    Args:
        node: int [devices].
        comment: a line for people, put first.
    """
    # Megatron counts tensor ranks first, then replicas, then stages: the order in which the array lies.
    lines = [f"# {comment}", f"world-size = {plan.layout.size}", f"device-of-rank = {_rows(plan.layout.ravel())}"]
    lines += [f"node-of-device = {_rows(node)}", "", "[flags]"]
    lines += [f"{key} = {_value(value)}" for key, value in flags.items()]
    with atomic_files(path) as [temporary]:
        temporary.write_text("\n".join(lines) + "\n")


def _rows(numbers: np.ndarray) -> str:
    words = [str(number) for number in numbers.tolist()]
    lines = [", ".join(words[start : start + 16]) for start in range(0, len(words), 16)]
    return "[" + lines[0] + "]" if len(lines) == 1 else "[\n    " + ",\n    ".join(lines) + ",\n]"


def _value(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
