"""The emulated cluster as root: its links, its nodes, and that nothing of it survives, however it ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.emulator.namespaces import check_privilege
from tools.emulator.running import running_nodes

ROOT = Path(__file__).resolve().parents[2]
TOOL = [sys.executable, "-m", "tools.emulator"]


def _privilege() -> str:
    try:
        check_privilege()
    except ValueError as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(_privilege()), reason=_privilege() or "permitted")

EXCHANGE = """
import socket, sys, time, torch, torch.distributed as dist
dist.init_process_group("gloo")
sent = torch.full((2**22,), dist.get_rank(), dtype=torch.uint8)
received = torch.empty_like(sent)
names = [None] * dist.get_world_size()
dist.all_gather_object(names, socket.gethostname())
for number in range(1, 4):
    dist.barrier(); begun = time.time()
    dist.all_to_all_single(received, sent)
    dist.barrier()
    if dist.get_rank() == 0:
        print(f"iteration {number}/ 3 | {time.time() - begun:.3f} s, {names}", flush=True)
dist.destroy_process_group()
"""
WAITING = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("asked to stop", flush=True), sys.exit(0)))
print("runs", flush=True)
time.sleep(1000)
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


def _run(words: list[str], **how) -> subprocess.CompletedProcess:
    return subprocess.run([*TOOL, *words], capture_output=True, text=True, cwd=ROOT, timeout=120, **how)


@contextlib.contextmanager
def _started(words: list[str], until: str):
    """The tool with `words`, when it has printed `until`; nothing of it is left behind, whatever the test finds."""
    # Tests that run in the background of a shell have Ctrl-C switched off, and would hand that on.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen([*TOOL, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    signal.signal(signal.SIGINT, before)
    try:
        while until not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        yield process
    finally:
        process.kill()
        process.wait()


def _leftovers(launcher: int) -> list:
    deadline = time.monotonic() + 10
    while (left := [node for node in running_nodes() if node.launcher == launcher]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def _namespaces(launcher: int) -> set[str]:
    """The namespaces of the nodes of a cluster."""
    nodes = [node for node in running_nodes() if node.launcher == launcher]
    return {os.readlink(f"/proc/{node.pid}/ns/{kind}") for node in nodes for kind in ("net", "pid", "uts")}


def _processes_in(namespaces: set[str]) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if {os.readlink(folder / "ns" / kind) for kind in ("net", "pid", "uts")} & namespaces:
                found.append((folder / "cmdline").read_text())
    return found


def _left_in(namespaces: set[str]) -> list[str]:
    """What is still there after ten seconds; a process that is being killed takes a moment."""
    deadline = time.monotonic() + 10
    while (left := _processes_in(namespaces)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


@pytest.fixture
def waiting(tmp_path):
    script = tmp_path / "waiting.py"
    script.write_text(WAITING)
    return ["run", "--ranks-per-node", "1", "--link-mbit", "100", "--", str(script)]


def test_a_link_is_as_slow_as_told_nodes_have_names_and_the_kernel_counts_what_was_sent(tmp_path) -> None:
    script = tmp_path / "exchange.py"
    script.write_text(EXCHANGE)
    done = _run(["run", "--ranks-per-node", "1", "--link-mbit", "100", "--", str(script)])
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"iteration \d/ 3 \| ([\d.]+) s, (.*)", done.stdout)
    assert [names for _, names in lines] == ["['node0', 'node1']"] * 3
    # 2 MiB at 100 Mbit/s; a megabit may pass at once.
    assert all(float(seconds) > 0.15 for seconds, _ in lines)
    [counted] = re.findall(r"a step, without packet headers +([\d.]+) +([\d.]+)", done.stdout)
    assert [float(mebibytes) for mebibytes in counted] == pytest.approx([2.0, 2.0], rel=0.03)


def test_a_killed_run_leaves_no_process_and_no_namespace(waiting) -> None:
    with _started(waiting, "runs") as process:
        namespaces = _namespaces(process.pid)
        assert len(namespaces) == 5 and len(_processes_in(namespaces)) >= 6, "holders, torchruns and ranks"
        process.kill()
        process.wait()
        assert not _leftovers(process.pid)
        assert not _left_in(namespaces)


def test_ctrl_c_asks_the_ranks_to_stop_and_takes_everything_down(waiting) -> None:
    with _started(waiting, "runs") as process:
        namespaces = _namespaces(process.pid)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130 and "asked to stop" in output
        assert not _left_in(namespaces)


def test_what_runs_is_seen_entered_and_ended(waiting) -> None:
    with _started(waiting, "runs") as process:
        status = _run(["status"]).stdout
        assert f"cluster of process {process.pid}" in status and "node1  10.77.0.2" in status
        inside = _run(["shell", "1", "--", "sh", "-c", "hostname; pwd; ip -brief address show eth0"])
        assert inside.returncode == 0, inside.stderr
        assert inside.stdout.split()[:2] == ["node1", str(ROOT)] and "10.77.0.2/24" in inside.stdout
        assert "there is no node 7" in _run(["shell", "7"]).stderr
        assert str(process.pid) in _run(["down"]).stdout
        assert process.wait(timeout=30) == 130
        assert not _leftovers(process.pid)
    assert "no emulated cluster runs" in _run(["down"]).stdout


def test_a_rank_that_fails_ends_the_run_with_its_words(tmp_path) -> None:
    script = tmp_path / "failing.py"
    script.write_text(
        "import os, time\nif os.environ['RANK'] == '3':\n    raise SystemExit('rank 3 has enough')\ntime.sleep(1000)\n"
    )
    begun = time.monotonic()
    done = _run(["run", "--link-mbit", "100", "--", str(script)])
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
    done = _run(["run", "--scenario", str(tmp_path / "uneven.toml"), "--", str(script)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 ")
    assert re.findall(r"class htb (1:\d) .*? rate (\w+)", done.stdout) == [("1:1", "400Mbit"), ("1:2", "100Mbit")]
    assert re.findall(r"flowid (1:\d)", done.stdout) == ["1:1", "1:2"]
    assert ("no netem: delays are left out" in done.stderr) == ("netem" not in done.stdout)


TRAINING = (
    "pretrain_gpt.py --config configs/runs/benchmark.toml --num-layers 2 --seq-length 64 --micro-batch-size 1 "
    "--global-batch-size 4 --train-iters 12 --log-interval 1 --eval-iters 0 --compression duo4bit"
).split()


def _losses(path: Path) -> list[tuple[float, float]]:
    import json

    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(row["lm_loss"], row["grad_norm"]) for row in rows if "lm_loss" in row]


def test_a_link_that_is_cut_for_five_seconds_changes_no_bit_of_the_training(tmp_path) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    words = ["run", "--link-mbit", "20", "--", *TRAINING, "--metrics-file"]
    with _started([*words, str(cut)], "iteration        4/") as process:
        begun = time.monotonic()
        assert _run(["cut", "1", "--seconds", "5"]).returncode == 0
        output, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
        assert time.monotonic() - begun > 5
    done = _run([*words, str(whole)])
    assert done.returncode == 0, done.stderr
    assert len(_losses(cut)) == 12 and _losses(cut) == _losses(whole)
