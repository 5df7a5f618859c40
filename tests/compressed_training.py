"""Compressed training runs in a test: their flags, what is compared of them, and a look into the trained model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from parallel_launch import parallel_launch
from training_run import TINY, run_training, train

# Two ranks a node, also where all run on one machine; the tiny model's buckets are below the size worth quantizing.
NODES = "--bf16 --node-size 2 --min-quantized-bucket 0".split()
SDP4BIT = [*NODES, "--compression", "sdp4bit"]
IDENTITY = "--quantized-gradients --gradient-quantization-bits-intra 32 --gradient-quantization-bits-inter 32".split()
# One bucket a model chunk with overlap as without: another split into buckets rounds otherwise.
OVERLAP = "--overlap-grad-reduce --overlap-param-gather --ddp-bucket-size 10000000".split()
SMALL_BUCKETS = "--overlap-grad-reduce --overlap-param-gather --ddp-bucket-size 40000".split()
CHECK_REPLICAS = "--check-weight-hash-across-dp-replicas-interval 1".split()

Outcome = list[tuple[float, float]]


def outcome(lines: list[dict[str, Any]]) -> Outcome:
    """Loss and gradient norm of each iteration, to the last bit."""
    return [(line["lm_loss"], line["grad_norm"]) for line in lines]


def trained(world_size: int, flags: list[str] | str, folder: Path, num_steps: int = 4) -> Outcome:
    """Train the tiny model with more flags."""
    words = flags.split() if isinstance(flags, str) else flags
    return outcome(run_training(world_size, [*TINY, "--train-iters", str(num_steps), *words], folder))


def look_at_training(
    world_size: int, flags: list[str], look: Callable, prepare: Callable | None = None, num_steps: int = 4
) -> list[Any]:
    """Train, and return what ``look(run)`` gives on each rank; ``prepare()`` is called on each before."""
    words = [*TINY, "--train-iters", str(num_steps), *flags]
    return parallel_launch(world_size, _train_and_look, words, look, prepare, timeout_s=120)


def _train_and_look(argv: list[str], look: Callable, prepare: Callable | None) -> Any:
    from megatron.training import training

    set_up, runs = training.set_up, []

    def remembered(args: Any) -> Any:
        runs.append(set_up(args))
        return runs[-1]

    training.set_up = remembered
    if prepare is not None:
        prepare()
    train(argv)
    return look(runs[0])
