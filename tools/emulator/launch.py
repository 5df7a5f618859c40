"""Starts a script under torchrun on every node of an emulated network, and ends it in an orderly way."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tools.emulator.following import FollowedJob
from tools.emulator.network import DEVICE, EmulatedNetwork

PORT = 29500
# When one node has failed, the others are about to find out by themselves.
GRACE_AFTER_FAILURE_SECONDS = 5.0


def rank_environment() -> dict[str, str]:
    """The environment of every rank: the shaped interface for every library, one thread, lines shown at once."""
    interfaces = dict.fromkeys(("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), DEVICE)
    return {"OMP_NUM_THREADS": "1", **os.environ, **interfaces, "PYTHONUNBUFFERED": "1"}


def torchrun_words(network: EmulatedNetwork, number: int, words: list[str], log_folder: Path) -> list[str]:
    """The command line of torchrun on node `number`, on its own cores; what ranks beside rank 0 print goes to files in
    `log_folder`."""
    hosts = network.scenario.hosts
    count = hosts[number].num_devices
    hidden = [f"{rank}:3" for rank in range(0 if number else 1, count)]
    launcher = ["taskset", "--cpu-list", ",".join(map(str, network.cores[number]))]
    launcher += [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(len(hosts))]
    launcher += ["--node-rank", str(number), "--nproc-per-node", str(count)]
    launcher += ["--master-addr", network.addresses[0], "--master-port", str(PORT)]
    launcher += ["--log-dir", str(log_folder / f"node{number}")]
    launcher += ["--redirects", ",".join(hidden)] if hidden else []
    return [*launcher, *words]


class Job(FollowedJob):
    """`words` (a script and its arguments, or `-m` and a module) on every device of the network's scenario."""

    def __init__(self, network: EmulatedNetwork, words: list[str], log_folder: Path) -> None:
        super().__init__(log_folder)
        self.network = network
        self._nodes = [self._start(number, words) for number in range(len(network.nodes))]
        self.output = self._nodes[0].stdout.fileno()
        self._end_by: float | None = None

    def _start(self, number: int, words: list[str]) -> subprocess.Popen[bytes]:
        launcher = torchrun_words(self.network, number, words, self.log_folder)
        output = subprocess.PIPE if number == 0 else (self.log_folder / f"node{number}.txt").open("wb")
        with contextlib.closing(output) if number else contextlib.nullcontext():
            return self.network.processes.start(
                self.network.nodes[number].words(*launcher),
                env=rank_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if number else None,
                start_new_session=True,
            )

    def is_running(self) -> bool:
        """Whether a node's torchrun runs; a node that has failed ends the others after a while."""
        if self._end_by is None and any(node.poll() for node in self._nodes):
            self._end_by = time.monotonic() + GRACE_AFTER_FAILURE_SECONDS
        if self._end_by is not None and time.monotonic() > self._end_by:
            self.ask_to_stop()
            self._end_by = float("inf")
        return any(node.poll() is None for node in self._nodes)

    def ask_to_stop(self) -> None:
        """SIGTERM to every torchrun, which hands it on."""
        for node in self._nodes:
            if node.poll() is None:
                node.send_signal(signal.SIGTERM)

    def exit_code(self) -> int:
        """That of the first node that failed, 0 where none did."""
        return next((node.returncode for node in self._nodes if node.returncode), 0)
