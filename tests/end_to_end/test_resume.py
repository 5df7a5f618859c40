"""A run that stops and resumes goes on bitwise as if it had never stopped: loss, gradient norm, parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parallel_launch import parallel_launch
from training_run import TINY, read_metrics, run_training, train

# Dropout on, so that a random state that is not restored shows; a decaying rate, so that a lost schedule does.
RUN = (
    "--attention-dropout 0.1 --hidden-dropout 0.1 --lr-decay-style cosine --lr-warmup-iters 2 --weight-decay 0.1 "
    "--train-iters 6 --bf16"
).split()

LAYOUTS = {
    "DP2 plain optimizer": (2, "--no-use-distributed-optimizer"),
    "DP4 overlapped": (4, "--overlap-grad-reduce --overlap-param-gather --ddp-bucket-size 20000"),
    "TP2xPP2+SP": (4, "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --sequence-parallel"),
    "CP2": (2, "--context-parallel-size 2 --swiglu --normalization RMSNorm --position-embedding-type rope"),
    "experts on 2 ranks": (2, "--num-experts 4 --expert-model-parallel-size 2 --disable-bias-linear"),
    "interleaved": (2, "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1"),
}

# Rounding is stochastic in all of them: its random numbers go by the iteration.
SDP4BIT = "--compression sdp4bit --node-size 2 --min-quantized-bucket 0 --gradient-alltoall-pipeline 2"
LAYOUTS |= {
    "SDP4Bit, DP4 overlapped": (4, f"{SDP4BIT} {LAYOUTS['DP4 overlapped'][1]}"),
    "SDP4Bit, PP2xDP2": (4, f"{SDP4BIT} --pipeline-model-parallel-size 2"),
    "SDP4Bit, experts on 2 ranks": (4, f"{SDP4BIT} {LAYOUTS['experts on 2 ranks'][1]}"),
}


def _flags(layout: str, *more: str) -> list[str]:
    return [*TINY, *RUN, *LAYOUTS[layout][1].split(), *more]


def _what_matters(lines: list[dict[str, Any]]) -> list[tuple]:
    return [(line["iteration"], line["lm_loss"], line["grad_norm"], line["learning_rate"]) for line in lines]


def _checkpointed_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, model and optimizer, as it lies on disk.

    The distributed optimizer's buffers are left out: between parameters they have uninitialized gaps, which nobody
    reads. That their contents are right shows in the steps after the resume.
    """
    from torch.distributed.checkpoint import FileSystemReader, load

    metadata = FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in metadata.items()
        if hasattr(entry, "size") and "gbuf_idx" not in key
    }
    load(tensors, checkpoint_id=folder, no_dist=True)
    return tensors


def _assert_equal_checkpoints(ours: Path, theirs: Path) -> None:
    left, right = _checkpointed_tensors(ours), _checkpointed_tensors(theirs)
    assert left.keys() == right.keys() and left
    different = [key for key in left if not torch.equal(left[key], right[key])]
    assert not different


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(layout: str, tmp_path: Path) -> None:
    world_size = LAYOUTS[layout][0]
    whole = run_training(world_size, _flags(layout, "--save", str(tmp_path / "whole")), tmp_path, "whole")
    in_two = ["--save", str(tmp_path / "two"), "--load", str(tmp_path / "two")]
    run_training(world_size, _flags(layout, *in_two, "--exit-interval", "3"), tmp_path, "two")
    resumed = run_training(world_size, _flags(layout, *in_two), tmp_path, "two")
    assert _what_matters(resumed) == _what_matters(whole)
    _assert_equal_checkpoints(tmp_path / "two" / "iter_0000006", tmp_path / "whole" / "iter_0000006")


def test_the_comparison_sees_lost_random_states(tmp_path: Path) -> None:
    """Negative control: without the random states, dropout differs and so does the loss."""
    flags = _flags("interleaved", "--save", str(tmp_path), "--load", str(tmp_path))
    run_training(2, [*flags, "--exit-interval", "3"], tmp_path)
    with_states = run_training(2, flags, tmp_path)
    run_training(2, [*flags, "--ckpt-step", "3", "--no-load-rng"], tmp_path)
    without = read_metrics(tmp_path / "metrics.jsonl")
    assert _what_matters(without)[:3] == _what_matters(with_states)[:3]
    assert _what_matters(without)[3:] != _what_matters(with_states)[3:]


def test_a_checkpoint_loads_under_another_data_parallel_size(tmp_path: Path) -> None:
    flags = [*TINY, "--train-iters", "4", "--save", str(tmp_path), "--load", str(tmp_path)]
    run_training(4, [*flags, "--exit-interval", "2"], tmp_path, "four")
    folder = tmp_path / "copy"
    parallel_launch(4, train, [*flags[:-4], "--load", str(tmp_path), "--metrics-file", str(folder / "4.jsonl")])
    parallel_launch(2, train, [*flags[:-4], "--load", str(tmp_path), "--metrics-file", str(folder / "2.jsonl")])
    four, two = read_metrics(folder / "4.jsonl"), read_metrics(folder / "2.jsonl")
    assert [line["iteration"] for line in two] == [3, 4]
    # The same samples and the same optimizer state: only the order of fp32 sums differs (see test_parity).
    assert [line["lm_loss"] for line in two] == pytest.approx([line["lm_loss"] for line in four], rel=5e-6)


def test_compression_may_be_turned_on_and_off_across_a_resume(tmp_path: Path) -> None:
    """Checkpoints are ordinary ones: the same weights, whose loss is known before they are updated anew."""
    flags = [*TINY, *RUN, "--attention-dropout", "0", "--hidden-dropout", "0", "--load", str(tmp_path)]
    saving = [*flags, "--save", str(tmp_path)]
    compressed = SDP4BIT.split()
    run_training(4, [*saving, "--exit-interval", "2"], tmp_path)
    run_training(4, [*saving, *compressed, "--exit-interval", "4"], tmp_path)
    without = run_training(4, flags, tmp_path, "without")
    lines = run_training(4, [*saving, *compressed], tmp_path)
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["iteration"] for line in without] == [5, 6]
    assert without[0]["lm_loss"] == lines[4]["lm_loss"]
    assert without[0]["grad_norm"] != lines[4]["grad_norm"], "one of the two is compressed"
    assert lines[5]["lm_loss"] < lines[0]["lm_loss"] and without[1]["lm_loss"] < lines[0]["lm_loss"]


def test_another_seed_after_a_resume_shows(tmp_path: Path) -> None:
    """Negative control: the comparisons above see other random numbers of rounding."""
    flags = _flags("SDP4Bit, PP2xDP2", "--save", str(tmp_path), "--load", str(tmp_path))
    run_training(4, [*flags, "--exit-interval", "3"], tmp_path)
    same = run_training(4, flags, tmp_path)
    run_training(4, [*flags, "--ckpt-step", "3", "--quantization-seed", "4321"], tmp_path)
    other = read_metrics(tmp_path / "metrics.jsonl")
    assert _what_matters(other)[:3] == _what_matters(same)[:3]
    assert _what_matters(other)[3:] != _what_matters(same)[3:]
