"""`--layout`: Megatron's own groups lie where the layout says, and the training itself is no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torchrun import torchrun
from training_run import TINY, read_metrics

FLAGS = "\n[flags]\npipeline-model-parallel-size = 2\n"


def _layout(folder: Path, devices: list[int], nodes: list[int]) -> Path:
    path = folder / "layout.toml"
    size = f"world-size = {len(devices)}\n"
    path.write_text(f"{size}device-of-rank = {devices}\nnode-of-device = {nodes}\n{FLAGS}")
    return path


def _groups(folder: Path, devices: list[int]) -> dict[int, dict]:
    layout = _layout(folder, devices, [0, 0, 1, 1])
    with torchrun(
        4, [*TINY, "--train-iters", "1", "--layout", str(layout)], "tests/end_to_end/layout_groups.py"
    ) as job:
        assert job.wait(120) == 0, job.text()
        lines = [json.loads(line) for line in job.text().splitlines() if line.startswith("{")]
    return {line["process"]: line for line in lines}


def test_groups_follow_the_layout(tmp_path: Path) -> None:
    """Processes 0 and 1 are one node, 2 and 3 the other; each node shall be a pipeline of its own."""
    found = _groups(tmp_path, [0, 2, 1, 3])
    assert [found[process]["rank"] for process in range(4)] == [0, 2, 1, 3]
    assert [found[process]["pipeline"] for process in range(4)] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [found[process]["data"] for process in range(4)] == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert {line["data-parallel nodes"] for line in found.values()} == {"2 nodes x 1 rank"}
    assert {line["all nodes"] for line in found.values()} == {"2 nodes x 2 ranks"}


def test_megatrons_own_order_puts_pipelines_across_the_nodes(tmp_path: Path) -> None:
    """Negative control: without reordering it is the other way round."""
    found = _groups(tmp_path, [0, 1, 2, 3])
    assert [found[process]["pipeline"] for process in range(4)] == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert {line["data-parallel nodes"] for line in found.values()} == {"1 node x 2 ranks"}


def _losses(folder: Path, words: list[str], name: str) -> list[float]:
    metrics = folder / f"{name}.jsonl"
    with torchrun(4, [*TINY, "--train-iters", "3", "--metrics-file", str(metrics), *words]) as job:
        assert job.wait(120) == 0, job.text()
    return [line["lm_loss"] for line in read_metrics(metrics)]


@pytest.mark.parametrize("compression", ["", "--bf16 --compression sdp4bit --min-quantized-bucket 0"])
def test_a_layout_changes_no_loss_to_the_bit(compression: str, tmp_path: Path) -> None:
    layout = _layout(tmp_path, [3, 1, 2, 0], [0, 0, 1, 1])
    words = compression.split()
    nodes = ["--node-of-rank", "1,0,1,0"] if compression else []
    own = _losses(tmp_path, [*words, *nodes, "--pipeline-model-parallel-size", "2"], "own")
    laid_out = _losses(tmp_path, [*words, "--layout", str(layout)], "laid_out")
    assert laid_out == own and len(own) == 3


@pytest.mark.parametrize(
    ("text", "sentence"),
    (
        (
            "world-size = 2\ndevice-of-rank = [0, 1]\nnode-of-device = [0, 1]\n[flags]\n",
            "is for 2 ranks, the job has 4",
        ),
        (
            "world-size = 2\ndevice-of-rank = [0, 0]\nnode-of-device = [0, 1]\n[flags]\n",
            "each of the devices 0 to 1 once",
        ),
        ("world-size = 2\ndevice-of-rank = [0]\nnode-of-device = [0, 1]\n[flags]\n", "a list of 2 numbers"),
        ("world-size = 2\n", "unknown or missing"),
        ("world-size = ", "is not valid TOML"),
    ),
)
def test_a_layout_that_does_not_fit_is_refused_with_a_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    from megatron.training.arguments import parse_args
    from megatron.training.errors import UserError
    from megatron.training.validation import validate_args

    path = tmp_path / "layout.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        validate_args(parse_args([*TINY, "--train-iters", "1", "--layout", str(path)]), 4)


def test_degrees_that_contradict_the_layout_are_refused(tmp_path: Path) -> None:
    from megatron.training.arguments import parse_args
    from megatron.training.errors import UserError
    from megatron.training.validation import validate_args

    path = _layout(tmp_path, [0, 1, 2, 3], [0, 0, 1, 1])
    words = [*TINY, "--train-iters", "1", "--layout", str(path), "--pipeline-model-parallel-size", "4"]
    with pytest.raises(UserError, match="--pipeline-model-parallel-size 4: --layout .* is for 2"):
        validate_args(parse_args(words), 4)
