"""A rank that dies, a job that is told to stop, a checkpoint that was damaged: nothing hangs, nothing is lost."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from parallel_launch import parallel_launch
from torchrun import torchrun
from training_run import TINY, read_metrics, run_training, train

from megatron.training import checkpoint_files
from megatron.training.errors import UserError

TRAIN = [*TINY, "--save-interval", "2"]
ENDLESS = [*TRAIN, "--train-iters", "1000000"]


def iterations_in(metrics: Path) -> list[int]:
    return [line["iteration"] for line in read_metrics(metrics)] if metrics.exists() else []


def saved(folder: Path) -> int | None:
    """The iteration of the newest checkpoint, which is whole."""
    return checkpoint_files.find(folder, None)


def keeping(folder: Path) -> list[str]:
    """Flags of a job that can be started again and again, as a cluster's launch script would."""
    return ["--save", str(folder), "--load", str(folder), "--metrics-file", str(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory) -> Path:
    """A run of two ranks with checkpoints of iterations 2 and 4; tests copy it."""
    folder = tmp_path_factory.mktemp("two_checkpoints")
    parallel_launch(2, train, [*TRAIN, "--train-iters", "4", *keeping(folder)], timeout_s=120)
    return folder


@pytest.fixture
def run(two_checkpoints, tmp_path) -> Path:
    """A copy of that run, for a test to damage and to go on with."""
    return shutil.copytree(two_checkpoints, tmp_path / "run")


def resume(folder: Path, train_iters: int, *flags: str) -> list[int]:
    """Train on; the iterations in the metrics file afterwards."""
    parallel_launch(2, train, [*TRAIN, "--train-iters", str(train_iters), *keeping(folder), *flags], timeout_s=120)
    return iterations_in(folder / "metrics.jsonl")


def test_a_killed_rank_ends_the_job_and_a_restart_goes_on_after_the_last_checkpoint(tmp_path):
    with torchrun(2, [*ENDLESS, *keeping(tmp_path)]) as job:
        job.wait_until(lambda: (saved(tmp_path) or 0) >= 4)
        workers = job.workers()
        workers[1].kill()
        killed = time.monotonic()
        assert job.wait(60) != 0
        assert time.monotonic() - killed < 30
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert not alive and "Signal 9 (SIGKILL)" in job.text()
    last = saved(tmp_path)
    assert resume(tmp_path, last + 2) == list(range(1, last + 3))
    assert saved(tmp_path) == last + 2


def test_sigterm_to_every_worker_saves_and_all_exit_with_0(tmp_path):
    with torchrun(2, [*ENDLESS, *keeping(tmp_path), "--save-interval", "1000000"]) as job:
        job.wait_until(lambda: len(iterations_in(tmp_path / "metrics.jsonl")) >= 3)
        for worker in job.workers():
            worker.send_signal(signal.SIGTERM)
        assert job.wait(60) == 0, job.text()
        text = job.text()
    stopped_at = iterations_in(tmp_path / "metrics.jsonl")[-1]
    assert saved(tmp_path) == stopped_at
    assert text.count(f"stopping at iteration {stopped_at}: SIGTERM was received") == 1, text
    assert "Traceback" not in text


def train_until_told(argv: list[str], metrics: Path) -> None:
    """Train; rank 1 alone is sent SIGTERM when three iterations are done."""
    import torch

    def tell() -> None:
        while not metrics.exists() or metrics.read_text().count("\n") < 3:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    if torch.distributed.get_rank() == 1:
        threading.Thread(target=tell, daemon=True).start()
    train(argv)


def test_sigterm_to_one_worker_alone_saves_and_a_restart_goes_on_from_there(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    words = [*ENDLESS, *keeping(tmp_path), "--save-interval", "1000000"]
    parallel_launch(2, train_until_told, words, metrics, timeout_s=120)
    stopped_at = iterations_in(metrics)[-1]
    assert saved(tmp_path) == stopped_at
    assert checkpoint_files.iterations(tmp_path) == [stopped_at]
    assert resume(tmp_path, stopped_at + 1) == list(range(1, stopped_at + 2))


def train_until_told_in_validation(argv: list[str]) -> int:
    """Train; rank 0 alone is sent SIGTERM in the third batch of a validation. Returns how many batches there were."""
    import torch

    from megatron.training import train_step

    step = train_step._forward_backward
    batches = 0

    def counted(*args, forward_only: bool):
        nonlocal batches
        batches += forward_only
        if batches == 3 and torch.distributed.get_rank() == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args, forward_only=forward_only)

    train_step._forward_backward = counted
    train(argv)
    return batches


def test_sigterm_cuts_a_long_validation_short_and_saves(tmp_path):
    words = [
        *ENDLESS,
        *keeping(tmp_path),
        "--save-interval",
        "1000000",
        "--eval-interval",
        "2",
        "--eval-iters",
        "50000",
    ]
    words[words.index("1000000", words.index("--train-iters"))] = "10"
    batches = parallel_launch(2, train_until_told_in_validation, words, timeout_s=120)
    assert batches == [3, 3]
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert saved(tmp_path) == lines[-1]["iteration"] == 3
    assert not any("validation_loss" in line for line in lines)


def test_what_a_crash_left_half_written_does_no_harm_and_goes(run):
    left_over = checkpoint_files.partial_folder(run, 5)
    shutil.copytree(checkpoint_files.checkpoint_folder(run, 4), left_over)
    (left_over / "__0_0.distcp").unlink()
    assert resume(run, 6) == [1, 2, 3, 4, 5, 6]
    assert saved(run) == 6 and not left_over.exists()


def test_a_truncated_checkpoint_is_named_and_the_one_before_it_loads(run):
    damaged = checkpoint_files.checkpoint_folder(run, 4)
    file = max(damaged.glob("*.distcp"), key=lambda path: path.stat().st_size)
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(UserError) as raised:
        resume(run, 5)
    sentence = str(raised.value)
    assert all(part in sentence for part in (str(damaged), file.name, "--ckpt-step 2")), sentence
    assert raised.value.raised_on_every_rank
    assert resume(run, 4, "--ckpt-step", "2") == [1, 2, 3, 4]
    assert saved(run) == 4 and checkpoint_files.find_damage(run, 4) is None


def test_a_truncated_checkpoint_of_another_program_is_named_too(run):
    """Such a checkpoint lists no sizes: what reads the file has to notice."""
    damaged = checkpoint_files.checkpoint_folder(run, 4)
    (damaged / checkpoint_files.FILE_SIZES).unlink()
    for file in damaged.glob("*.distcp"):
        os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(UserError) as raised:
        resume(run, 5)
    sentence = str(raised.value)
    assert all(part in sentence for part in (str(damaged), "--ckpt-step 2")) and "\n" not in sentence, sentence


def test_a_tracker_that_names_a_missing_checkpoint_is_refused_with_those_that_are_there(run):
    shutil.rmtree(checkpoint_files.checkpoint_folder(run, 4))
    with pytest.raises(UserError, match=r"no checkpoint of iteration 4.*--ckpt-step: 2"):
        resume(run, 5)


def test_a_run_without_any_checkpoint_starts_anew_and_keeps_the_old_metrics(run):
    shutil.rmtree(checkpoint_files.checkpoint_folder(run, 4))
    shutil.rmtree(checkpoint_files.checkpoint_folder(run, 2))
    (run / checkpoint_files.TRACKER).unlink()
    lines = run_training(2, [*TRAIN, "--train-iters", "1", "--load", str(run), "--save", str(run)], run)
    assert [line["iteration"] for line in lines] == [1]
    assert iterations_in(run / "metrics.jsonl.bak") == [1, 2, 3, 4]


def test_a_resumed_run_of_another_length_needs_a_schedule_that_has_none(run):
    """``TINY`` has a constant rate, so the tests above may go on for longer; a decay is held to its length."""
    decays = ["--lr-decay-style", "linear"]
    with pytest.raises(UserError, match="--override-opt_param-scheduler"):
        resume(run, 5, *decays)
    assert resume(run, 5, *decays, "--override-opt_param-scheduler") == [1, 2, 3, 4, 5]
