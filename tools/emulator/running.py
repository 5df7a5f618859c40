"""Finds the emulated clusters of this machine by the processes that hold their nodes, and ends them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.emulator.counters import read_counters
from tools.emulator.following import GRACE_SECONDS
from tools.emulator.network import DEVICE, HOLDER, SWITCH_HOLDER


@dataclass(frozen=True)
class RunningNode:
    """A node: the process that started its cluster, its number and address there, and the process that holds it."""

    launcher: int
    number: int
    address: str
    pid: int


def running_nodes() -> list[RunningNode]:
    """The nodes of all emulated clusters that this process can see, by cluster and number."""
    nodes = [
        RunningNode(int(launcher), int(number), address, pid) for pid, [launcher, number, address] in _holders(HOLDER)
    ]
    return sorted(nodes, key=lambda node: (node.launcher, node.number))


def find_switch(launcher: int) -> int:
    """The process that holds the switch of the cluster that `launcher` started."""
    return next(pid for pid, [maker] in _holders(SWITCH_HOLDER) if int(maker) == launcher)


def _holders(name: str) -> Iterator[tuple[int, list[str]]]:
    """(pid, further words) of every process that is called `name`."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
            # Held by `sh -c SCRIPT NAME WORDS`.
            if words[3:4] == [name]:
                yield int(folder.name), words[4:]


def find_node(number: int) -> RunningNode:
    """The node of that number in the only emulated cluster.

    Raises:
        ValueError: there is none, or several, or it has no such node.
    """
    nodes = running_nodes()
    launchers = sorted({node.launcher for node in nodes})
    if len(launchers) != 1:
        which = f"several emulated clusters run ({launchers})" if launchers else "no emulated cluster runs"
        raise ValueError(f"{which}: start one with 'run', or look with 'status'")
    if number >= len(nodes):
        raise ValueError(f"there is no node {number}: the emulated cluster has nodes 0 to {len(nodes) - 1}")
    return nodes[number]


def status_lines() -> list[str]:
    """What runs, for people."""
    lines, launcher = [], None
    for node in running_nodes():
        if node.launcher != launcher:
            launcher = node.launcher
            lines.append(f"cluster of process {launcher}: {_command(launcher)}")
        sent = read_counters(node.pid).get(DEVICE)
        traffic = "no interface yet" if sent is None else f"sent {sent[1].num_bytes / 2**20:.1f} MiB"
        lines.append(f"  node{node.number}  {node.address}  {traffic}")
    return lines or ["no emulated cluster runs"]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "has ended"


def take_down(grace_seconds: float = GRACE_SECONDS) -> list[int]:
    """End all emulated clusters: their launchers are asked first, then killed; returns the launchers' pids."""
    launchers = sorted({node.launcher for node in running_nodes()})
    _signal(launchers, signal.SIGTERM)
    _wait(grace_seconds)
    _signal(sorted({node.launcher for node in running_nodes()}), signal.SIGKILL)
    _wait(5.0)
    left = running_nodes()
    if left:
        raise ValueError(f"node {left[0].number} of process {left[0].launcher} could not be ended: see 'status'")
    return launchers


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _wait(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while running_nodes() and time.monotonic() < deadline:
        time.sleep(0.1)
