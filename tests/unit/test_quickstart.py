"""The quickstart compares like with like, and counts what a step of stock megatron-core sends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training_run import TINY, run_training

from megatron.training.arguments import parse_args
from megatron.training.checkpoint_files import checkpoint_folder
from megatron.training.validation import validate_args
from sdp4bit_patches import config
from tools.experiment import settings
from tools.plot_runs import read_run, summarize
from tools.stock_bytes import count_buffer_elements, sent_bytes

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "configs/runs"


def _arguments(*words: str, ranks: int = 4):
    return validate_args(parse_args(["--config", str(RUNS / "quickstart.toml"), *words]), ranks)


def test_the_two_runs_differ_in_compression_and_in_where_they_write_alone() -> None:
    first, second = (
        settings(["--config", str(RUNS / f"{name}.toml")]) for name in ("quickstart", "quickstart_sdp4bit")
    )
    differing = {key for key in first | second if first.get(key) != second.get(key)}
    places = {"save", "load", "metrics_file", "tensorboard_dir"}
    assert places <= differing
    assert differing - places <= {"log_compression_interval", *config.PRESETS["sdp4bit"]}
    assert all(first[key] != second[key] for key in places)


def test_every_rank_sends_each_other_one_its_shards_of_gradients_and_parameters() -> None:
    num_elements, to_each = 4096, 1024 * (4 + 2)
    assert sent_bytes(num_elements, _arguments("--node-size", "2")) == (to_each, 2 * to_each)
    assert sent_bytes(num_elements, _arguments("--node-size", "4")) == (3 * to_each, 0)
    assert sent_bytes(num_elements, _arguments("--node-size", "1")) == (0, 3 * to_each)
    assert sent_bytes(num_elements, _arguments("--node-size", "1", ranks=1)) == (0, 0)


@pytest.mark.parametrize(
    "flags", ["--tensor-model-parallel-size 2", "--grad-reduce-in-bf16", "--no-bf16", "--node-size 3"]
)
def test_what_would_be_counted_wrong_is_not_counted(flags: str) -> None:
    assert sent_bytes(4096, _arguments(*flags.split())) is None


def test_the_elements_of_a_checkpoint_are_those_of_the_model_and_its_padding(tmp_path: Path) -> None:
    save = f"--bf16 --train-iters 1 --save {tmp_path} --save-interval 1"
    run_training(2, [*TINY, *save.split()], tmp_path)
    layers, hidden, vocabulary, positions = 4, 64, 128, 32
    parameters = layers * (12 * hidden**2 + 13 * hidden) + (vocabulary + positions) * hidden + 2 * hidden
    counted = count_buffer_elements(checkpoint_folder(str(tmp_path), 1))
    assert parameters <= counted < parameters + 64 * 50 + 256  # each of 50 tensors begins at a multiple of 64


def test_the_table_tells_what_a_run_has_measured_and_nothing_of_what_it_has_not(tmp_path: Path) -> None:
    line = {"iteration": 1, "lm_loss": 5.0, "step_ms": 1.0, "tokens_per_second": 1.0}
    measured = line | {"iteration": 2, "bytes_intra_node": 2**20, "bytes_inter_node": 2**19}
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(line) + "\n" + json.dumps(measured) + "\n")
    numbers = summarize(read_run(path, "a"))
    assert numbers["MiB a rank sends per step in its node"] == "1.000"
    assert numbers["MiB a rank sends per step to other nodes"] == "0.500"
    path.write_text(json.dumps(line) + "\n")
    assert not any("MiB" in name for name in summarize(read_run(path, "a")))
