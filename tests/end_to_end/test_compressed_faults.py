"""A broken gradient, a rank that dies in the middle of a hop: told on all ranks, and training goes on from there."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from compressed_training import CHECK_REPLICAS, OVERLAP, SDP4BIT, look_at_training
from parallel_launch import parallel_launch
from training_run import TINY, read_metrics, run_training, train

from megatron.training import checkpoint_files

FP16 = [word for word in SDP4BIT if word != "--bf16"] + "--fp16 --initial-loss-scale 1024".split()
BROKEN_STEP = 3


def _break_a_gradient(value: float) -> None:
    """In one step, rank 1's gradients hold `value` in an element of the last rank's shard, where rank 1 won't see it
    after the reduce-scatter."""
    import torch.distributed as dist

    from sdp4bit_patches import bucket_messages

    reduce_gradients = bucket_messages.BucketMessages.reduce_gradients

    def broken(self: Any, gradients: Any, step: int, scale: float) -> None:
        if step == BROKEN_STEP and dist.get_rank() == 1:
            gradients[-2000] = value
        reduce_gradients(self, gradients, step, scale)

    bucket_messages.BucketMessages.reduce_gradients = broken


def _break_by_nan() -> None:
    _break_a_gradient(math.nan)


def _break_by_infinity() -> None:
    _break_a_gradient(math.inf)


def _skipped(run: Any) -> tuple[int, int]:
    return run.state.skipped_iterations, run.state.iteration


@pytest.mark.parametrize("prepare", [_break_by_nan, _break_by_infinity])
@pytest.mark.parametrize("overlap", [[], OVERLAP], ids=["", "overlapped"])
def test_one_ranks_broken_gradient_makes_every_rank_skip_the_step(prepare: Any, overlap: list[str]) -> None:
    ranks = look_at_training(4, [*FP16, *overlap, *CHECK_REPLICAS], _skipped, prepare, num_steps=5)
    assert ranks == [(1, 5)] * 4


def test_without_a_broken_gradient_no_step_is_skipped() -> None:
    """Negative control of the test above."""
    assert look_at_training(4, FP16, _skipped, num_steps=5) == [(0, 5)] * 4


def _train_until_a_rank_dies(argv: list[str], step: int) -> None:
    """Train; rank 1 is killed between the two hops of a step, when the others count on it. They say how they end."""
    import torch.distributed as dist

    from sdp4bit_patches import collectives

    requantize = collectives.QuantizedReduceScatter._requantize
    calls = 0

    def deadly(self: Any, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return requantize(self, *args)

    collectives.QuantizedReduceScatter._requantize = deadly
    train(argv)


@pytest.mark.parametrize("overlap", [[], OVERLAP], ids=["", "overlapped"])
def test_a_rank_killed_between_the_hops_ends_the_others_and_a_restart_goes_on(
    overlap: list[str], tmp_path: Path
) -> None:
    words = [*TINY, *SDP4BIT, *overlap, "--train-iters", "6", "--save-interval", "2"]
    words += ["--save", str(tmp_path), "--load", str(tmp_path), "--metrics-file", str(tmp_path / "metrics.jsonl")]
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match="(?i)connection|exit code") as raised:
        parallel_launch(4, _train_until_a_rank_dies, words, 5, timeout_s=100)
    assert not isinstance(raised.value, TimeoutError) and time.monotonic() - begun < 60
    assert checkpoint_files.find(tmp_path, None) == 4
    lines = run_training(4, words[: words.index("--metrics-file")], tmp_path)
    assert (
        [line["iteration"] for line in lines]
        == [1, 2, 3, 4, 5, 6]
        == [line["iteration"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    )
