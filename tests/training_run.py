"""Whole training runs in a test: ``pretrain`` in N gloo processes of :mod:`parallel_launch`, read by its metrics file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from parallel_launch import parallel_launch

# A GPT that trains in a fraction of a second, in fp32 so that layouts agree closely; no dropout, so that none matters.
TINY = (
    "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 32 --max-position-embeddings 32 "
    "--micro-batch-size 2 --global-batch-size 16 --lr 1e-2 --lr-decay-style constant --mock-data --vocab-size 127 "
    "--make-vocab-size-divisible-by 8 --attention-dropout 0 --hidden-dropout 0 --eval-iters 0 --num-workers 0 "
    "--use-distributed-optimizer --log-interval 1000"
).split()


def run_training(world_size: int, flags: list[str] | str, folder: Path, name: str = "metrics") -> list[dict[str, Any]]:
    """Train with ``flags`` in ``world_size`` processes; return the lines of the metrics file."""
    words = flags.split() if isinstance(flags, str) else list(flags)
    metrics = folder / f"{name}.jsonl"
    parallel_launch(world_size, train, [*words, "--metrics-file", str(metrics)], timeout_s=120)
    return read_metrics(metrics)


def train(argv: list[str]) -> None:
    """What each process does: everything that pretrain_gpt.py does but leave."""
    import torch

    from megatron.training.arguments import parse_args
    from megatron.training.quiet import quiet_libraries
    from megatron.training.training import pretrain
    from megatron.training.validation import validate_args

    quiet_libraries()
    torch.set_num_threads(1)
    pretrain(validate_args(parse_args(argv), torch.distributed.get_world_size()))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
