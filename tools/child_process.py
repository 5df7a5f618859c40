"""Programs that a tool starts and that end with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

WATCH_INTERVAL_S = 1.0


def run_python(*words: str, log: Path | None = None, watch: Callable[[], None] | None = None) -> int:
    """Run this Python with ``words`` and one thread (unless OMP_NUM_THREADS says otherwise); return its exit code.

    What it prints goes to the file ``log`` where one is given; ``watch()`` is called every second while it runs.

    Ctrl-C, SIGTERM and SIGHUP end the program by SIGTERM, at which the trainer saves a checkpoint, and wait for it.
    In its own session it does not see the terminal's Ctrl-C, which would end the ranks before they have saved.

    Raises:
        KeyboardInterrupt: after one of these signals.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    with log.open("wb") if log else contextlib.nullcontext() as output:
        process = subprocess.Popen(
            [sys.executable, *words], env=environment, start_new_session=True, stdout=output, stderr=output
        )
        try:
            return _wait(process, watch)
        except BaseException:
            process.terminate()
            process.wait()
            raise


def _wait(process: subprocess.Popen, watch: Callable[[], None] | None) -> int:
    while watch is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(WATCH_INTERVAL_S)
        watch()
    return process.wait()


def torchrun(num_processes: int) -> list[str]:
    """The words of torchrun on this machine alone, for :func:`run_python`."""
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
