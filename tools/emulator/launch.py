"""Starts a script under torchrun on every node of an emulated network, and ends it in an orderly way."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tools.emulator.network import DEVICE, EmulatedNetwork

PORT = 29500
# A trainer that is asked to stop saves a checkpoint first.
GRACE_SECONDS = 60.0
# When one node has failed, the others are about to find out by themselves.
GRACE_AFTER_FAILURE_SECONDS = 5.0
_POLL_SECONDS = 0.2


def rank_environment() -> dict[str, str]:
    """The environment of every rank: the shaped interface for every library, one thread, lines shown at once."""
    interfaces = dict.fromkeys(("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), DEVICE)
    return {"OMP_NUM_THREADS": "1", **os.environ, **interfaces, "PYTHONUNBUFFERED": "1"}


class Job:
    """`words` (a script and its arguments, or `-m` and a module) on every device of the network's scenario.

    What rank 0 prints comes line by line from `lines()`; what the others print goes to files in `log_folder`.
    """

    def __init__(self, network: EmulatedNetwork, words: list[str], log_folder: Path) -> None:
        self.network, self.log_folder = network, log_folder
        self._nodes = [self._start(number, words) for number in range(len(network.nodes))]

    def _start(self, number: int, words: list[str]) -> subprocess.Popen[bytes]:
        hosts = self.network.scenario.hosts
        count = hosts[number].num_devices
        hidden = [f"{rank}:3" for rank in range(0 if number else 1, count)]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(len(hosts))]
        launcher += ["--node-rank", str(number), "--nproc-per-node", str(count)]
        launcher += ["--master-addr", self.network.addresses[0], "--master-port", str(PORT)]
        launcher += ["--log-dir", str(self.log_folder / f"node{number}")]
        launcher += ["--redirects", ",".join(hidden)] if hidden else []
        output = subprocess.PIPE if number == 0 else (self.log_folder / f"node{number}.txt").open("wb")
        with contextlib.closing(output) if number else contextlib.nullcontext():
            return self.network.processes.start(
                self.network.nodes[number].words(*launcher, *words),
                env=rank_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if number else None,
                start_new_session=True,
            )

    def lines(self) -> Iterator[str]:
        """What rank 0 prints, until every node has ended; a node that fails ends the others after a while."""
        stream, rest, deadline = self._nodes[0].stdout.fileno(), b"", None
        is_open = True
        while is_open or any(node.poll() is None for node in self._nodes):
            if is_open and select.select([stream], [], [], _POLL_SECONDS)[0]:
                chunk = os.read(stream, 65536)
                is_open = bool(chunk)
                *whole, rest = (rest + chunk).split(b"\n")
                yield from (line.decode(errors="replace") for line in whole)
            elif not is_open:
                time.sleep(_POLL_SECONDS)
            if deadline is None and any(node.poll() for node in self._nodes):
                deadline = time.monotonic() + GRACE_AFTER_FAILURE_SECONDS
            if deadline is not None and time.monotonic() > deadline:
                self._signal(signal.SIGTERM)
                deadline = float("inf")
        if rest:
            yield rest.decode(errors="replace")

    def run(self, on_line: Callable[[str], None]) -> int:
        """Hand every line to `on_line`; the exit code of the first node that failed, 0 where none did.

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
        return next((node.returncode for node in self._nodes if node.returncode), 0)

    def stop(self, on_line: Callable[[str], None]) -> None:
        """Ask the ranks to stop, as a cluster would that wants its nodes back, and wait for them for a while."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        for line in self.lines():
            on_line(line)
            if time.monotonic() > deadline:
                return

    def _signal(self, number: int) -> None:
        for node in self._nodes:
            if node.poll() is None:
                node.send_signal(number)

    def tails(self, num_lines: int = 15) -> str:
        """The end of what the ranks beside rank 0 have printed."""
        files = sorted(path for path in self.log_folder.rglob("*") if path.is_file() and path.stat().st_size)
        parts = []
        for path in files:
            last = path.read_text(errors="replace").splitlines()[-num_lines:]
            parts.append(f"--- {path.relative_to(self.log_folder)}\n" + "\n".join(last))
        return "\n".join(parts)
