"""The tool that draws and tabulates metrics files."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.plot_runs import markdown_table, read_run, smooth, summarize

ROOT = Path(__file__).resolve().parents[2]


def _line(iteration: int, loss: float | None, **more) -> str:
    values = {"iteration": iteration, "lm_loss": loss, "step_ms": 500.0, "tokens_per_second": 16384.0}
    return json.dumps(values | more)


def _metrics(path: Path, num_iterations: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [_line(i, 8.0 - i / 10) for i in range(1, num_iterations)]
    lines.append(_line(num_iterations, 8.0 - num_iterations / 10, validation_loss=4.25))
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def _run(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools/plot_runs.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_table_tells_the_means_at_both_ends_and_the_last_validation(tmp_path: Path) -> None:
    numbers = summarize(read_run(_metrics(tmp_path / "metrics.jsonl"), "a"))
    assert numbers["iterations"] == "40"
    assert numbers["loss, mean of first 10"] == "7.4500"
    assert numbers["loss, mean of last 10"] == "4.4500"
    assert numbers["validation loss"] == "4.2500 (iteration 40)"
    assert numbers["tokens/s, median"] == "16,384"


def test_smoothing_is_the_mean_of_the_neighbours_and_skips_nan() -> None:
    np.testing.assert_allclose(smooth([1.0, 2.0, 6.0, 4.0], 3), [1.5, 3.0, 4.0, 5.0])
    np.testing.assert_allclose(smooth([1.0, math.nan, 3.0], 3), [1.0, 2.0, 3.0])
    np.testing.assert_allclose(smooth([1.0, 2.0], 1), [1.0, 2.0])


def test_a_loss_that_was_nan_is_read_as_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(_line(1, 5.0) + "\n" + _line(2, None) + "\n")
    assert math.isnan(read_run(path, "a").lm_loss[1])


def test_the_table_is_markdown_with_a_column_for_each_run() -> None:
    table = markdown_table({"a": {"loss": "1.0"}, "b": {"loss": "2.0", "checkpoint": "3 MiB"}}).splitlines()
    assert [cell.strip() for cell in table[0].split("|")] == ["", "", "a", "b", ""]
    assert [cell.strip() for cell in table[3].split("|")] == ["", "checkpoint", "", "3 MiB", ""]
    assert len({len(line) for line in table}) == 1


def test_two_runs_give_one_picture_in_which_each_has_its_color(tmp_path: Path) -> None:
    files = [str(_metrics(tmp_path / name / "metrics.jsonl", length)) for name, length in (("a", 40), ("b", 30))]
    result = _run(*files, "--output", str(tmp_path / "curves.png"))
    assert result.returncode == 0, result.stderr
    image = Image.open(tmp_path / "curves.png").convert("RGB")
    colors = {color for _, color in image.getcolors(maxcolors=1 << 24)}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colors
    assert (0x00, 0x9E, 0x73) not in colors  # the third run's


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is empty: the run has not finished an iteration"),
        (_line(1, 5.0) + "\n" + _line(2, 4.0)[:30], "line 2: the file was cut off there"),
        (_line(1, 5.0)[:30] + "\n" + _line(2, 4.0), "line 1: that is not JSON"),
        ('{"iteration": 1}\n', "line 1: no lm_loss, step_ms, tokens_per_second"),
        ("[1]\n", "line 1: no iteration, lm_loss"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=sentence):
        read_run(path, "a")


def test_bad_input_exits_with_2_one_line_and_no_picture(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    result = _run(str(tmp_path / "metrics.jsonl"), "--output", str(tmp_path / "curves.png"))
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "curves.png").exists()


def test_runs_of_the_same_name_have_to_be_told_apart(tmp_path: Path) -> None:
    file = str(_metrics(tmp_path / "a" / "metrics.jsonl"))
    result = _run(file, file, "--output", str(tmp_path / "curves.png"))
    assert result.returncode == 2
    assert "tell them apart with --labels" in result.stderr
