"""The benchmark of single exchanges as a user starts it: that it ends with a row for every way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parents[2] / "tools/bench_exchange.py"


def test_it_has_a_time_and_the_processors_work_for_every_way() -> None:
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(TOOL), "--bytes", "100000"]
    result = subprocess.run(
        [sys.executable, *words, "--repeats", "2"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    rows = result.stdout.splitlines()
    assert [row[:28].strip() for row in rows] == [
        "one way", "the other way", "both, sends posted first", "both, receives posted first",
        "both, torch's all-to-all", "both, all_to_all.py", "both, sockets without gloo",
    ]  # fmt: skip
    assert all("ms of the processors a MB" in row for row in rows)
