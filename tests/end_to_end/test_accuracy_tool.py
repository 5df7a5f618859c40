"""The tool that runs an experiment, on tiny runs: what it prints and writes, its exit code, and what it reuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = """
title = "Tiny"
config = "configs/runs/benchmark.toml"
num-processes = 2
seeds = [1]
reference = "slow"
[variants.slow]
flags = "{length}"
[variants.fast]
flags = "{length} --lr 3e-3"
within = {within}
"""
LENGTH = "--global-batch-size 8 --train-iters 4 --lr-warmup-iters 1 --eval-interval 4 --eval-iters 1"


def _run(folder: Path, length: str = LENGTH, within: float = 99.0) -> subprocess.CompletedProcess:
    experiment = folder / "tiny.toml"
    experiment.write_text(EXPERIMENT.format(length=length, within=within))
    words = [str(experiment), "--runs", str(folder / "runs"), "--output", str(folder / "tiny.md")]
    command = [sys.executable, str(ROOT / "tools/accuracy.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_an_experiment_writes_its_page_reuses_what_stands_and_tells_a_missed_demand_by_its_exit_code(
    tmp_path: Path,
) -> None:
    first = _run(tmp_path)
    assert first.returncode == 0, first.stderr
    assert "0 of 2 runs stand" in first.stderr
    page = (tmp_path / "tiny.md").read_text()
    assert first.stdout.strip() in page
    assert all((tmp_path / f"tiny_{name}.png").exists() for name in ("curves", "differences"))

    again = _run(tmp_path, within=1e-9)
    assert again.returncode == 1
    assert "2 of 2 runs stand" in again.stderr
    assert "the demand is missed by fast" in again.stderr
    assert "| missed |" in (tmp_path / "tiny.md").read_text()

    changed = _run(tmp_path, length=f"{LENGTH} --weight-decay 0.5")
    assert changed.returncode == 2
    assert changed.stderr.count("\n") == 1
    assert "was run with another weight_decay" in changed.stderr


def test_a_run_that_fails_is_named_with_its_log(tmp_path: Path) -> None:
    result = _run(tmp_path, length=f"{LENGTH} --no-mock-data --data-path no/such/prefix")
    assert result.returncode == 2
    assert (
        f"slow, seed 1: failed with exit code 1, for the reason in {tmp_path}/runs/slow/seed_1/log.txt" in result.stderr
    )
    assert "no/such/prefix" in (tmp_path / "runs/slow/seed_1/log.txt").read_text()
