"""Slurm on the emulated cluster, as root: a job trains there, and nothing of Slurm survives, however the run ends."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable

import pytest
from emulated_cluster import (
    TRAINING,
    WAITING,
    cut_for_good,
    namespaces_of,
    needs_privilege,
    processes_in,
    processes_left_in,
    run,
    started,
    what_is_missing,
)
from training_run import read_metrics

from tools.emulator.slurm_cluster import check_slurm

ABSENT = what_is_missing(check_slurm)
pytestmark = [
    needs_privilege,
    pytest.mark.skipif(bool(ABSENT), reason=ABSENT or "Slurm is installed"),
]
BEAT = """
import datetime, time, torch, torch.distributed as dist
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=5))
while True:
    dist.all_reduce(torch.ones(1))
    print("beat", flush=True)
    time.sleep(0.1)
"""
DAEMONS = ("munged", "slurmctld", "slurmd", "slurmstepd")


def slurm(*words: str, link_mbit: str = "100", ranks: str = "1") -> list[str]:
    return ["run", "--launcher", "slurm", "--ranks-per-node", ranks, "--link-mbit", link_mbit, "--", *words]


@pytest.fixture
def waiting(tmp_path) -> list[str]:
    script = tmp_path / "waiting.py"
    script.write_text(WAITING)
    return slurm(str(script))


def test_a_job_of_two_nodes_trains_over_a_shaped_link_and_its_bytes_are_counted(tmp_path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    words = [*TRAINING, "--compression", "sdp4bit", "--metrics-file", str(metrics)]
    done = run(slurm(*words, link_mbit="50", ranks="2"))
    assert done.returncode == 0, done.stderr
    assert "Slurm job 1" in done.stderr and "links of 50 Mbit/s" in done.stderr
    assert "4 ranks: tensor 1, pipeline 1, context 1, expert 1, data 4" in done.stdout
    assert re.findall(r"iteration +(\d+)/ +12", done.stdout) == [str(number) for number in range(1, 13)]
    assert [row["iteration"] for row in read_metrics(metrics)] == list(range(1, 13))
    [differences] = re.findall(r"difference +([+-][\d.]+)% +([+-][\d.]+)%", done.stdout)
    assert all(abs(float(difference)) < 5 for difference in differences), done.stdout


def test_a_rank_that_fails_ends_the_job_with_its_words_and_its_exit_code(tmp_path) -> None:
    script = tmp_path / "failing.py"
    script.write_text(
        "import os, time\n"
        "assert os.environ['SLURM_JOB_NUM_NODES'] == '2' and os.environ['GLOO_SOCKET_IFNAME'] == 'eth0'\n"
        "if os.environ['RANK'] == '1':\n    raise SystemExit('rank 1 has enough')\ntime.sleep(1000)\n"
    )
    done = run(slurm(str(script)))
    assert done.returncode != 0 and "rank 1 has enough" in done.stderr
    assert f"the script failed with exit code {done.returncode}" in done.stderr


def test_a_job_ends_with_the_time_out_of_its_ranks_though_a_cut_link_keeps_slurm_from_knowing(tmp_path) -> None:
    script = tmp_path / "beat.py"
    script.write_text(BEAT)
    with started(slurm(str(script)), "beat") as process, cut_for_good(1):
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Timed out waiting 5000ms" in output and "Timed out waiting 5000ms" in errors, "rank 0 and rank 1"


def _ctrl_c(process) -> None:
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "asked to stop" in output


def _kill(process) -> None:
    process.kill()
    process.wait()


def _cancel(process) -> None:
    """As someone else would who sees the job in squeue."""
    config = re.search(r"SLURM_CONF=(\S+)", process.stderr.readline() + process.stderr.readline())[1]
    done = run(["shell", "0", "--", "env", f"SLURM_CONF={config}", "scancel", "1"])
    assert done.returncode == 0, done.stderr
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and "asked to stop" in output


@pytest.mark.parametrize("end", [_ctrl_c, _kill, _cancel])
def test_of_a_job_that_is_stopped_killed_or_cancelled_no_process_is_left(waiting, end: Callable) -> None:
    with started(waiting, "runs") as process:
        namespaces = namespaces_of(process.pid)
        running = " ".join(processes_in(namespaces))
        assert all(daemon in running for daemon in DAEMONS)
        end(process)
        assert not processes_left_in(namespaces)
