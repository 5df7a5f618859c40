"""The benchmark of collectives as a user starts it: that it ends, prints both tables and writes what it printed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parents[2] / "tools/bench_collectives.py"


def _run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(TOOL), *words], capture_output=True, text=True, timeout=240)


def test_it_prints_what_it_measured_and_writes_the_same_as_json(tmp_path: Path) -> None:
    result = _run("--mebibytes", "1", "--rounds", "3", "--json", str(tmp_path / "rows.json"))
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "rows.json").read_text())
    assert [row["kind"] for row in report["rows"]] == ["reduce-scatter"] * 4 + ["all-gather"] * 3
    for row in report["rows"]:
        assert f"{row['name']} " in result.stdout and f"{row['ms']:.1f}" in result.stdout
    assert [row["inter_bits_per_element"] <= row["at_most"] for row in report["traffic"]] == [True, True]


def test_processes_that_do_not_fill_nodes_are_refused_in_one_sentence() -> None:
    result = _run("--nproc-per-node", "3")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "3 is not a multiple of --node-size 2" in result.stderr
