"""Communication that is late by chance, on every rank and at every point, changes no bit of the training."""

from __future__ import annotations

import random
import time
from typing import Any

from compressed_training import SDP4BIT, look_at_training

NUM_STEPS = 200
# Smaller than the tiny model, and cut into several buckets, each with a start and a wait of its own.
SMALL = (
    "--num-layers 1 --hidden-size 32 --seq-length 8 --max-position-embeddings 8 --micro-batch-size 1 "
    "--global-batch-size 4 --lr 1e-3 --overlap-grad-reduce --overlap-param-gather --ddp-bucket-size 4000 "
    "--gradient-alltoall-pipeline 2"
).split()


def _sleep() -> None:
    time.sleep(random.random() ** 6 * 3e-3)


def _sometimes_late(function: Any) -> Any:
    def late(*args: Any, **kwargs: Any) -> Any:
        _sleep()
        return function(*args, **kwargs)

    return late


def _delay_everything() -> None:
    """Sleep on the training thread before a job is queued, on the communication thread before and inside it."""
    import torch.distributed as dist

    from sdp4bit_patches import collectives, progress

    random.seed(dist.get_rank())
    start = progress.ThreadProgress.start
    progress.ThreadProgress.start = _sometimes_late(lambda self, job: start(self, _sometimes_late(job)))
    progress.Handle.wait = _sometimes_late(progress.Handle.wait)
    collectives._Hop.start = _sometimes_late(collectives._Hop.start)


def _run_every_job_at_once() -> None:
    """What overlap has to be equal to: a job is done before its start returns."""
    from sdp4bit_patches import progress

    def start(_self: Any, job: Any) -> progress.Handle:
        job()
        return progress.Handle(lambda: None)

    progress.ThreadProgress.start = start


def _never_wait() -> None:
    from sdp4bit_patches import progress

    _delay_everything()
    progress.Handle.wait = lambda _self: None


def _buckets_and_weights(run: Any) -> tuple[int, int]:
    """Number of bucket groups, and a checksum of the weights, after what was under way has come to an end."""
    import torch

    with run.gathers.paused():
        values = torch.cat([p.detach().view(-1).view(torch.int16) for p in run.model[0].parameters()])
    positions = torch.arange(1, len(values) + 1)
    return len(run.model[0].bucket_groups), int((values.long() * positions).sum())


def _train(prepare: Any, num_steps: int = NUM_STEPS) -> list[tuple[int, int]]:
    flags = [*SDP4BIT, *SMALL, "--no-check-for-nan-in-loss-and-grad"]
    return look_at_training(4, flags, _buckets_and_weights, prepare, num_steps)


def test_200_steps_with_random_delays_are_bitwise_those_without_overlap() -> None:
    delayed, at_once = _train(_delay_everything), _train(_run_every_job_at_once)
    assert delayed == at_once
    assert delayed[0][0] >= 3, "several buckets are under way together"


def test_a_wait_that_does_not_wait_is_seen() -> None:
    """Negative control of the test above."""
    assert _train(_never_wait, 20) != _train(_run_every_job_at_once, 20)
