"""The emulated cluster as root: its links, also cut, its nodes, and that nothing of it survives, however it ends."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
from emulated_cluster import (
    ROOT,
    TRAINING,
    WAITING,
    cut_for_good,
    namespaces_of,
    needs_privilege,
    nodes_left,
    processes_in,
    processes_left_in,
    run,
    started,
)
from training_run import read_metrics

from tools.emulator.cores import cores_by_node

pytestmark = needs_privilege

EXCHANGE = """
import os, socket, sys, time, torch, torch.distributed as dist
dist.init_process_group("gloo")
sent = torch.full((2**22,), dist.get_rank(), dtype=torch.uint8)
received = torch.empty_like(sent)
names = [None] * dist.get_world_size()
dist.all_gather_object(names, socket.gethostname())
cores = [None] * dist.get_world_size()
dist.all_gather_object(cores, sorted(os.sched_getaffinity(0)))
for number in range(1, 4):
    dist.barrier(); begun = time.time()
    dist.all_to_all_single(received, sent)
    dist.barrier()
    if dist.get_rank() == 0:
        print(f"iteration {number}/ 3 | {time.time() - begun:.3f} s, {names}, {cores}", flush=True)
dist.destroy_process_group()
"""
UNEVEN = """
[[region]]
name = "here"
hosts = 2
devices-per-host = 1
intra-gbps = 0.4
intra-delay-ms = 0.0
[[region]]
name = "there"
hosts = 1
devices-per-host = 2
[[link]]
between = ["here", "there"]
gbps = 0.1
delay-ms = 20.0
"""


@pytest.fixture
def waiting(tmp_path):
    script = tmp_path / "waiting.py"
    script.write_text(WAITING)
    return ["run", "--ranks-per-node", "1", "--link-mbit", "100", "--", str(script)]


def test_a_link_is_as_slow_as_told_nodes_have_names_and_cores_and_the_kernel_counts_what_was_sent(tmp_path) -> None:
    script = tmp_path / "exchange.py"
    script.write_text(EXCHANGE)
    done = run(["run", "--ranks-per-node", "1", "--link-mbit", "100", "--", str(script)])
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"iteration \d/ 3 \| ([\d.]+) s, (\[.*?\]), (.*)", done.stdout)
    assert [names for _, names, _ in lines] == ["['node0', 'node1']"] * 3
    expected = cores_by_node(2, sorted(os.sched_getaffinity(0)))
    assert [cores for _, _, cores in lines] == [str(expected)] * 3
    # 2 MiB at 100 Mbit/s; a megabit may pass at once.
    assert all(float(seconds) > 0.15 for seconds, *_ in lines)
    [counted] = re.findall(r"a step, without packet headers +([\d.]+) +([\d.]+)", done.stdout)
    assert [float(mebibytes) for mebibytes in counted] == pytest.approx([2.0, 2.0], rel=0.03)


def test_a_killed_run_leaves_no_process_and_no_namespace(waiting) -> None:
    with started(waiting, "runs") as process:
        namespaces = namespaces_of(process.pid)
        assert len(namespaces) == 5 and len(processes_in(namespaces)) >= 6, "holders, torchruns and ranks"
        process.kill()
        process.wait()
        assert not nodes_left(process.pid)
        assert not processes_left_in(namespaces)


def test_ctrl_c_asks_the_ranks_to_stop_and_takes_everything_down(waiting) -> None:
    with started(waiting, "runs") as process:
        namespaces = namespaces_of(process.pid)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130 and "asked to stop" in output
        assert not processes_left_in(namespaces)


def test_what_runs_is_seen_entered_and_ended(waiting) -> None:
    with started(waiting, "runs") as process:
        status = run(["status"]).stdout
        assert f"cluster of process {process.pid}" in status and "node1  10.77.0.2" in status
        inside = run(["shell", "1", "--", "sh", "-c", "hostname; pwd; ip -brief address show eth0"])
        assert inside.returncode == 0, inside.stderr
        assert inside.stdout.split()[:2] == ["node1", str(ROOT)] and "10.77.0.2/24" in inside.stdout
        assert "there is no node 7" in run(["shell", "7"]).stderr
        assert str(process.pid) in run(["down"]).stdout
        assert process.wait(timeout=30) == 130
        assert not nodes_left(process.pid)
    assert "no emulated cluster runs" in run(["down"]).stdout


def test_a_rank_that_fails_ends_the_run_with_its_words(tmp_path) -> None:
    script = tmp_path / "failing.py"
    script.write_text(
        "import os, time\nif os.environ['RANK'] == '3':\n    raise SystemExit('rank 3 has enough')\ntime.sleep(1000)\n"
    )
    begun = time.monotonic()
    done = run(["run", "--link-mbit", "100", "--", str(script)])
    assert done.returncode == 1 and "rank 3 has enough" in done.stderr
    assert time.monotonic() - begun < 60


def test_every_pair_of_an_uneven_network_has_its_rate_and_nodes_their_devices(tmp_path) -> None:
    (tmp_path / "uneven.toml").write_text(UNEVEN)
    script = tmp_path / "tc.py"
    script.write_text(
        "import os, socket, subprocess\n"
        "if os.environ['RANK'] == '0':\n"
        "    print(os.environ['WORLD_SIZE'], subprocess.getoutput('tc class show dev eth0'))\n"
        "    print(subprocess.getoutput('tc filter show dev eth0'), flush=True)\n"
    )
    done = run(["run", "--scenario", str(tmp_path / "uneven.toml"), "--", str(script)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 ")
    assert re.findall(r"class htb (1:\d) .*? rate (\w+)", done.stdout) == [("1:1", "400Mbit"), ("1:2", "100Mbit")]
    assert re.findall(r"flowid (1:\d)", done.stdout) == ["1:1", "1:2"]
    assert ("no netem: delays are left out" in done.stderr) == ("netem" not in done.stdout)


DUO = [*TRAINING, "--compression", "duo4bit"]
AT_20_MBIT = ["run", "--link-mbit", "20", "--", *DUO, "--metrics-file"]


def _losses(path: Path) -> list[tuple[float, float]]:
    return [(row["lm_loss"], row["grad_norm"]) for row in read_metrics(path) if "lm_loss" in row]


@pytest.fixture(scope="module")
def losses_of_a_whole_link(tmp_path_factory) -> list[tuple[float, float]]:
    """Those of DUO on a link that is never cut."""
    metrics = tmp_path_factory.mktemp("whole") / "metrics.jsonl"
    done = run([*AT_20_MBIT, str(metrics)])
    assert done.returncode == 0, done.stderr
    assert len(_losses(metrics)) == 12
    return _losses(metrics)


def test_a_link_that_is_cut_for_five_seconds_changes_no_bit_of_the_training(tmp_path, losses_of_a_whole_link) -> None:
    metrics = tmp_path / "metrics.jsonl"
    with started([*AT_20_MBIT, str(metrics)], "iteration        4/") as process:
        begun = time.monotonic()
        assert run(["cut", "1", "--seconds", "5"]).returncode == 0
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
        assert time.monotonic() - begun > 5
    assert _losses(metrics) == losses_of_a_whole_link


def test_a_link_that_is_cut_for_longer_than_the_time_out_ends_every_rank_and_a_restart_goes_on_bit_by_bit(
    tmp_path, losses_of_a_whole_link
) -> None:
    metrics = tmp_path / "metrics.jsonl"
    words = [*AT_20_MBIT, str(metrics), "--distributed-timeout-minutes", "0.2"]
    words += ["--save-interval", "2", "--save", str(tmp_path), "--load", str(tmp_path)]
    with started(words, "iteration        5/") as process:
        with cut_for_good(1):
            begun = time.monotonic()
            output, errors = process.communicate(timeout=100)
            assert process.returncode == 1, errors
            # It is told in the step that is cut; what a step and torchrun's own end take comes on top.
            assert 10 < time.monotonic() - begun < 40
    assert "iteration       12/" not in output
    assert "[rank0]: RuntimeError" in errors
    told = set(re.findall(r"\[rank(\d)\]: RuntimeError.*Timed out waiting 12000ms", errors))
    assert told and all(f"[rank{rank}]: RuntimeError" in errors for rank in range(4)), errors
    done = run(words)
    assert done.returncode == 0 and "loaded checkpoint" in done.stdout, done.stderr
    assert _losses(metrics) == losses_of_a_whole_link
