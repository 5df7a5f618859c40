"""A script as a Slurm job on all nodes of an emulated network: sbatch, and torchrun as one task a node."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path

from tools.emulator.following import FollowedJob
from tools.emulator.launch import GRACE_AFTER_FAILURE_SECONDS, torchrun_words
from tools.emulator.slurm_cluster import SlurmCluster

_ASK_INTERVAL_SECONDS = 1.0
_NOT_ENDED = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED"}
# Slurm's TERM to the batch script would end it before the ranks have saved: it waits for srun, which is out of reach in
# a session of its own. A trapped signal ends `wait` before srun has ended.
_BATCH = """#!/bin/bash
trap : TERM
setsid srun --ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=1 --output={output} {task} &
while true; do
    wait $! && code=0 || code=$?
    kill -0 $! 2> /dev/null || exit "$code"
done
"""
# The shell, too, lives on after TERM, until torchrun has ended.
_TASK = """trap : TERM
{launcher}{redirection}
code=$?
echo $code > {ended}.part
mv {ended}.part {ended}
exit $code
"""


class SlurmJob(FollowedJob):
    """`words` (a script and its arguments, or `-m` and a module) on every device of the cluster's network.

    As in any job, what rank 0 writes on stderr stands among its lines.
    """

    def __init__(self, cluster: SlurmCluster, words: list[str], log_folder: Path) -> None:
        super().__init__(log_folder)
        self._cluster, self._words = cluster, words
        self._fifo = cluster.folder / "rank0"
        os.mkfifo(self._fifo)
        # For writing, too: that opening waits for nobody, and the end of a writer is not the end of the file.
        self.output = os.open(self._fifo, os.O_RDWR)
        self.number = cluster.command("sbatch", "--parsable", *self._options(), str(self._batch_script()))
        self._ask_at, self._fields = 0.0, {"JobState": "PENDING"}

    def _options(self) -> list[str]:
        nodes = f"--nodes={len(self._cluster.network.nodes)}"
        output = f"--output={self.log_folder / 'batch.txt'}"
        return [nodes, "--ntasks-per-node=1", "--exclusive", "--no-requeue", "--job-name=emulated", output]

    def _batch_script(self) -> Path:
        """Nodes differ in their number of ranks: the task of each is a script of its own, called after the node."""
        for number in range(len(self._cluster.network.nodes)):
            launcher = shlex.join(torchrun_words(self._cluster.network, number, self._words, self.log_folder))
            redirection = "" if number else f" > {shlex.quote(str(self._fifo))} 2>&1"
            ended = shlex.quote(str(self._ended(number)))
            task = _TASK.format(launcher=launcher, redirection=redirection, ended=ended)
            (self._cluster.folder / f"node{number}.sh").write_text(task)
        task = ["sh", "-c", 'exec sh "$0/$SLURMD_NODENAME.sh"', str(self._cluster.folder)]
        path = self._cluster.folder / "job.sh"
        path.write_text(_BATCH.format(output=shlex.quote(str(self.log_folder / "%N.txt")), task=shlex.join(task)))
        return path

    def _ended(self, number: int) -> Path:
        """The file with the exit code of a node's torchrun, once that has ended."""
        return self._cluster.folder / f"node{number}.ended"

    def is_running(self) -> bool:
        """Whether Slurm says so; it is asked once a second."""
        if self._is_active() and time.monotonic() >= self._ask_at:
            answer = self._cluster.command("scontrol", "show", "job", "--oneliner", self.number)
            self._fields = dict(word.split("=", 1) for word in answer.split() if "=" in word)
            self._ask_at = time.monotonic() + _ASK_INTERVAL_SECONDS
            if self._is_active():
                self._fields |= self._told_by_the_nodes()
        return self._is_active()

    def _is_active(self) -> bool:
        return self._fields["JobState"] in _NOT_ENDED

    def _told_by_the_nodes(self) -> dict[str, str]:
        """The job's end as Slurm should have told it a while ago: srun never ends if a cut link lost a node's word."""
        files = [self._ended(number) for number in range(len(self._cluster.network.nodes))]
        if not all(file.exists() for file in files):
            return {}
        if time.time() < max(file.stat().st_mtime for file in files) + GRACE_AFTER_FAILURE_SECONDS:
            return {}
        code = max(int(file.read_text()) for file in files)
        return {"JobState": "FAILED" if code else "COMPLETED", "ExitCode": f"{code}:0"}

    def ask_to_stop(self) -> None:
        """Cancel the job: SIGTERM, and SIGKILL after Slurm's KillWait."""
        self._cluster.command("scancel", self.number)

    def exit_code(self) -> int:
        """The job's own; 128 + N where signal N ended it, 1 where something else did (a node that is lost)."""
        code, _, signal = self._fields["ExitCode"].partition(":")
        failed = 0 if self._fields["JobState"] == "COMPLETED" else 1
        return int(code) or (128 + int(signal) if int(signal) else failed)
