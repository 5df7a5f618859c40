"""The memory of many steps, and errors of jobs that run beside the training thread."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest
import torch
from parallel_launch import parallel_launch

from sdp4bit_patches.bucket_messages import BucketMessages
from sdp4bit_patches.config import PRESETS, CommConfig
from sdp4bit_patches.progress import ThreadProgress
from sdp4bit_patches.session import Session
from sdp4bit_patches.weight_difference import WeightDifference

NUM_ELEMENTS = 4096
WARM_UP = 2200


def _bucket() -> SimpleNamespace:
    """What the messages need of megatron-core's bucket."""
    gradients, model = torch.randn(NUM_ELEMENTS), torch.zeros(NUM_ELEMENTS, dtype=torch.bfloat16)
    main = torch.randn(NUM_ELEMENTS // 2)
    difference = WeightDifference(main)
    return SimpleNamespace(
        grad_data=gradients, param_data=model, params_list=[], gradient_scaling_factor=0.5, weight_difference=difference
    )


def train_without_a_model(num_steps: int) -> tuple[list[int], list[int]]:
    """Reduce and gather a bucket in every step; returns scratch bytes and resident bytes after each."""
    session = Session(CommConfig(node_size=1, min_quantized_bucket=0, **PRESETS["sdp4bit"]))
    topology = session.topology(torch.distributed.group.WORLD)
    bucket = _bucket()
    messages = BucketMessages(session, bucket, topology, [(100, 200)])
    progress, process = session.progress(torch.device("cpu")), psutil.Process()
    scratch, resident = [], []
    for step in range(num_steps):
        gradients = messages.take_gradients(step)
        progress.start(lambda own=gradients, step=step: messages.reduce_gradients(own, step, 1.0)).wait()
        bucket.weight_difference.publish(step)
        taken = messages.take_published()
        assert taken == step and messages.take_published() is None
        progress.start(lambda step=step: messages.gather_parameters(step)).wait()
        scratch.append(session.scratch_bytes)
        resident.append(process.memory_info().rss)
    return scratch, resident


def test_neither_scratch_nor_the_process_grows_over_1000_steps() -> None:
    """After the steps in which torch's flight recorder fills up, which keeps the last 2,000 collectives."""
    for scratch, resident in parallel_launch(2, train_without_a_model, WARM_UP + 1000, timeout_s=120):
        grown = resident[-1] - resident[WARM_UP]
        print(f"scratch {scratch[0] / 2**10:.0f} KiB; the process grew by {grown / 2**10:.0f} KiB")
        assert len(set(scratch)) == 1
        assert grown < 512 * 2**10, "less than half a KiB a step: any buffer kept would be more"


def test_what_a_job_raises_is_raised_where_it_is_waited_for_and_the_next_job_runs() -> None:
    progress, done = ThreadProgress(), []

    def fail() -> None:
        raise ConnectionError("a rank is gone")

    failed, next_one = progress.start(fail), progress.start(lambda: done.append(1))
    with pytest.raises(ConnectionError, match="a rank is gone"):
        failed.wait()
    next_one.wait()
    assert done == [1]


def test_jobs_run_one_after_the_other_in_the_order_they_were_started() -> None:
    progress, done = ThreadProgress(), []
    handles = [progress.start(lambda number=number: done.append(number)) for number in range(100)]
    handles[-1].wait()
    assert done == list(range(100))
