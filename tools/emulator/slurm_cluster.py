"""Slurm on an emulated network: munged and slurmctld at the switch, a slurmd on every node.

At the switch every node reaches the controller, and no node's shaped link carries what the controller sends. All of
Slurm's processes, those of its jobs included, are in the network's process namespace, so that they end with it.

The configuration is scripts/slurm/small_cluster.conf, which scripts/slurm/local_cluster.sh fills in, too. Starting and
stopping is not shared: that script's daemons outlive it, have one address and several ports, and need no privilege.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tools.emulator.launch import rank_environment
from tools.emulator.namespaces import NetworkNamespace
from tools.emulator.network import BRIDGE, EmulatedNetwork

CONTROLLER = "10.77.0.254"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "sinfo")
TEMPLATE = Path(__file__).resolve().parents[2] / "scripts/slurm/small_cluster.conf"
START_SECONDS = 60.0
# Debian has the daemons there, and no user's PATH has it.
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def check_slurm() -> None:
    """Raise ValueError, with the remedy, where a program of Slurm is missing."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=_PATH) is None]
    if missing:
        raise ValueError(
            f"--launcher slurm needs {missing[0]}, which is not found: install it (Debian, Ubuntu: apt-get install "
            "slurm-wlm munge), or use --launcher torchrun"
        )


def configuration(network: EmulatedNetwork, folder: Path) -> str:
    """The text of slurm.conf: a node's CPUs are the devices of its host."""
    text = TEMPLATE.read_text().replace("@folder@", str(folder)).replace("@user@", pwd.getpwuid(os.geteuid()).pw_name)
    lines = [f"SlurmctldHost=switch({CONTROLLER})"]
    for number, (host, address) in enumerate(zip(network.scenario.hosts, network.addresses, strict=True)):
        lines.append(f"NodeName=node{number} NodeAddr={address} CPUs={host.num_devices} State=UNKNOWN")
    lines.append(f"PartitionName=emulated Nodes=node[0-{len(network.addresses) - 1}] Default=YES")
    return "\n".join([text, *lines, ""])


class SlurmCluster:
    """The daemons, with what they keep in `folder`; every node is idle when it is made.

    Raises:
        ValueError: a daemon has ended, or does not get ready.
    """

    def __init__(self, network: EmulatedNetwork, folder: Path) -> None:
        self.network, self.folder = network, folder
        self.config = folder / "slurm.conf"
        # Those of a job that this tool runs in, or a user's defaults for another cluster, are not for the job here.
        others = ("SLURM_", "SBATCH_")
        inherited = {name: value for name, value in rank_environment().items() if not name.startswith(others)}
        self.environment = {**inherited, "PATH": _PATH, "SLURM_CONF": str(self.config)}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._write_files()
        network.switch.ip([f"address add {CONTROLLER}/24 dev {BRIDGE}"])
        self._start_daemons()

    def _write_files(self) -> None:
        for name in ("state", *(f"node{number}" for number in range(len(self.network.nodes)))):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        self.config.write_text(configuration(self.network, self.folder))

    def _start_daemons(self) -> None:
        kept = {name: self.folder / f"munge.{name}" for name in ("socket", "key", "pid", "log", "seed")}
        files = [f"--{name}{'' if name == 'socket' else '-file'}={path}" for name, path in kept.items()]
        self._start("munged", self.network.switch, ["munged", "--foreground", "--force", *files])
        self._wait("munged", kept["socket"].exists)
        self._start("slurmctld", self.network.switch, ["slurmctld", "-D", "-c"])
        for number, node in enumerate(self.network.nodes):
            self._start(f"slurmd of node{number}", node, ["slurmd", "-D"])
        self._wait("slurmctld", lambda: self._num_idle() == len(self.network.nodes))

    def _start(self, name: str, where: NetworkNamespace, command: list[str]) -> None:
        with self._log(name).open("wb") as log:
            self._daemons[name] = self.network.processes.start(
                where.words(*command),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _log(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '_')}.out"

    def _wait(self, name: str, is_ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not is_ready():
            if time.monotonic() > deadline:
                raise ValueError(f"{name} and its nodes are not ready after {START_SECONDS:g} s: {self._said(name)}")
            self.check()
            time.sleep(0.2)

    def _num_idle(self) -> int:
        states = self._run(["sinfo", "--noheader", "--Node", "--format=%t"])
        return states.stdout.split().count("idle")

    def check(self) -> None:
        """Raise ValueError if a daemon has ended."""
        for name, daemon in self._daemons.items():
            if daemon.poll() is not None:
                raise ValueError(f"{name} has ended: {self._said(name)}")

    def _said(self, name: str) -> str:
        lines = self._log(name).read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no reason given"

    def command(self, *words: str) -> str:
        """What a program of Slurm prints that is run at the switch.

        Raises:
            ValueError: it refused, with its reason.
        """
        done = self._run(list(words))
        if done.returncode:
            self.check()
            raise ValueError(f"{words[0]} failed: {done.stderr.strip()}")
        return done.stdout.strip()

    def _run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        return self.network.processes.run(self.network.switch.words(*words), env=self.environment)
