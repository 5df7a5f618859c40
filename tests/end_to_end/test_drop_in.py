"""``-m sdp4bit_patches SCRIPT``: a script that knows nothing of this project trains with compression."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from torchrun import REPOSITORY, torchrun

SCRIPT = "tests/end_to_end/plain_megatron.py"
COMPRESSED = "--compression sdp4bit --node-size 2 --min-quantized-bucket 0 --log-compression-interval 2".split()


def _train(words: list[str]) -> tuple[list[float], str]:
    with torchrun(4, ["sdp4bit_patches", SCRIPT, "--steps", "6", *words], script="-m") as job:
        assert job.wait(120) == 0, job.text()
        text = job.text()
    return [float(value) for value in re.findall(r"^loss \d+ (\S+)$", text, re.MULTILINE)], text


@pytest.fixture(scope="module")
def baseline() -> list[float]:
    return _train([])[0]


TWO_LEVELS = "gradients 8 bits in groups of 128 inside a node and 4 bits in groups of 128 between nodes"
# Two tensor-parallel ranks fill a node of two: what is left between data-parallel ranks crosses nodes.
ONE_LEVEL = "gradients 4 bits in groups of 128 in one hop"


@pytest.mark.parametrize(
    ("words", "hops"),
    (([], TWO_LEVELS), (["--overlap"], TWO_LEVELS), (["--tensor-model-parallel-size", "2"], ONE_LEVEL)),
    ids=str,
)
def test_a_plain_megatron_script_trains_compressed(words: list[str], hops: str, baseline: list[float]) -> None:
    losses, text = _train([*words, *COMPRESSED])
    assert hops in text and "weights 4 bits in groups of 2048" in text
    assert "bucket0_gradient_relative_error" in text and "bytes_inter_node" in text
    assert losses[-1] < losses[0]
    if not words:
        assert losses[0] == baseline[0] and losses != baseline
        assert losses == pytest.approx(baseline, rel=0.02)


def _ends_with(words: list[str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sdp4bit_patches", *words]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("words", "sentence"),
    (
        (["no_such_script.py"], "no_such_script.py is no file"),
        ([SCRIPT, "--compression", "sdp5bit"], "invalid choice: 'sdp5bit'"),
        ([SCRIPT, "--quantized-gradients", "--gradient-quantization-bits-inter", "3"], "use one of"),
    ),
)
def test_a_mistake_is_told_in_one_sentence(words: list[str], sentence: str) -> None:
    ended = _ends_with(words)
    assert ended.returncode == 2
    assert sentence in ended.stderr and "Traceback" not in ended.stderr


def test_the_doctor_names_the_flags_to_change() -> None:
    ill = _ends_with(["doctor", *"--compression sdp4bit --bf16 --use-precision-aware-optimizer".split()])
    assert ill.returncode == 1
    assert "add --use-distributed-optimizer" in ill.stdout and "drop --use-precision-aware-optimizer" in ill.stdout
    flags = "--compression sdp4bit --bf16 --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather"
    well = _ends_with(["doctor", *flags.split()])
    assert well.returncode == 0, well.stdout
    assert "0 wrong" in well.stdout
