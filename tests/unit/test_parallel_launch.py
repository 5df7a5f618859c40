"""The launcher of the distributed tests: results by rank, errors with their origin, nobody left behind."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from parallel_launch import one_after_the_other, parallel_launch


def sum_of_ranks(factor):
    x = torch.tensor([float(dist.get_rank()) * factor])
    dist.all_reduce(x)
    return dist.get_rank(), x, os.environ["OMP_NUM_THREADS"], torch.get_num_threads()


def test_results_come_back_by_rank_from_processes_with_one_thread_each():
    results = parallel_launch(3, sum_of_ranks, 10)
    assert results == [(rank, torch.tensor([30.0]), "1", 1) for rank in range(3)]


def test_several_cases_run_in_one_launch():
    cases = [(sum_of_ranks, (1,)), (sum_of_ranks, (2,))]
    sums = [[x.item() for _, x, *_ in rank] for rank in parallel_launch(2, one_after_the_other, cases)]
    assert sums == [[1.0, 2.0], [1.0, 2.0]]


class Unpicklable(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def fail_on_rank_1(folder, error):
    (folder / str(dist.get_rank())).write_text(str(os.getpid()))
    dist.barrier()
    if dist.get_rank() == 1:
        raise error("one", "two") if error is Unpicklable else error("told you")
    time.sleep(600)


@pytest.mark.parametrize(("error", "text"), [(ValueError, "told you"), (Unpicklable, "Unpicklable: one two")])
def test_an_exception_is_raised_here_with_its_traceback_and_the_others_are_ended(tmp_path, error, text):
    with pytest.raises(ValueError if error is ValueError else RuntimeError, match=text) as raised:
        parallel_launch(3, fail_on_rank_1, tmp_path, error)
    assert "raised in rank 1 of 3" in raised.value.__notes__[0]
    assert "in fail_on_rank_1" in raised.value.__notes__[0]
    for file in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)


def die_on_rank_0():
    if dist.get_rank() == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def test_a_rank_that_dies_is_named():
    with pytest.raises(RuntimeError, match="rank 0 of 2 ended with exit code -9"):
        parallel_launch(2, die_on_rank_0)


def test_a_launch_that_hangs_is_ended_and_the_ranks_are_named():
    with pytest.raises(TimeoutError, match=r"ranks \[0, 1\] of 2 were still running after 1.5 s"):
        parallel_launch(2, time.sleep, 600, timeout_s=1.5)
