"""Runs a function in several processes that can talk to each other over gloo, as if it were a plain call.

The processes are forked from a server that has imported torch and megatron-core once, so that a launch takes a
fraction of a second. They run on the CPU (GPUs are hidden from them) with one thread each, and meet in a file, which
needs no port.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
_context: multiprocessing.context.BaseContext | None = None


def parallel_launch(world_size: int, worker: Callable, *args: Any, timeout_s: float = 60.0) -> list[Any]:
    """Call ``worker(*args)`` in ``world_size`` processes of one gloo group; return what each returned, by rank.

    Args:
        world_size: how many processes.
        worker: a function that can be pickled (at the top level of a module). It finds ``torch.distributed``
            initialized, and ``sdp4bit_patches.cpu_device`` installed.
        args: the same for all; picklable, as are the results.
        timeout_s: for the whole call, and for each collective.

    Raises:
        TimeoutError: after ``timeout_s``; all processes have been ended.
        Exception: the first that a rank raised, with that rank's traceback as a note; the others have been ended.
        RuntimeError: a rank died without raising.
    """
    with tempfile.TemporaryDirectory(prefix="parallel_launch_") as folder:
        call = (worker, args, world_size, folder, timeout_s)
        ranks = [_server().Process(target=_run_rank, args=(rank, *call)) for rank in range(world_size)]
        try:
            for process in ranks:
                process.start()
            _wait_for_all(ranks, timeout_s)
        finally:
            _end(ranks)
        _raise_first_error(ranks, Path(folder))
        return [pickle.loads((Path(folder) / f"result_{rank}").read_bytes()) for rank in range(world_size)]


def one_after_the_other(cases: Sequence[tuple[Callable, tuple]]) -> list[Any]:
    """A worker that runs several: ``parallel_launch(4, one_after_the_other, [(worker, args), ...])``."""
    return [worker(*args) for worker, args in cases]


def _server() -> multiprocessing.context.BaseContext:
    """The context whose server forks the ranks; started on first use, with the environment that they inherit."""
    global _context
    if _context is None:
        _context = multiprocessing.get_context("forkserver")
        _context.set_forkserver_preload(["parallel_launch_preload"])
        before = dict(os.environ)
        # Python 3.11's server looks for what it preloads on PYTHONPATH, not on this process's sys.path.
        os.environ.update(_ENVIRONMENT, PYTHONPATH=os.pathsep.join(path or os.getcwd() for path in sys.path))
        multiprocessing.forkserver.ensure_running()
        os.environ.clear()
        os.environ.update(before)
    return _context


def _run_rank(rank: int, worker: Callable, args: tuple, world_size: int, folder: str, timeout_s: float) -> None:
    """What a process does: meet the others, work, and leave a file with the result or with the error."""
    try:
        import torch.distributed as dist

        store = dist.FileStore(str(Path(folder) / "store"), world_size)
        timeout = timedelta(seconds=timeout_s)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)
        result = pickle.dumps(worker(*args))
        dist.barrier()  # gloo ends abruptly: a rank that left would look like a failure to one that still talks
        _write(Path(folder) / f"result_{rank}", result)
    except BaseException as error:
        report = (time.monotonic(), rank, _picklable(error), traceback.format_exc())
        _write(Path(folder) / f"error_{rank}", pickle.dumps(report))
        os._exit(1)
    os._exit(0)


def _write(path: Path, content: bytes) -> None:
    """Write all of it or nothing: a rank may be ended at any moment."""
    path.with_suffix(".part").write_bytes(content)
    path.with_suffix(".part").rename(path)


def _picklable(error: BaseException) -> BaseException:
    """``error`` itself, or its name and text where it doesn't survive pickling."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _wait_for_all(ranks: list[BaseProcess], timeout_s: float) -> None:
    """Return when all ended well, or as soon as one ended badly."""
    deadline = time.monotonic() + timeout_s
    running = {process.sentinel: process for process in ranks}
    while running:
        ended = wait(list(running), timeout=max(0.0, deadline - time.monotonic()))
        if not ended:
            names = [rank for rank, process in enumerate(ranks) if process.sentinel in running]
            raise TimeoutError(f"ranks {names} of {len(ranks)} were still running after {timeout_s:g} s")
        for process in [running.pop(sentinel) for sentinel in ended]:
            process.join()
            if process.exitcode != 0:
                return


def _end(ranks: list[BaseProcess]) -> None:
    """End what still runs."""
    for process in ranks:
        if process.pid is not None and process.is_alive():
            process.kill()
            process.join()


def _raise_first_error(ranks: list[BaseProcess], folder: Path) -> None:
    """Raise what failed first; that others then lost their neighbour is no news."""
    reports = sorted(
        (pickle.loads(path.read_bytes()) for path in folder.glob("error_*")), key=lambda report: report[:2]
    )
    for _, rank, error, text in reports:
        error.add_note(f"raised in rank {rank} of {len(ranks)}:\n{text}")
        raise error
    for rank, process in enumerate(ranks):
        if process.exitcode != 0:
            raise RuntimeError(f"rank {rank} of {len(ranks)} ended with exit code {process.exitcode} and no exception")
