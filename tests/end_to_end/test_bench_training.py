"""The benchmark of training, on two ranks and a few steps: that it measures what it says, not how fast it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools/bench_training.py"


def _run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(TOOL), *words], capture_output=True, text=True, timeout=240)


def test_variants_are_measured_in_one_run_and_their_parts_add_up_to_the_step() -> None:
    shape = "--nproc-per-node 2 --warmup 1 --steps 4 --json --variant first= --variant".split()
    result = _run(*shape, "second=--overlap-grad-reduce --overlap-param-gather")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    first, second = report["variants"]
    assert [first["name"], second["name"]] == ["first", "second"]
    assert first["step_time_ratio_to_first"] == 1.0 != second["step_time_ratio_to_first"]
    assert first["tokens_per_second"] == pytest.approx(report["tokens_per_step"] / first["step_ms"] * 1e3)
    assert report["tokens_per_step"] == 32 * 256
    parts = first["parts_ms"]
    assert all(parts[part] > 0 for part in ("data", "forward", "backward", "gradient sync", "optimizer"))
    assert parts["parameter sync"] > 0


def test_variants_with_different_compression_stand_side_by_side() -> None:
    """Each run keeps what was installed while it was set up: the schemes don't refuse or change one another."""
    flags = {"base": "", "qwd": "--compression qwd", "sdp4bit": "--compression sdp4bit --node-size 1", "again": ""}
    variants = [word for name, text in flags.items() for word in ("--variant", f"{name}={text}")]
    result = _run(*"--nproc-per-node 2 --warmup 1 --steps 2 --json".split(), *variants)
    assert result.returncode == 0, result.stderr
    assert [variant["name"] for variant in json.loads(result.stdout)["variants"]] == list(flags)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--variant", "plain"], "does not read NAME=FLAGS"),
        (["--variant", "a=--overlap-grad"], "did you mean --overlap-grad-reduce?"),
        (["--variant", "a=", "--variant", "b=--seq-length 128"], "variants have to agree on it"),
        (["--nproc-per-node", "3"], "not divisible by micro-batch size x data-parallel size"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_starts(words: list[str], sentence: str) -> None:
    result = _run(*words)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1
