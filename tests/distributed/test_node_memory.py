"""The memory that ranks of a node share: the same bytes for all, never overwritten while another rank reads them."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from parallel_launch import parallel_launch

from sdp4bit_patches import node_memory
from sdp4bit_patches.node_memory import NodeMemory, NodeMemoryError
from sdp4bit_patches.topology import discover

NUM_JOBS = 60


def _read_late(row: torch.Tensor) -> torch.Tensor:
    """Rank 1 reads late, as a rank does whose core is busy."""
    time.sleep(0.01 * dist.get_rank())
    return row.clone()


def _exchange(num_halves: int) -> bool:
    """Whether every job reads what the other rank wrote for it; the memory grows on the way."""
    memory = NodeMemory(dist.group.WORLD)
    other, right = 1 - dist.get_rank(), True
    for job in range(NUM_JOBS):
        rows = memory.half(64 * (1 + job // 20)).view(2, -1)
        memory._turn *= num_halves == 2  # with one, each job takes the half of the job before
        rows[dist.get_rank()] = job
        memory.written([64]).wait()
        right &= bool((_read_late(rows[other]) == job).all())
    return right


def _both() -> dict[int, bool]:
    return {num_halves: _exchange(num_halves) for num_halves in (2, 1)}


def test_no_job_overwrites_what_a_late_rank_still_reads() -> None:
    ranks = parallel_launch(2, _both)
    assert all(rank[2] for rank in ranks)
    assert not all(rank[1] for rank in ranks), "with one half instead of two, it does"


def _open_files() -> list[str]:
    memory = NodeMemory(dist.group.WORLD)
    for num_bytes in (2**10, 2**20):
        memory.half(num_bytes)
    return [link for file in Path("/proc/self/fd").iterdir() if "sdp4bit" in (link := os.path.realpath(file))]


def test_grown_memory_replaces_what_was_there_and_none_of_it_has_a_file() -> None:
    for files in parallel_launch(2, _open_files):
        assert len(files) == 2, "the counters, and the memory of now"
        assert all(file.endswith("(deleted)") for file in files)


def _wait_for_all(process_of_rank_1: str) -> str:
    """What rank 0 hears, who waits for rank 1, while rank 1 does not come."""
    memory = NodeMemory(dist.group.WORLD)
    memory.written([1]).wait()
    memory._timeout_s = 1.0
    if dist.get_rank() == 1:
        dist.barrier()
        return ""
    if process_of_rank_1 == "ended":
        memory._processes[1] = child = os.fork()  # it stands for rank 1, which has to report
        if not child:
            os._exit(0)
    with pytest.raises(RuntimeError) as error:
        memory.written([1]).wait()
    dist.barrier()
    return str(error.value)


@pytest.mark.parametrize(
    ("process_of_rank_1", "end"),
    [("ended", "has ended; its own output says why"), ("still there", "did not come within 1 s")],
)
def test_who_waits_for_a_rank_in_vain_is_told_its_name(process_of_rank_1: str, end: str) -> None:
    sentence, _ = parallel_launch(2, _wait_for_all, process_of_rank_1)
    assert "rank 1 of this node, " in sentence and sentence.endswith(end)


def _without_space(rank_that_lacks_it: int) -> tuple[bool, str]:
    def full(_file: int, _begin: int, _size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if dist.get_rank() == rank_that_lacks_it:
        node_memory.os = type("os", (), {**vars(os), "posix_fallocate": staticmethod(full)})
    found = discover(dist.group.WORLD, node_size=2)
    return found.node_memory is None, found.node_network


def test_without_space_all_ranks_take_the_network_and_say_why() -> None:
    for absent, reason in parallel_launch(2, _without_space, 0):
        assert absent and reason == "0.0 MiB of shared memory: No space left on device"


def _on_another_machine() -> str:
    if dist.get_rank() == 1:
        whole = node_memory._open
        node_memory._open = lambda size, process, file, _token: whole(size, process, file, b"another machine")
    return discover(dist.group.WORLD, node_size=2).node_network


def test_memory_of_another_machine_is_told_by_its_token() -> None:
    for reason in parallel_launch(2, _on_another_machine):
        assert reason.startswith("process ") and reason.endswith("of the same node is not on this machine")


def _unreachable() -> str:
    if dist.get_rank() == 1:
        whole = node_memory._open
        node_memory._open = lambda size, process, _file, token: whole(size, process, 10**6, token)
    with pytest.raises(NodeMemoryError) as error:
        NodeMemory(dist.group.WORLD)
    return str(error.value)


def test_memory_that_cannot_be_opened_is_an_error_on_all_ranks() -> None:
    for sentence in parallel_launch(2, _unreachable):
        assert "shares no memory with this one" in sentence
