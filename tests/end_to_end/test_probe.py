"""`python -m tools.scheduler probe`: a running cluster becomes a scenario file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from tools.probe_links import rounds
from tools.scenario_files import read_scenario

ROOT = Path(__file__).resolve().parents[2]


def test_every_pair_of_hosts_meets_once_and_no_host_is_in_two_pairs_at_a_time() -> None:
    for hosts in range(1, 10):
        for one_at_a_time in (False, True):
            plan = list(rounds(hosts, one_at_a_time))
            met = [pair for pairs in plan for pair in pairs]
            assert sorted(met) == [(a, b) for a in range(hosts) for b in range(a + 1, hosts)]
            assert all(len({host for pair in pairs for host in pair}) == 2 * len(pairs) for pairs in plan)


def test_a_probe_of_three_hosts_writes_a_scenario_that_can_be_read(tmp_path: Path) -> None:
    out = tmp_path / "measured.toml"
    words = ["--out", str(out), "--host-size", "1", "--seconds-per-link", "0.01"]
    command = [sys.executable, "-m", "tools.scheduler", "probe", *words, "--", "--standalone", "--nproc-per-node", "3"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    scenario = read_scenario(str(out))
    off = ~np.eye(3, dtype=bool)
    assert scenario.num_devices == 3 and (scenario.bandwidth[off] > 1e7).all() and (scenario.delay[off] < 1.0).all()
    assert "3 hosts" in result.stdout and "links" in result.stderr


def test_a_scenario_file_of_another_suffix_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.scheduler", "probe", "--out", str(tmp_path / "measured.txt")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2 and "a scenario file is called NAME.toml" in result.stderr
