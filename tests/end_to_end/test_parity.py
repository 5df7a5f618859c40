"""One global batch gives the same loss and gradient norm however the model is spread over ranks.

All layouts start from one checkpoint (weights drawn by a stage depend on its rank) and see the same samples.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from training_run import TINY, run_training

# fp32 sums of at most a few thousand terms in another order: relative differences of some 1e-7 a step, which the
# optimizer's division by the second moment's root enlarges where gradients are near zero. Measured worst, over all
# layouts and three steps: loss 2.2e-7, gradient norm 2.7e-6; ten times that is allowed.
LOSS_TOLERANCE = 2.2e-6
NORM_TOLERANCE = 2.7e-5

OVERLAP = "--overlap-grad-reduce --overlap-param-gather --ddp-bucket-size 20000"
TP, PP, CP = "--tensor-model-parallel-size", "--pipeline-model-parallel-size", "--context-parallel-size"
LAYOUTS = {
    "DP4": "",
    "TP2xDP2": f"{TP} 2",
    "TP2xDP2+SP": f"{TP} 2 --sequence-parallel",
    "PP2xDP2": f"{PP} 2",
    "PP2xDP2 interleaved": f"{PP} 2 --num-layers-per-virtual-pipeline-stage 1",
    "CP2xDP2": f"{CP} 2",
    "TP2xPP2": f"{TP} 2 {PP} 2",
    "CP2xPP2": f"{CP} 2 {PP} 2",
    "DP4, all recomputed": "--recompute-granularity full",
    "TP2xDP2, attention recomputed": f"{TP} 2 --recompute-activations",
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the initial weights, which every layout loads."""
    folder = tmp_path_factory.mktemp("start")
    run_training(1, [*TINY, "--train-iters", "1", "--lr", "1e-30", "--save", str(folder), "--no-save-optim"], folder)
    return folder


@pytest.fixture(scope="module")
def one_rank(start: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Three steps on a single process: what every layout has to give."""
    return _train(start, 1, "", tmp_path_factory.mktemp("one"))


def _train(start: Path, world_size: int, flags: str, folder: Path) -> list[dict]:
    words = [*TINY, "--train-iters", "3", "--load", str(start), "--finetune", *flags.split()]
    return run_training(world_size, words, folder)


def _largest_difference(ours: list[dict], theirs: list[dict], key: str) -> float:
    return max(abs(a[key] - b[key]) / abs(b[key]) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("overlap", ["", OVERLAP], ids=["", "overlapped"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_loss_and_gradient_norm_of_one_rank(
    layout: str, overlap: str, start: Path, one_rank: list[dict], tmp_path: Path
) -> None:
    lines = _train(start, 4, f"{LAYOUTS[layout]} {overlap}", tmp_path)
    loss, norm = (_largest_difference(lines, one_rank, key) for key in ("lm_loss", "grad_norm"))
    print(f"{layout} {overlap}: relative difference of the loss {loss:.1e}, of the gradient norm {norm:.1e}")
    assert loss < LOSS_TOLERANCE
    assert norm < NORM_TOLERANCE


def test_the_comparison_sees_a_single_missing_sample(start: Path, one_rank: list[dict], tmp_path: Path) -> None:
    """Negative control: another order of samples is far outside the tolerance."""
    lines = _train(start, 4, "--seed 4321", tmp_path)
    assert _largest_difference(lines, one_rank, "lm_loss") > 100 * LOSS_TOLERANCE


@pytest.mark.parametrize("overlap", ["", OVERLAP], ids=["", "overlapped"])
def test_a_plain_optimizer_gives_the_same_as_the_distributed_one(
    overlap: str, start: Path, one_rank: list[dict], tmp_path: Path
) -> None:
    flags = overlap.replace("--overlap-param-gather", "") + " --no-use-distributed-optimizer"
    lines = _train(start, 4, flags, tmp_path)
    assert _largest_difference(lines, one_rank, "lm_loss") < LOSS_TOLERANCE
