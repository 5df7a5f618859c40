"""Where communication runs: off the training thread, one job after the other, in the order they were started.

On CUDA a job is queued at once on a side stream, and nothing blocks the host. On the CPU a thread runs it: gloo's
waits and the codec release the GIL, so the forward and backward passes go on meanwhile. Because jobs never overlap
each other, they share one scratch memory, and their collectives follow one order on all ranks.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch


class Handle:
    """A job that was started; `wait()` ends when its results are there (on CUDA: for the current stream).

    `exposed_ms` is the host time that `wait()` took: communication that nothing hid. On CUDA only the stream waits.
    """

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait
        self.exposed_ms = 0.0

    def wait(self) -> None:
        """Wait for the job, and raise what it raised."""
        begun = time.perf_counter()
        self._wait()
        self.exposed_ms = (time.perf_counter() - begun) * 1e3


class ThreadProgress:
    """Runs jobs on a thread of its own."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future]] = queue.SimpleQueue()
        # A daemon: a job that waits for a rank that is gone must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="communication", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            job, future = self._jobs.get()
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)

    def start(self, job: Callable[[], None]) -> Handle:
        """Queue `job`."""
        future: Future = Future()
        self._jobs.put((job, future))
        return Handle(future.result)


class StreamProgress:
    """Queues jobs on a CUDA stream beside the compute stream."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def start(self, job: Callable[[], None]) -> Handle:
        """Queue the kernels and collectives of `job` behind what the current stream has been given so far."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            job()
            done = self._stream.record_event()
        return Handle(lambda: torch.cuda.current_stream().wait_event(done))


def make_progress(device: torch.device) -> ThreadProgress | StreamProgress:
    """The one that fits the device of the tensors."""
    return StreamProgress(device) if device.type == "cuda" else ThreadProgress()


class Scratch:
    """The memory between hops, shared by all jobs of one `progress`: as large as the largest of them needs."""

    def __init__(self, device: torch.device) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8, device=device)

    @property
    def num_bytes(self) -> int:
        """Its size now."""
        return self._memory.numel()

    def reserve(self, sizes: list[int]) -> None:
        """Grow so that parts of `sizes` bytes (multiples of 16) fit; call it before the first job, when plans are made.

        What a job of before still uses stays alive until that job is done.
        """
        if sum(sizes) > self.num_bytes:
            if self._memory.is_cuda:
                torch.cuda.synchronize(self._memory.device)
            self._memory = torch.empty(sum(sizes), dtype=torch.uint8, device=self._memory.device)

    def parts(self, sizes: list[int]) -> list[torch.Tensor]:
        """uint8 tensors of `sizes` bytes, one behind the other; valid within one job."""
        return list(self._memory[: sum(sizes)].split(sizes))
