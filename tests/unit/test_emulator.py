"""The emulator where no privilege is needed: shaping commands, traffic by phase, the bucket of `--user`, sentences."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tools.emulator import network
from tools.emulator.cores import cores_by_node
from tools.emulator.counters import HEADER_BYTES, Traffic, read_counters
from tools.emulator.phases import MIB, PhaseCounter
from tools.emulator.shaping import (
    MAX_BANDS,
    burst_bytes,
    emulated_commands,
    link_classes,
    rate_change_command,
    real_host_commands,
)
from tools.emulator.slurm_cluster import configuration
from tools.emulator.token_bucket import ShapedWork, SharedLink
from tools.scenario_files import Host, Scenario, uniform_scenario

ROOT = Path(__file__).resolve().parents[2]


def _uneven() -> Scenario:
    """Hosts 0 and 1 are near each other, 2 and 3 far from them and from each other."""
    hosts = tuple(Host(f"region{number}", 1, np.inf) for number in range(4))
    bandwidth, delay = np.full((4, 4), 1e8), np.full((4, 4), 0.02)
    bandwidth[0, 1] = bandwidth[1, 0] = 1e9
    delay[0, 1] = delay[1, 0] = 0.001
    return Scenario("uneven", hosts, delay, bandwidth)


ADDRESSES = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]


@pytest.mark.parametrize(
    ("num_nodes", "cores", "expected"),
    [
        (2, [0, 1], [[0], [1]]),
        (2, [2, 3, 5, 7, 8], [[2, 3], [5, 7]]),
        (3, [0, 1], [[0, 1]] * 3),
        (1, [0, 1], [[0, 1]]),
    ],
)
def test_nodes_have_cores_of_their_own_where_there_are_enough(num_nodes, cores, expected) -> None:
    assert cores_by_node(num_nodes, cores) == expected


def test_destinations_of_equal_rate_and_delay_are_one_class() -> None:
    classes = link_classes(_uneven(), 0)
    assert [(link.bandwidth, link.delay, link.hosts) for link in classes] == [(1e9, 0.001, (1,)), (1e8, 0.02, (2, 3))]
    assert len(link_classes(uniform_scenario(4, 2, 1e9), 0)) == 1
    assert link_classes(uniform_scenario(1, 2, 1e9), 0) == []


@pytest.mark.parametrize(
    ("megabits", "expected"), [(4, 1_600), (20, 2_500), (200, 16_384), (1000, 31_250), (8000, 131_072)]
)
def test_what_passes_at_once_goes_by_the_rate(megabits, expected) -> None:
    assert burst_bytes(megabits * 1e6) == expected


def test_what_passes_at_once_takes_no_link_longer_than_a_packet_or_a_millisecond() -> None:
    for bandwidth in np.geomspace(1e5, 2e10, 200):
        allowed = max(1_600, bandwidth / 8 * 1e-3)
        assert burst_bytes(bandwidth) <= allowed, f"small messages would pass for free at {bandwidth:.0f} bit/s"


def test_an_emulated_node_has_a_class_a_rate_and_a_filter_a_destination() -> None:
    lines = emulated_commands("eth0", link_classes(_uneven(), 0), ADDRESSES, has_netem=False)
    assert [line for line in lines if "class add" in line][1].split("rate ")[1].startswith("100000000bit burst 12500 ")
    assert {(line.split()[-3], line.split()[-1]) for line in lines if line.startswith("filter")} == {
        ("10.0.0.2/32", "1:1"), ("10.0.0.3/32", "1:2"), ("10.0.0.4/32", "1:2"),
    }  # fmt: skip
    assert not any("netem" in line for line in lines)


def test_delays_are_emulated_where_the_kernel_has_netem() -> None:
    lines = emulated_commands("eth0", link_classes(_uneven(), 0), ADDRESSES, has_netem=True)
    assert [line.split("netem ")[1] for line in lines if "netem" in line] == [
        "delay 1ms limit 1000",
        "delay 20ms limit 1000",
    ]


def test_a_rate_is_changed_in_the_class_that_it_was_set_in() -> None:
    [made] = [
        line
        for line in emulated_commands("eth0", link_classes(uniform_scenario(2, 1, 2e8), 0), ADDRESSES, False)
        if "class" in line
    ]
    assert rate_change_command("eth0", 2e8) == made.replace("class add", "class change")


def test_a_real_host_is_shaped_by_netem_with_delay_and_rate() -> None:
    lines = real_host_commands("ens3", link_classes(_uneven(), 2), ADDRESSES)
    assert lines[0] == "qdisc add dev ens3 root handle 1: prio bands 2 priomap 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0"
    assert "netem delay 20ms rate 100mbit limit 1000" in lines[1]
    assert [line.split()[-3] for line in lines[2:]] == ["10.0.0.1/32", "10.0.0.2/32", "10.0.0.4/32"]


def test_more_distinct_links_than_bands_are_refused() -> None:
    size = MAX_BANDS + 1
    bandwidth = 1e9 + np.arange(size * size, dtype=float).reshape(size, size)
    hosts = tuple(Host(str(number), 1, np.inf) for number in range(size))
    scenario = Scenario("many", hosts, np.zeros((size, size)), bandwidth)
    with pytest.raises(ValueError, match="16 distinct links from one host"):
        real_host_commands("ens3", link_classes(scenario, 0), ["10.0.0.1"] * size)


def test_payload_is_what_packets_carry() -> None:
    assert (Traffic(10_000, 10) - Traffic(1_000, 1)).payload_bytes == 9_000 - 9 * HEADER_BYTES
    assert "lo" in read_counters()


def test_traffic_is_told_by_phase_beside_what_wire_says() -> None:
    sent = [Traffic(), Traffic()]

    def send(mebibytes: float) -> None:
        packets = 1000
        more = Traffic(round(mebibytes * MIB) + packets * HEADER_BYTES, packets)
        sent[:] = [traffic + more for traffic in sent]

    counter = PhaseCounter(lambda: list(sent))
    counter.line("  a step sends from this rank 1.00 MiB inside its node and 2.00 MiB to other nodes")
    for mebibytes, line in (
        (7, "iteration 10/ 40 |"),
        (80, "iteration 30/ 40 |"),
        (1, " validation loss at iteration 30"),
        (44, "iteration 40/ 40 |"),
    ):
        send(mebibytes)
        counter.line(line)
    counter.finish()
    assert [phase.name for phase in counter.phases] == [
        "start-up, to iteration 10", "iterations 11-30", "validation", "iterations 31-40", "the rest",
    ]  # fmt: skip
    assert counter.per_iteration() == pytest.approx([124 / 30 * MIB] * 2)
    assert counter.predicted_bytes == 2 * MIB
    assert counter.table([2, 2]).splitlines()[-1].split() == ["difference", "+3.3%", "+3.3%"]
    assert "differ in their ranks" in counter.table([2, 1])


def test_a_run_without_iterations_is_one_phase() -> None:
    counter = PhaseCounter(lambda: [Traffic(100, 1)])
    counter.line("anything")
    counter.finish()
    assert [phase.name for phase in counter.phases] == ["the whole run"] and counter.per_iteration() is None


def test_two_ranks_of_a_node_share_its_link(tmp_path) -> None:
    first, second = (SharedLink(tmp_path / "link", 8e6) for _ in range(2))
    begun = time.monotonic()
    assert first.reserve(100_000) - begun == pytest.approx(0.1, abs=0.05)
    assert second.reserve(100_000) - begun == pytest.approx(0.2, abs=0.05)
    assert first.sent_bytes == second.sent_bytes == 200_000


def test_shaped_work_is_over_when_its_bytes_would_be() -> None:
    class Done:
        def wait(self) -> bool:
            return True

        def is_completed(self) -> bool:
            return True

    work = ShapedWork(Done(), time.monotonic() + 0.1)
    assert not work.is_completed()
    begun = time.monotonic()
    assert work.wait() and time.monotonic() - begun > 0.08
    assert work.is_completed()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "--", "script.py"], "how fast are the links? Give --link-mbit RATE or --scenario NAME"),
        (["run", "--link-mbit", "0", "--", "x"], "argument --link-mbit: 0.0 is not a positive number"),
        (["run", "--link-mbit", "10"], "what is to run? Give it behind '--'"),
        (["run", "--link-mbit", "10", "--scenario", "case3", "--", "x"], "--link-mbit with --scenario"),
        (["run", "--scenario", "nowhere", "--", "x"], "there is no scenario"),
        (["run", "--launcher", "slurm", "--user", "--link-mbit", "10", "--", "x"], "--launcher slurm with --user"),
        (["shell", "0"], "no emulated cluster runs"),
        (["frobnicate"], "invalid choice"),
    ],
)
def test_bad_input_is_one_sentence(words, sentence) -> None:
    done = subprocess.run([sys.executable, "-m", "tools.emulator", *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_slurm_where_it_is_not_installed_is_one_sentence() -> None:
    words = ["run", "--launcher", "slurm", "--link-mbit", "10", "--", "x"]
    done = subprocess.run(
        [sys.executable, "-m", "tools.emulator", *words], capture_output=True, text=True, cwd=ROOT, env={"PATH": ""}
    )
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "which is not found: install it (Debian, Ubuntu: apt-get install slurm-wlm munge)" in done.stderr


def test_a_slurm_node_has_as_many_cpus_as_its_host_devices() -> None:
    scenario = uniform_scenario(3, 2, 1e9)
    network = SimpleNamespace(scenario=scenario, addresses=["10.77.0.1", "10.77.0.2", "10.77.0.3"])
    text = configuration(network, Path("/kept"))
    lines = text.splitlines()
    assert "NodeName=node2 NodeAddr=10.77.0.3 CPUs=2 State=UNKNOWN" in lines
    assert "PartitionName=emulated Nodes=node[0-2] Default=YES" in lines
    assert "StateSaveLocation=/kept/state" in lines and "@user" not in text and "@folder" not in text


def test_user_mode_shapes_without_privilege_and_gives_nodes_names(tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import socket, sys, time, torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "x = torch.arange(100_000, dtype=torch.uint8) + dist.get_rank()\n"
        "y = torch.empty_like(x)\n"
        "dist.barrier(); begun = time.time()\n"
        "dist.all_to_all_single(y, x)\n"
        "assert y[0] == 0 if dist.get_rank() == 0 else True\n"
        "print('took', time.time() - begun, socket.gethostname(), sys.argv[1], flush=True)\n"
        "dist.barrier(); dist.destroy_process_group()\n"
    )
    words = ["run", "--user", "--ranks-per-node", "1", "--link-mbit", "2", "--", str(script), "word"]
    done = subprocess.run([sys.executable, "-m", "tools.emulator", *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = sorted(line.split() for line in done.stdout.splitlines() if line.startswith("took"))
    assert {line[2] for line in lines} == {"node0", "node1"} and {line[3] for line in lines} == {"word"}
    assert all(float(line[1]) >= 0.2 for line in lines), "50,000 bytes at 2 Mbit/s"
    assert "node0       0.048" in done.stdout


def test_the_rule_by_which_tcp_sends_is_the_kernels_and_unknown_where_it_does_not_tell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = tmp_path / "tcp_congestion_control"
    monkeypatch.setattr(network, "Path", lambda name: told if name.endswith("tcp_congestion_control") else Path(name))
    assert network.congestion_control() == "unknown"
    told.write_text("cubic\n")
    assert network.congestion_control() == "cubic"
