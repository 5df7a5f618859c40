"""The metrics file: one JSON line per iteration, whatever happened to the runs before."""

from __future__ import annotations

import json
import math

from megatron.training.metrics_file import MetricsFile


def write(path, iterations, start=0, **values) -> None:
    metrics = MetricsFile(str(path), start)
    for iteration in iterations:
        metrics.write({"iteration": iteration, **values})


def iterations_in(path) -> list[int]:
    return [json.loads(line)["iteration"] for line in path.read_text().splitlines()]


def test_each_line_is_there_as_soon_as_it_is_written_and_losses_keep_every_bit(tmp_path):
    path = tmp_path / "new folder" / "metrics.jsonl"
    metrics = MetricsFile(str(path), 0)
    loss = 0.1 + 0.2
    metrics.write({"iteration": 1, "lm_loss": loss})
    assert json.loads(path.read_text()) == {"iteration": 1, "lm_loss": loss}


def test_nan_and_infinity_become_null_which_every_reader_of_json_knows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [1], lm_loss=math.nan, grad_norm=math.inf, step_ms=1.0, loss_scale=None, skipped=True)
    values = json.loads(path.read_text(), parse_constant=lambda name: 1 / 0)
    assert values == {
        "iteration": 1, "lm_loss": None, "grad_norm": None, "step_ms": 1.0, "loss_scale": None, "skipped": True
    }  # fmt: skip


def test_a_resumed_run_drops_the_lines_it_writes_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 8), lm_loss=1.0)
    write(path, [5, 6], start=4, lm_loss=2.0)
    assert iterations_in(path) == [1, 2, 3, 4, 5, 6]
    assert [json.loads(line)["lm_loss"] for line in path.read_text().splitlines()] == [1.0] * 4 + [2.0] * 2
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_line_that_a_crash_cut_in_half_goes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2, 3])
    path.write_text(path.read_text() + '{"iteration": 4, "lm_lo')
    write(path, [4], start=3)
    assert iterations_in(path) == [1, 2, 3, 4]
    path.write_text(path.read_text() + '17\n{"other": 1}\n')
    write(path, [5], start=4)
    assert iterations_in(path) == [1, 2, 3, 4, 5]


def test_a_new_run_keeps_every_older_file_under_another_name(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    for run in (10, 20, 30):
        write(path, [run])
    assert iterations_in(path) == [30]
    assert iterations_in(tmp_path / "metrics.jsonl.bak") == [10]
    assert iterations_in(tmp_path / "metrics.jsonl.bak2") == [20]
    assert "metrics.jsonl.bak2" in capsys.readouterr().out


def test_an_empty_file_is_no_earlier_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.touch()
    write(path, [1])
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
