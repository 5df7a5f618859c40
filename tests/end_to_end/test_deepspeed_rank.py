"""The peers of `tools/bench_layouts.py` train: skipped, by name, where DeepSpeed is not installed."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path

import pytest
from torchrun import torchrun

CONFIG = Path(__file__).resolve().parents[2] / "configs/runs/uneven_small.toml"
VOCABULARY = 512


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is an optional extra and is not installed")
@pytest.mark.parametrize(
    ("system", "order"), [("zero3", []), ("pipeline", []), ("pipeline", ["--device-of-rank", "0,2,1,3"])]
)
def test_a_peer_trains_and_writes_every_step(system: str, order: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = [system, "--config", str(CONFIG), "--pp", "2", "--steps", "3", "--out", str(out), *order]
    with torchrun(4, words, "tools/deepspeed_rank.py") as job:
        assert job.wait(120) == 0, job.text()
    written = json.loads(out.read_text())
    assert len(written["seconds"]) == 3 and min(written["seconds"]) > 0
    assert written["losses"] == pytest.approx([math.log(VOCABULARY)] * 3, rel=0.2)
    assert len(set(written["losses"])) == 3
