"""The quickstart on tiny runs and generated tokens: both are trained, shown side by side, and not trained again."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

TOOL = Path(__file__).resolve().parents[2] / "tools/quickstart.py"
RUN = """
compression = "{name}"
node-size = 1
min-quantized-bucket = 0
log-compression-interval = {interval}
num-layers = 2
hidden-size = 64
num-attention-heads = 4
seq-length = 32
max-position-embeddings = 32
vocab-size = 127
mock-data = true
num-workers = 0
bf16 = true
use-distributed-optimizer = true
micro-batch-size = 2
global-batch-size = 4
train-iters = {iterations}
lr = 1e-3
lr-decay-iters = 100
eval-interval = 2
eval-iters = 1
save = "{folder}/checkpoints"
load = "{folder}/checkpoints"
save-interval = 2
metrics-file = "{folder}/metrics.jsonl"
tensorboard-dir = "{folder}/tensorboard"
"""


def _quickstart(folder: Path, iterations: int) -> subprocess.CompletedProcess:
    words = ["--nproc-per-node", "2", "--config"]
    for name, interval in (("baseline", 0), ("sdp4bit", 2)):
        path = folder / f"{name}.toml"
        path.write_text(RUN.format(name=name, interval=interval, iterations=iterations, folder=folder / name))
        words.append(str(path))
    return subprocess.run([sys.executable, str(TOOL), *words], capture_output=True, text=True, timeout=240)


def _row(output: str, name: str) -> list[str]:
    line = next(line for line in output.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_both_runs_are_trained_shown_and_continued(tmp_path: Path) -> None:
    first = _quickstart(tmp_path, iterations=4)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("from random weights") >= 2
    assert _row(first.stdout, "iterations") == ["4", "4"]
    baseline, sdp4bit = map(float, _row(first.stdout, "MiB a rank sends per step to other nodes"))
    assert 0 < sdp4bit < baseline / 3
    picture = tmp_path / "sdp4bit/loss.png"
    colors = {color for _, color in Image.open(picture).convert("RGB").getcolors(maxcolors=1 << 24)}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colors

    longer = _quickstart(tmp_path, iterations=6)
    assert longer.returncode == 0, longer.stderr
    assert len(re.findall(r"training \S+ from iteration 4 with 2 processes", longer.stdout)) == 2
    assert _row(longer.stdout, "iterations") == ["6", "6"]

    again = _quickstart(tmp_path, iterations=6)
    assert again.stdout.count("is complete (6 iterations)") == 2
    assert _row(again.stdout, "validation loss") == _row(longer.stdout, "validation loss")


def test_a_wrong_flag_is_told_once_before_anything_is_prepared(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(RUN.format(name="sdp4bit", interval=2, iterations=4, folder=tmp_path) + "lr-decay-stile = 1\n")
    result = subprocess.run(
        [sys.executable, str(TOOL), "--config", str(path)], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "did you mean --lr-decay-style?" in result.stderr
    assert not (tmp_path / "checkpoints").exists()
