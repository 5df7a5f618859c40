"""Namespaces that live as long as the process that made them, however it ends.

Nothing is given a name in the file system: a namespace exists while a process is in it. The first process of the
process namespace reads from a pipe that only its maker holds. When the maker ends, even by SIGKILL, the pipe closes and
that process with it; the kernel then kills every other process of the namespace, and with the last one go the network
namespaces, their interfaces and their qdiscs. So there is nothing that could be left behind.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from typing import Any

CLONE_NEWPID = 0x20000000  # linux/sched.h
# Ends when its standard input is closed.
_WAIT = "echo ready; read line"
_PROGRAMS = ("ip", "tc", "nsenter", "unshare", "taskset", "sh")
_PIPES: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | {"start_new_session": True}
_libc = ctypes.CDLL(None, use_errno=True)


def check_privilege() -> None:
    """Raise ValueError, with the remedy, where this process may not make namespaces or lacks a program for it."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        raise ValueError(f"'{missing[0]}' is not installed (packages iproute2, util-linux): install it, or use --user")
    probe = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "ip", "link", "add", "probe0", "type", "veth"]
    done = subprocess.run(probe, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(
            f"network namespaces need root and the capabilities NET_ADMIN and SYS_ADMIN ({reason}); "
            "--user shapes inside the processes instead, without any privilege"
        )


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


class ProcessNamespace:
    """A process namespace; `start` starts processes that end with it."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []
        self._outside = os.open("/proc/self/ns/pid", os.O_RDONLY)
        _call("unshare", CLONE_NEWPID)
        try:
            self._first = _ready(subprocess.Popen(["sh", "-c", _WAIT], **_PIPES))
            self._inside = os.open("/proc/self/ns/pid_for_children", os.O_RDONLY)
        finally:
            _call("setns", self._outside, CLONE_NEWPID)

    def start(self, command: list[str], **how: Any) -> subprocess.Popen[bytes]:
        """Popen, in this namespace; the process has the pid that is seen from outside."""
        process = self._popen(command, **how)
        self._started.append(process)
        return process

    def run(self, command: list[str], input: str = "", **how: Any) -> subprocess.CompletedProcess[str]:
        """subprocess.run, in this namespace, with what it prints as text."""
        # On leaving it is waited for, whatever has happened: else the namespace could not end.
        with self._popen(command, **_PIPES, **how) as process:
            try:
                output, errors = process.communicate(input.encode())
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(command, process.returncode, output.decode(), errors.decode())

    def _popen(self, command: list[str], **how: Any) -> subprocess.Popen[bytes]:
        _call("setns", self._inside, CLONE_NEWPID)
        try:
            return subprocess.Popen(command, **how)
        finally:
            _call("setns", self._outside, CLONE_NEWPID)

    def close(self) -> None:
        """End every process of the namespace."""
        self._first.stdin.close()
        # The first process ends last: not before the others, which it kills, have been waited for.
        for process in [*self._started, self._first]:
            process.wait()
        for number in (self._inside, self._outside):
            os.close(number)


class NetworkNamespace:
    """A network namespace with a host name and a /proc of its own, held by a process that is called `words`."""

    def __init__(
        self, processes: ProcessNamespace, hostname: str, script: str = "", words: tuple[str, ...] = ()
    ) -> None:
        flags = ["--net", "--uts", "--mount", "--mount-proc"]
        # New interfaces speak IPv4 alone: what IPv6 says by itself would be counted as traffic.
        quiet = "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6 2>/dev/null || true"
        lines = [f"hostname {hostname}", "ip link set lo up", quiet, script, _WAIT]
        self._processes = processes
        command = ["unshare", *flags, "sh", "-c", "\n".join(lines), *words]
        self._holder = _ready(processes.start(command, **_PIPES))

    @property
    def pid(self) -> int:
        """The process that holds it."""
        return self._holder.pid

    def words(self, *command: str) -> list[str]:
        """`command` as it runs in this namespace; the process that starts it stays the command's."""
        return [*enter_words(self.pid), *command]

    def ip(self, lines: list[str]) -> None:
        """Have `ip` do what `lines` say; it runs outside the process namespace, by whose pids `netns PID` goes.

        Raises:
            OSError: it refused, with the reason and the line.
        """
        words = self.words("ip", "-batch", "-")
        _check(subprocess.run(words, input="\n".join(lines), capture_output=True, text=True))

    def tc(self, lines: list[str]) -> None:
        """The same with `tc`; within, since its clock's unit is in /proc/net, where outsiders see nothing."""
        _check(self._processes.run(self.words("tc", "-batch", "-"), "\n".join(lines)))


def _check(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        raise OSError(done.returncode, f"refused: {done.stderr.strip()}", done.args[-3])


def enter_words(pid: int, *kinds: str) -> list[str]:
    """The beginning of a command line whose command runs in the namespaces of the process `pid`, in this folder."""
    files = {"net": "net", "uts": "uts", "mount": "mnt", **dict(zip(kinds, kinds, strict=True))}
    namespaces = [f"--{kind}=/proc/{pid}/ns/{file}" for kind, file in files.items()]
    # A new mount namespace begins in the root folder.
    return ["nsenter", *namespaces, "sh", "-c", 'cd "$0" && exec "$@"', os.getcwd()]


def _ready(process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """`process`, which waits for the end of its standard input, when it has said that it is ready.

    Raises:
        OSError: it has ended instead.
    """
    if process.stdout.readline() != b"ready\n":
        reason = process.stderr.read().decode().strip()
        raise OSError(process.wait(), f"no namespace could be made: {reason}", "unshare")
    return process
