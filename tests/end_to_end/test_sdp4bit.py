"""Training with compressed messages: what leaves a run bitwise the same, and what has to change it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from compressed_training import (
    CHECK_REPLICAS,
    IDENTITY,
    NODES,
    OVERLAP,
    SDP4BIT,
    SMALL_BUCKETS,
    Outcome,
    look_at_training,
    trained,
)

from megatron.training.errors import UserError

PP2 = "--pipeline-model-parallel-size 2".split()


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """SDP4Bit on two nodes of two ranks, without overlap: six steps."""
    return trained(4, SDP4BIT, tmp_path_factory.mktemp("compressed"), 6)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Baseline on two ranks, whose sum of gradients is the same in any order."""
    return trained(2, "--bf16", tmp_path_factory.mktemp("two_ranks"))


SCALINGS = ["--ddp-average-in-collective", "--calculate-per-token-loss"]


@pytest.mark.parametrize("flags", ["--node-size 1", "--node-size 2", *SCALINGS])
def test_identity_gradients_train_bitwise_as_the_baseline(flags: str, two_ranks: Outcome, tmp_path: Path) -> None:
    """However megatron-core scales them: two ranks and 2**9 tokens are divided by without an error, at any point."""
    assert trained(2, [*NODES, *IDENTITY, *flags.split()], tmp_path) == two_ranks


def test_eight_bit_gradients_do_not(two_ranks: Outcome, tmp_path: Path) -> None:
    """Negative control: the comparison above sees the smallest error there is."""
    eight = ["--gradient-quantization-bits-inter", "8", "--gradient-quantization-bits-intra", "8"]
    assert trained(2, [*NODES, *IDENTITY, *eight], tmp_path) != two_ranks


def test_identity_on_two_levels_does_not_depend_on_overlap_or_chunks(tmp_path: Path) -> None:
    """Two levels sum in another order than the baseline, which is seen in the last digits of fp32."""
    flags = [*NODES[1:], *IDENTITY]
    plain = trained(4, flags, tmp_path)
    assert trained(4, [*flags, *OVERLAP[:1], *OVERLAP[2:]], tmp_path) == plain
    assert trained(4, [*flags, "--gradient-alltoall-pipeline", "3"], tmp_path) == plain
    baseline = trained(4, "", tmp_path)
    assert [pytest.approx(pair, rel=1e-5) for pair in baseline] == plain


def test_overlap_changes_no_bit(compressed: Outcome, tmp_path: Path) -> None:
    assert trained(4, [*SDP4BIT, *OVERLAP], tmp_path, 6) == compressed


def test_chunks_change_no_bit(compressed: Outcome, tmp_path: Path) -> None:
    assert trained(4, [*SDP4BIT, "--gradient-alltoall-pipeline", "3"], tmp_path, 6) == compressed


def test_another_seed_of_rounding_changes_the_run(compressed: Outcome, tmp_path: Path) -> None:
    """Negative control of the two tests above."""
    other = trained(4, [*SDP4BIT, "--quantization-seed", "4321"], tmp_path, 6)
    assert other != compressed and other[0][0] == compressed[0][0]


def test_evaluation_and_checkpoints_on_the_way_change_no_bit(tmp_path: Path) -> None:
    """They ask for parameters that were sent already, with nothing new to send; with several buckets, overlapped."""
    flags = [*SDP4BIT, *SMALL_BUCKETS]
    undisturbed = trained(4, flags, tmp_path, 5)
    evaluated = "--eval-interval 2 --eval-iters 1 --save-interval 1".split()
    assert trained(4, [*flags, *evaluated, "--save", str(tmp_path / "saved")], tmp_path, 5) == undisturbed


def test_gradients_are_exact_before_their_start_iteration(tmp_path: Path) -> None:
    flags = [*NODES, *OVERLAP[:1], *OVERLAP[2:]]
    baseline = trained(4, flags, tmp_path)
    started = "--compression tlq_hs --gradients-quantization-start-iteration 2".split()
    late = trained(4, [*flags, *started], tmp_path)
    assert late[:2] == baseline[:2]
    # The third iteration's loss is from before its update; its gradient norm shows the quantized gradients.
    assert late[2][0] == baseline[2][0] and late[2][1] != baseline[2][1]
    assert late[3][0] != baseline[3][0]


def _classes(run) -> tuple[str, ...]:
    from megatron.core import optimizer
    from megatron.core.distributed import param_and_grad_buffer

    used = [run.model[0].bucket_groups[0], run.optimizer.chained_optimizers[0]]
    in_place = [param_and_grad_buffer._ParamAndGradBucketGroup, optimizer.DistributedOptimizer]
    return tuple(kind.__name__ for kind in [*map(type, used), *in_place])


ORIGINALS = ("_ParamAndGradBucketGroup", "DistributedOptimizer")


def test_with_all_switches_off_nothing_is_replaced(two_ranks: Outcome, tmp_path: Path) -> None:
    off = [*NODES, *"--compression baseline --quantized-weights --weight-quantization-bits 32".split()]
    assert trained(2, off, tmp_path) == two_ranks
    assert look_at_training(2, off, _classes)[0] == ORIGINALS * 2


def test_what_was_replaced_is_given_back_after_the_run() -> None:
    """Negative control of the test above: during a compressed run the classes are ours."""
    ours = ("QuantizedBucketGroup", "QuantizedDistributedOptimizer")
    assert look_at_training(2, SDP4BIT, _classes)[0] == ours + ORIGINALS


@pytest.mark.parametrize(
    ("world_size", "flags", "sentence"),
    [
        (3, "--global-batch-size 12", r"nodes of 2 \+ 1 ranks do not pair: a single hop over all ranks"),
        (2, "--min-quantized-bucket 1000000", r"a bucket of \d+ elements is below --min-quantized-bucket 1000000"),
    ],
)
def test_strict_compression_refuses_what_travels_otherwise(
    world_size: int, flags: str, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"--strict-compression: {sentence}; drop the flag") as raised:
        trained(world_size, [*SDP4BIT, *flags.split(), "--strict-compression"], tmp_path)
    assert raised.value.raised_on_every_rank
    losses = trained(world_size, [*SDP4BIT, *flags.split(), *CHECK_REPLICAS], tmp_path)
    assert all(math.isfinite(loss) for loss, _ in losses)
