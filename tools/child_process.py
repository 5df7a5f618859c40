"""Programs that a tool starts and that end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys


def run_python(*words: str) -> int:
    """Run this Python with ``words`` and one thread (unless OMP_NUM_THREADS says otherwise); return its exit code.

    Ctrl-C, SIGTERM and SIGHUP end the program by SIGTERM, at which the trainer saves a checkpoint, and wait for it.
    In its own session it does not see the terminal's Ctrl-C, which would end the ranks before they have saved.

    Raises:
        KeyboardInterrupt: after one of these signals.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    process = subprocess.Popen([sys.executable, *words], env=environment, start_new_session=True)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise


def torchrun(num_processes: int) -> list[str]:
    """The words of torchrun on this machine alone, for :func:`run_python`."""
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
