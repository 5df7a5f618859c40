"""Bad input ends the job with one sentence, exit code 2, no hang and no traceback, whichever rank sees it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from parallel_launch import parallel_launch
from torchrun import REPOSITORY, torchrun
from training_run import TINY, run_training, train

from megatron.training.errors import UserError, checked_on_every_rank

TRAIN = [*TINY, "--train-iters", "1"]
TP, PP, CP = "--tensor-model-parallel-size", "--pipeline-model-parallel-size", "--context-parallel-size"
# What a user is promised, from the sentence to the end of the job. torchrun kills what ignores its SIGTERM after 30 s.
SECONDS = 20


def on_data(prefix: Path) -> list[str]:
    words = [word for word in TRAIN if word != "--mock-data"]
    return [*words, "--tokenizer-type", "NullTokenizer", "--data-path", str(prefix), "--split", "1,0,0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The prefix of a dataset that the tiny model can train on."""
    prefix = tmp_path_factory.mktemp("data") / "tokens"
    parallel_launch(1, write_dataset, prefix)
    return prefix


def write_dataset(prefix: Path) -> None:
    """20 documents of 60 tokens, the largest of which is 78."""
    import numpy as np
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for document in range(20):
        builder.add_document(torch.arange(document, document + 60), [60])
    builder.finalize(f"{prefix}.idx")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A folder with a checkpoint of the tiny model, without an optimizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    run_training(1, [*TRAIN, "--save", str(folder), "--no-save-optim"], folder)
    return folder


# One process, as rank 0 of so many: these are seen before the ranks meet and before torch is imported.
MISTAKES = [
    ("--num-layer 4", 1, ["--num-layer;", "did you mean --num-layers?"]),
    ("", 6, ["the world size 6 is not divisible", "2 x 2 x 1 = 4"]),
    (f"{TP} 3", 6, ["--num-attention-heads 4", f"{TP} 3"]),
    (f"{PP} 3", 6, ["--num-layers 4", f"{PP} 3"]),
    ("--seq-length 64", 4, ["--seq-length 64", "--max-position-embeddings 32"]),
    (f"{CP} 3", 12, [f"{CP} 3", "--seq-length 32"]),
]


@pytest.mark.parametrize(("flags", "world_size", "parts"), MISTAKES, ids=[flags or "6 ranks" for flags, *_ in MISTAKES])
def test_a_mistake_on_the_command_line_is_one_sentence_and_exit_code_2(flags, world_size, parts):
    result = single_rank([*TRAIN, TP, "2", PP, "2", *flags.split()], world_size)
    assert_one_sentence(result, parts)


def test_an_unknown_toml_key_is_one_sentence_that_names_the_file(tmp_path):
    (tmp_path / "run.toml").write_text("num-layer = 4\n")
    result = single_rank([*TRAIN, "--config", f"{tmp_path}/run.toml"], 1)
    assert_one_sentence(result, [f"{tmp_path}/run.toml", "'num-layer'", "did you mean --num-layers?"])


def single_rank(words: list[str], world_size: int) -> subprocess.CompletedProcess:
    environment = os.environ | {"WORLD_SIZE": str(world_size), "RANK": "0"}
    command = [sys.executable, "-X", "importtime", "pretrain_gpt.py", *words]
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def assert_one_sentence(result: subprocess.CompletedProcess, parts: list[str]) -> None:
    imports, said = [], []
    for line in result.stderr.splitlines():
        (imports if line.startswith("import time:") else said).append(line)
    assert (result.returncode, result.stdout, len(said)) == (2, "", 1), result.stderr[-2000:]
    assert said[0].startswith("pretrain_gpt.py: error: ") and all(part in said[0] for part in parts), said[0]
    assert imports and not [line for line in imports if line.endswith("| torch")]


def refused(words: list[str], world_size: int = 2) -> str:
    """The sentence of an error that every rank raises."""
    with pytest.raises(UserError) as raised:
        parallel_launch(world_size, train, words)
    assert raised.value.raised_on_every_rank
    return str(raised.value)


def test_missing_data_is_named(tmp_path):
    sentence = refused(on_data(tmp_path / "none"))
    assert f"--data-path {tmp_path}/none" in sentence and "does not exist" in sentence


def test_good_data_trains_and_a_truncated_file_of_it_is_named_with_its_sizes(data, tmp_path):
    assert len(run_training(2, on_data(data), tmp_path)) == 1
    for suffix, size in ((".bin", 2400), (".idx", 20 * 12 + 21 * 8 + 34)):
        for other in (".bin", ".idx"):
            shutil.copy(f"{data}{other}", f"{tmp_path}/copy{other}")
        assert os.path.getsize(f"{tmp_path}/copy{suffix}") == size
        os.truncate(f"{tmp_path}/copy{suffix}", size - 100)
        sentence = refused(on_data(tmp_path / "copy"))
        assert f"{tmp_path}/copy{suffix} is truncated: {size - 100} of {size} bytes" in sentence


