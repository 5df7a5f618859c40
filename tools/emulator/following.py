"""A job on several nodes as its launcher sees it: rank 0's lines while it runs, and an orderly end when stopped."""

from __future__ import annotations

import os
import select
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

# A trainer that is asked to stop saves a checkpoint first.
GRACE_SECONDS = 60.0
_POLL_SECONDS = 0.2


class FollowedJob(ABC):
    """What rank 0 prints comes line by line from `lines()`; what the others print goes to files in `log_folder`."""

    output: int
    """The file descriptor from which rank 0's lines are read."""

    def __init__(self, log_folder: Path) -> None:
        self.log_folder = log_folder

    @abstractmethod
    def is_running(self) -> bool:
        """Whether a node may still print or send something; asked several times a second."""

    @abstractmethod
    def ask_to_stop(self) -> None:
        """Have every rank receive SIGTERM."""

    @abstractmethod
    def exit_code(self) -> int:
        """When it has ended: 0, or that of what failed."""

    def lines(self, seconds: float = float("inf")) -> Iterator[str]:
        """What rank 0 prints, until every node has ended, or for so long."""
        rest, is_open, deadline = b"", True, time.monotonic() + seconds
        while time.monotonic() < deadline:
            # Asked before reading, so that what was printed last is read, but a pipe that a stray child holds is not.
            is_running = self.is_running()
            if is_open and select.select([self.output], [], [], _POLL_SECONDS)[0]:
                chunk = os.read(self.output, 65536)
                is_open = bool(chunk)
                *whole, rest = (rest + chunk).split(b"\n")
                yield from (line.decode(errors="replace") for line in whole)
            elif not is_running:
                break
            elif not is_open:
                time.sleep(_POLL_SECONDS)
        if rest:
            yield rest.decode(errors="replace")

    def run(self, on_line: Callable[[str], None]) -> int:
        """Hand every line to `on_line`; the exit code.

        Raises:
            KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP; the ranks have been told to stop, and have.
        """
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
        try:
            for line in self.lines():
                on_line(line)
        except KeyboardInterrupt:
            self.stop(on_line)
            raise
        return self.exit_code()

    def stop(self, on_line: Callable[[str], None]) -> None:
        """Ask the ranks to stop, as a cluster would that wants its nodes back, and wait for them for a while."""
        self.ask_to_stop()
        for line in self.lines(GRACE_SECONDS):
            on_line(line)

    def tails(self, num_lines: int = 15) -> str:
        """The end of what the ranks beside rank 0 have printed."""
        files = sorted(path for path in self.log_folder.rglob("*") if path.is_file() and path.stat().st_size)
        parts = []
        for path in files:
            last = path.read_text(errors="replace").splitlines()[-num_lines:]
            parts.append(f"--- {path.relative_to(self.log_folder)}\n" + "\n".join(last))
        return "\n".join(parts)
