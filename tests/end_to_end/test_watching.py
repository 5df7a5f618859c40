"""What people watch while a run trains: the log line, the metrics file, TensorBoard, and the parts of a step."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import pytest
from parallel_launch import parallel_launch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_run import TINY, read_metrics, run_training, train

WATCHED = [
    *TINY,
    *"--train-iters 4 --eval-interval 2 --eval-iters 1 --timing-log-level 1".split(),
    "--log-interval",
    "2",
]


def _train_with_log(argv: list[str], log: str) -> None:
    """Train with standard output in a file; the process ends afterwards, so nothing is put back."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    train(argv)


def test_log_line_metrics_and_tensorboard_tell_the_same(tmp_path: Path) -> None:
    metrics, log = tmp_path / "metrics.jsonl", tmp_path / "log.txt"
    flags = [*WATCHED, "--tensorboard-dir", str(tmp_path / "tensorboard"), "--metrics-file", str(metrics)]
    parallel_launch(2, _train_with_log, flags, str(log))
    lines, text = read_metrics(metrics), log.read_text()

    assert [line["iteration"] for line in lines] == [1, 2, 3, 4]
    assert ["validation_loss" in line for line in lines] == [False, True, False, True]
    for line in lines:
        # 16 samples of 32 tokens; the words of the metrics, related as they say.
        assert line["tokens_per_second"] * line["step_ms"] / 1e3 == pytest.approx(16 * 32)
        assert line["tflops_per_gpu"] > 0 and line["grad_norm"] > 0
    # log(128) is the loss of a model that knows nothing.
    assert lines[0]["lm_loss"] == pytest.approx(math.log(128), rel=0.05)

    logged = re.findall(r"iteration +(\d+)/ +4 .*lm loss: (\S+) .*time left: (\S+) ", text)
    assert [(int(iteration), left) for iteration, _, left in logged][-1] == (4, "0:00:00")
    for (_, loss, _), pair in zip(logged, (lines[:2], lines[2:]), strict=True):
        assert float(loss) == pytest.approx(sum(line["lm_loss"] for line in pair) / 2, rel=1e-6)
    validations = re.findall(r"validation loss at iteration (\d+) \| lm loss value: (\S+) ", text)
    assert [int(iteration) for iteration, _ in validations] == [2, 4]
    assert float(validations[1][1]) == pytest.approx(lines[3]["validation_loss"], rel=1e-6)
    assert "test loss at iteration 4" in text
    assert re.search(r"forward-backward \.+: \(", text) and re.search(r"optimizer-inner-step \.+: \(", text)
    assert "memory of rank 0:" in text and "peak memory of rank 0:" in text

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    drawn = [(event.step, event.value) for event in events.Scalars("lm_loss")]
    assert drawn == [(line["iteration"], pytest.approx(line["lm_loss"])) for line in lines]


def test_losses_are_written_at_full_precision(tmp_path: Path) -> None:
    lines = run_training(1, [*TINY, "--train-iters", "2"], tmp_path)
    assert all(line["lm_loss"] != round(line["lm_loss"], 7) for line in lines)