def test_data_of_a_larger_vocabulary_is_named_with_the_token(data):
    sentence = refused([*on_data(data), "--vocab-size", "70", "--make-vocab-size-divisible-by", "1"])
    assert f"{data}.bin holds token id 78" in sentence and "71" in sentence


def test_a_checkpoint_of_another_vocabulary_or_shape_is_refused_with_both_values(checkpoint):
    sentence = refused([*TRAIN, "--load", str(checkpoint), "--vocab-size", "200"])
    assert "a vocabulary of 128 (padded)" in sentence and "208" in sentence and "tokenizer" in sentence
    sentence = refused([*TRAIN, "--load", str(checkpoint), "--num-layers", "2"])
    assert "--num-layers 4" in sentence and "2" in sentence and str(checkpoint) in sentence


def test_a_demanded_checkpoint_that_is_not_there_is_refused(tmp_path):
    assert str(tmp_path) in refused([*TRAIN, "--load", str(tmp_path), "--exit-on-missing-checkpoint"])


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "file").touch()
    sentence = refused([*TRAIN, "--save", f"{tmp_path}/file/folder"])
    assert f"--save {tmp_path}/file/folder" in sentence and "Not a directory" in sentence
    assert "is a folder" in refused([*TRAIN, "--metrics-file", str(tmp_path)])


@pytest.mark.parametrize(
    "flags", ["--num-experts 2", "--fp32-residual-connection", "--transformer-impl transformer_engine"]
)
def test_what_the_local_layers_cannot_do_is_refused(flags):
    sentence = refused([*TRAIN, *flags.split()], world_size=1)
    assert flags in sentence and re.search("drop it|add|say", sentence)


def check_where_rank_1_fails(error: Exception | None) -> None:
    import torch

    with checked_on_every_rank():
        if error is not None and torch.distributed.get_rank() == 1:
            raise error


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UserError("--data-path x does not exist"), "--data-path x does not exist (seen on rank 1)"),
        (ValueError("a weight is not positive"), "a weight is not positive (seen on rank 1)"),
        (PermissionError(13, "Permission denied", "/x.bin"), "/x.bin: Permission denied; check the path"),
    ],
)
def test_what_one_rank_alone_sees_is_raised_on_every_rank(error, sentence):
    parallel_launch(3, check_where_rank_1_fails, None)
    with pytest.raises(UserError, match=re.escape(sentence)) as raised:
        parallel_launch(3, check_where_rank_1_fails, error)
    assert raised.value.raised_on_every_rank


def assert_job_ends_with(sentence: str, world_size: int, words: list[str], script: str = "pretrain_gpt.py") -> None:
    with torchrun(world_size, words, script) as job:
        job.wait_until(lambda: "pretrain_gpt.py: error:" in job.text())
        said = time.monotonic()
        code = job.wait(60)
        seconds = time.monotonic() - said
        text = job.text()
    assert text.count(sentence) == 1 and text.count("pretrain_gpt.py: error:") == 1, text
    assert code == 1 and re.search(r"exitcode\s*: 2 ", text), text
    assert seconds < SECONDS
    # The launcher's own traceback names no file of ours (but the environment may lie in our folder).
    assert not re.search(rf'File "{re.escape(str(REPOSITORY))}/(?!\.venv/)', text), text


def test_torchrun_ends_at_an_unknown_flag_that_every_rank_sees():
    assert_job_ends_with("unknown flag --num-layer; did you mean --num-layers?", 4, [*TRAIN, "--num-layer", "4"])


def test_torchrun_ends_at_missing_data_after_the_ranks_have_met(tmp_path):
    assert_job_ends_with(f"{tmp_path}/none.idx does not exist", 2, on_data(tmp_path / "none"))


def test_torchrun_ends_at_a_flag_that_one_rank_alone_is_given_before_the_ranks_meet():
    words = ["--num-layer", "4", "--", *TRAIN]
    assert_job_ends_with("did you mean --num-layers? (on rank 1)", 2, words, "tests/end_to_end/pretrain_unlike.py")


def test_torchrun_ends_at_data_that_is_missing_on_one_rank_alone(data, tmp_path):
    words = ["--data-path", f"{tmp_path}/none", "--", *on_data(data)]
    sentence = "give the prefix that preprocess_data.py printed (seen on rank 1)"
    assert_job_ends_with(sentence, 2, words, "tests/end_to_end/pretrain_unlike.py")
