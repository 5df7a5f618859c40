"""`python -m tools.emulator` as a user starts it, for the tests that need root: and what is left of it afterwards."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ctrl_c import ctrl_c_is_heard

from tools.emulator.namespaces import check_privilege
from tools.emulator.running import running_nodes

ROOT = Path(__file__).resolve().parents[1]
TOOL = [sys.executable, "-m", "tools.emulator"]
# Every rank says that it runs, and that it was asked to stop.
WAITING = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("asked to stop", flush=True), sys.exit(0)))
print("runs", flush=True)
time.sleep(1000)
"""
TRAINING = (
    "pretrain_gpt.py --config configs/runs/benchmark.toml --num-layers 2 --seq-length 64 --micro-batch-size 1 "
    "--global-batch-size 4 --train-iters 12 --log-interval 1 --eval-iters 0"
).split()


def what_is_missing(check: Callable[[], None]) -> str:
    """The sentence of a check that refuses; nothing where it is content."""
    try:
        check()
    except ValueError as error:
        return str(error)
    return ""


ABSENT = what_is_missing(check_privilege)
needs_privilege = pytest.mark.skipif(bool(ABSENT), reason=ABSENT or "permitted")


def run(words: list[str], **how) -> subprocess.CompletedProcess:
    """The tool with `words`, when it has ended."""
    return subprocess.run([*TOOL, *words], capture_output=True, text=True, cwd=ROOT, timeout=120, **how)


@contextlib.contextmanager
def started(words: list[str], until: str):
    """The tool with `words`, when it has printed `until`; nothing of it is left behind, whatever the test finds."""
    with ctrl_c_is_heard():
        process = subprocess.Popen([*TOOL, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        while until not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def cut_for_good(node: int):
    """Within the context, and until the cluster ends, the node's link is cut."""
    words = [*TOOL, "cut", str(node), "--seconds", "1000"]
    cut = subprocess.Popen(words, stderr=subprocess.PIPE, cwd=ROOT)
    try:
        yield
    finally:
        cut.kill()
        cut.communicate()


def nodes_left(launcher: int) -> list:
    """The nodes of a cluster that are still there after ten seconds."""
    deadline = time.monotonic() + 10
    while (left := [node for node in running_nodes() if node.launcher == launcher]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def namespaces_of(launcher: int) -> set[str]:
    """The namespaces of the nodes of a cluster."""
    nodes = [node for node in running_nodes() if node.launcher == launcher]
    return {os.readlink(f"/proc/{node.pid}/ns/{kind}") for node in nodes for kind in ("net", "pid", "uts")}


def processes_in(namespaces: set[str]) -> list[str]:
    """The command lines of all processes that are in any of the namespaces."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if {os.readlink(folder / "ns" / kind) for kind in ("net", "pid", "uts")} & namespaces:
                found.append((folder / "cmdline").read_text())
    return found


def processes_left_in(namespaces: set[str]) -> list[str]:
    """What is still there after ten seconds; a process that is being killed takes a moment."""
    deadline = time.monotonic() + 10
    while (left := processes_in(namespaces)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left
