"""Memory that the ranks of one node share: messages between them are written once, and read where they lie.

It belongs to no file: rank 0 of the node makes an anonymous memory file, the others open it through /proc, and it is
gone with its last process, however that ends. What it takes is allocated when it is made, so a limit on memory is an
error then and no bus error later.

The memory has two halves, which jobs take in turn. A job writes into its half, calls `written`, waits for it, and
reads what the others have written. When it writes into the same half again, two jobs later, every other rank has begun
the job between them, and so has read everything.

Ranks wait for each other by counters in the same memory, one a rank: the kernel wakes the waiting thread itself, where
gloo's barrier takes three threads in turn to hear of it.
"""

from __future__ import annotations

import mmap
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from sdp4bit_patches.codec import NATIVE

TOKEN_BYTES = 16
COUNTER_BYTES = 64  # a cache line each
LOOK_AFTER_S = 0.5  # how often a rank that waits looks whether the others still live


class NodeMemoryError(RuntimeError):
    """The ranks of a node cannot share memory; the sentence says why."""


class NodeMemory:
    """The shared memory of the ranks of `group`, all of them on one machine; they make it together.

    Raises:
        NodeMemoryError: on all ranks, where one of them cannot reach it.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self._half_bytes, self._turn, self._largest = 0, 0, 0
        self._memory = torch.empty(0, dtype=torch.uint8)
        size = group.size()
        # The first line holds the token.
        self._counters = _share((1 + size) * COUNTER_BYTES, group)[COUNTER_BYTES:].view(size, -1)
        self._processes: list[int] = [0] * size
        dist.all_gather_object(self._processes, os.getpid(), group=group)
        self._count = 0
        self._timeout_s = group._get_backend(torch.device("cpu")).options._timeout.total_seconds()

    @property
    def num_bytes(self) -> int:
        """What the largest job that is planned takes of it, all ranks and both halves."""
        return 2 * self._largest

    def plan(self, num_bytes: int) -> None:
        """Say what a job will take."""
        self._largest = max(self._largest, num_bytes)

    def half(self, num_bytes: int) -> Tensor:
        """uint8[num_bytes] that no rank reads any more; all ranks ask for as much, job by job.

        Call it only in jobs that call `written` and wait for it. A job larger than all before it makes new memory.
        """
        if num_bytes > self._half_bytes:
            self._memory = _share(2 * num_bytes, self.group)
            self._half_bytes = num_bytes
        self._turn = 1 - self._turn
        return self._memory[self._turn * self._half_bytes :][:num_bytes]

    def allocate(self, num_bytes: int) -> Tensor:
        """uint8[ranks, num_bytes] beside the halves, for good: a row for every rank to write, all rows for it to read.

        All ranks call it together.
        """
        return _share(num_bytes * self.group.size(), self.group).view(self.group.size(), num_bytes)

    def written(self, _num_bytes: Sequence[int]) -> Arrival:
        """Tell the others that this rank's messages are there, so many bytes for each; done when all have said so."""
        return self._arrive()

    def read(self) -> Arrival:
        """Tell the others that what they `allocate`d and wrote is not needed any more; done when all have said so."""
        return self._arrive()

    def _arrive(self) -> Arrival:
        self._count = (self._count + 1) % 2**32
        NATIVE["cpu"].arrive(self._counters[self.group.rank()].data_ptr(), self._count)
        return Arrival(self, self._count)

    def await_all(self, count: int) -> None:
        """Wait until all ranks have arrived `count` times.

        Raises:
            RuntimeError: a rank has ended without, or the time-out of the group is over.
        """
        deadline = time.monotonic() + self._timeout_s
        for rank, process in enumerate(self._processes):
            address = self._counters[rank].data_ptr()
            while not NATIVE["cpu"].await_arrival(address, count, LOOK_AFTER_S):
                # What has ended may have arrived just before it did.
                who = f"process {process}, rank {rank} of this node,"
                if _has_ended(process) and not NATIVE["cpu"].await_arrival(address, count, 0.0):
                    raise RuntimeError(f"{who} has ended; its own output says why")
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{who} did not come within {self._timeout_s:g} s")


class Arrival:
    """All ranks of a node have come to one point, once `wait` returns."""

    def __init__(self, memory: NodeMemory, count: int) -> None:
        self._memory, self._count = memory, count

    def wait(self) -> None:
        """Wait for the others; see `NodeMemory.await_all` for what it raises."""
        self._memory.await_all(self._count)


def _has_ended(process: int) -> bool:
    """Whether it is gone, or waits for its parent to notice."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


def _share(num_bytes: int, group: dist.ProcessGroup) -> Tensor:
    """uint8[num_bytes], the same memory on all ranks of `group`."""
    offer = [_make(num_bytes) if group.rank() == 0 else None]
    dist.broadcast_object_list(offer, group=group, group_src=0)
    memory = _open(num_bytes, *offer[0]) if not isinstance(offer[0], str) else offer[0]
    complaints = [""] * group.size()
    dist.all_gather_object(complaints, memory if isinstance(memory, str) else "", group=group)
    if group.rank() == 0 and not isinstance(offer[0], str):
        os.close(offer[0][1])
    if any(complaints):
        raise NodeMemoryError(next(filter(None, complaints)))
    return torch.frombuffer(memory, dtype=torch.uint8)


def _make(num_bytes: int) -> tuple[int, int, bytes] | str:
    """Process, file descriptor and token of new memory, or why there is none."""
    if not hasattr(os, "memfd_create"):
        return "this system has no anonymous memory files"
    token = secrets.token_bytes(TOKEN_BYTES)
    file = os.memfd_create("sdp4bit_patches")
    try:
        os.posix_fallocate(file, 0, num_bytes)
        os.pwrite(file, token, 0)
    except OSError as error:
        os.close(file)
        return f"{num_bytes / 2**20:.1f} MiB of shared memory: {error.strerror}"
    return os.getpid(), file, token


def _open(num_bytes: int, process: int, file: int, token: bytes) -> mmap.mmap | str:
    """The memory, or why it cannot be reached. The token tells it from what another machine has in its place."""
    if NATIVE["cpu"] is None:
        return "sdp4bit_patches._cpu, by which ranks wait for each other, was not built"
    try:
        own = os.open(f"/proc/{process}/fd/{file}", os.O_RDWR)
        try:
            memory = mmap.mmap(own, num_bytes)
        finally:
            os.close(own)
    except (OSError, ValueError) as error:
        return f"process {process} of the same node shares no memory with this one: {error}"
    if memory[:TOKEN_BYTES] != token:
        return f"process {process} of the same node is not on this machine"
    return memory
