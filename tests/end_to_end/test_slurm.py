"""A real Slurm of two nodes on this machine: jobs train, are reported, and resume after they were interrupted."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from training_run import read_metrics

from tools.sweep.runs import Run, runs
from tools.sweep.sweep_file import ROOT, read_sweep

_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
_NEEDED = ("slurmctld", "slurmd", "sbatch", "munged")
_ABSENT = [program for program in _NEEDED if shutil.which(program, path=_PATH) is None]

pytestmark = pytest.mark.skipif(
    bool(_ABSENT), reason=f"Slurm is not installed ({', '.join(_ABSENT)}): apt-get install slurm-wlm munge"
)


@dataclass
class Cluster:
    """The running cluster; jobs are submitted from `folder`, which holds what they need of the project."""

    folder: Path
    environment: dict[str, str]

    def command(self, *words: str) -> str:
        """What a program prints that is run in the folder."""
        ran = subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, f"{words}: {ran.stderr}{ran.stdout}"
        return ran.stdout.strip()

    def state(self, job: str) -> str:
        """The job's state, and why it waits."""
        words = dict(
            word.split("=", 1) for word in self.command("scontrol", "show", "job", "-o", job).split() if "=" in word
        )
        return words["JobState"]

    def wait(self, what: str, condition: Callable[[], bool], run: Run, seconds: float = 240.0) -> None:
        """Return as soon as ``condition()`` holds; an assertion with the job's logs if it takes longer."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not {what} after {seconds} s:\n{self.logs(run)}"
            time.sleep(0.1)

    def logs(self, run: Run) -> str:
        """Everything that a run's job has written."""
        paths = [*self.folder.glob("slurm-*.out"), *sorted((self.folder / run.folder).glob("*.log"))]
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in paths)

    def num_iterations(self, run: Run) -> int:
        """The lines of the run's metrics file so far."""
        path = self.folder / run.folder / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def record(self, run: Run) -> dict:
        """The run's record."""
        return json.loads((self.folder / run.folder / "run.json").read_text())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("jobs")
    for name in ("configs", "scripts", "pretrain_gpt.py"):
        (folder / name).symlink_to(ROOT / name)
    with tempfile.TemporaryDirectory(prefix="slurm_") as state:  # short: a socket's path has at most 107 characters
        place = f"{state}/c"
        environment = os.environ | {
            "PATH": _PATH, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1", "LOCAL_CLUSTER": place, "LOCAL_CLUSTER_PORT": str(_free_ports(3)),
            "SLURM_CONF": f"{place}/slurm.conf", "CLUSTER": "local_slurm",
        }  # fmt: skip
        script = str(ROOT / "scripts/slurm/local_cluster.sh")
        started = Cluster(folder, environment)
        started.command(script, "start")
        try:
            yield started
        finally:
            started.command(script, "stop")


def _free_ports(count: int) -> int:
    """The first of so many neighbouring ports that nobody listens on."""
    for first in range(16817, 32000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
    raise AssertionError("no free ports")


@pytest.fixture(scope="module")
def trial() -> list[Run]:
    return runs(read_sweep("slurm_trial"))


def test_a_job_on_two_nodes_of_two_ranks_trains_with_sdp4bit_and_is_reported(
    cluster: Cluster, trial: list[Run]
) -> None:
    run = trial[1]
    assert run.scheme == "sdp4bit" and (run.num_nodes, run.num_ranks) == (2, 4)
    job = cluster.command("sbatch", "--parsable", "--nodes=2", "scripts/slurm/train.sbatch", *run.words())
    cluster.wait("completed", lambda: cluster.state(job) == "COMPLETED", run)
    assert cluster.num_iterations(run) == 60
    logs = cluster.logs(run)
    assert "4 ranks: tensor 1, pipeline 1, context 1, expert 1, data 4" in logs and "2 nodes (n[1-2])" in logs
    report = cluster.command(sys.executable, "-m", "tools.report", "slurm_trial", "--runs", "runs/slurm_trial")
    [line] = [line for line in report.splitlines() if line.startswith(f"| {run.id}")]
    mean = sum(values["step_ms"] for values in read_metrics(cluster.folder / run.folder / "metrics.jsonl")[5:]) / 55e3
    told = float(re.search(r"\| ([\d.]+) ± [\d.]+ \|", line)[1])
    assert told == pytest.approx(mean, rel=2e-3) and "sdp4bit" in line
    assert "4 ranks; 55 iterations after 5 of warm-up" in report
    assert "not run" in next(line for line in report.splitlines() if line.startswith(f"| {trial[0].id}"))


def test_a_job_that_is_cancelled_and_requeued_resumes_where_it_was(cluster: Cluster, trial: list[Run]) -> None:
    """Then its time limit comes near: it saves and goes back into the queue by itself."""
    run = trial[0]
    job = cluster.command("sbatch", "--parsable", "--array=0", "scripts/slurm/slurm_trial.2n.sbatch")
    task = f"{job}_0"
    cluster.wait("in the middle", lambda: cluster.num_iterations(run) >= 3, run)
    cluster.command("scancel", task)
    cluster.wait("cancelled", lambda: cluster.state(task) == "CANCELLED", run)
    first = cluster.num_iterations(run)
    assert 3 <= first < 60
    assert f"saved checkpoint of iteration {first} to {run.folder}/checkpoints" in cluster.logs(run)
    cluster.command("scontrol", "requeue", task)
    cluster.wait("resumed", lambda: cluster.num_iterations(run) >= first + 3, run)
    assert f"loaded checkpoint {run.folder}/checkpoints/iter_{first:07d}" in cluster.logs(run)
    cluster.command("scancel", "--batch", "--signal=USR1", task)
    cluster.wait("completed", lambda: cluster.state(task) == "COMPLETED", run)
    assert "near the time limit: saving" in cluster.logs(run)
    assert cluster.record(run)["starts"] == 3
    iterations = [values["iteration"] for values in read_metrics(cluster.folder / run.folder / "metrics.jsonl")]
    assert iterations == list(range(1, 61))


def test_a_flag_that_is_wrong_ends_the_job_with_a_sentence_before_a_rank_starts(
    cluster: Cluster, trial: list[Run]
) -> None:
    words = ["--nodes=2", "scripts/slurm/train.sbatch", *trial[0].words(), "--tensor-model-parallel-size", "3"]
    job = cluster.command("sbatch", "--parsable", *words)
    cluster.wait("failed", lambda: cluster.state(job) == "FAILED", trial[0])
    output = (cluster.folder / f"slurm-{job}.out").read_text()
    assert output.count("\n") == 1 and "--tensor-model-parallel-size 3" in output
