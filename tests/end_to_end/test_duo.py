"""DUO: with an exact fast channel it is the baseline to the bit; otherwise only exact gradients move its state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from compressed_training import IDENTITY, NODES, OVERLAP, SMALL_BUCKETS, look_at_training, trained
from test_overlap_races import SMALL, _delay_everything, _run_every_job_at_once
from training_run import TINY, run_training

SCHEDULE = "--lr-decay-style cosine --lr-warmup-iters 5 --weight-decay 0.1 --clip-grad 1.0".split()
EXACT = [*NODES, *IDENTITY, *SCHEDULE]
# The published second moment: with it, and no error, the provisional parameters are the exact ones.
DUO = "--fast-slow-grad-reduce --duo-fast-second-moment updated".split()
DUO4 = [*NODES, "--compression", "duo4bit"]
DUO0 = [*NODES, "--compression", "duo0bit"]

LAYOUTS = {
    "no overlap": [],
    "overlap": SMALL_BUCKETS,
    "weight differences": ["--quantized-weights", *SMALL_BUCKETS],
    "tensor": "--tensor-model-parallel-size 2".split(),
    "sequence": "--tensor-model-parallel-size 2 --sequence-parallel".split(),
    "pipeline": "--pipeline-model-parallel-size 2".split(),
    "interleaved": [
        *"--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1".split(),
        *OVERLAP,
    ],
    "context": "--context-parallel-size 2".split(),
    "experts": "--num-experts 4 --expert-model-parallel-size 2 --disable-bias-linear".split(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_exact_fast_channel_gives_the_baseline_bit_for_bit(layout: str, tmp_path: Path) -> None:
    flags = [*EXACT, *LAYOUTS[layout]]
    assert trained(4, [*flags, *DUO], tmp_path, 8) == trained(4, flags, tmp_path, 8)


def test_it_does_so_over_200_steps(tmp_path: Path) -> None:
    flags = [*EXACT, *SMALL, "--quantized-weights"]
    assert trained(4, [*flags, *DUO], tmp_path, 200) == trained(4, flags, tmp_path, 200)


def test_a_skipped_step_drops_its_gradient_in_both_channels(tmp_path: Path) -> None:
    """The first loss scales of fp16 overflow."""
    flags = [flag for flag in EXACT if flag != "--bf16"]
    flags += "--fp16 --accumulate-allreduce-grads-in-fp32 --no-check-for-nan-in-loss-and-grad --hysteresis 1".split()
    baseline = trained(4, [*flags, "--initial-loss-scale", "1048576"], tmp_path, 12)
    skipped = [norm is None for _, norm in baseline]
    assert any(skipped) and not all(skipped)
    assert trained(4, [*flags, *DUO, "--initial-loss-scale", "1048576"], tmp_path, 12) == baseline


def test_a_slow_sync_that_forgets_to_clip_is_seen() -> None:
    """Negative control: what is remembered with the gradient matters."""
    flags = [*NODES, *IDENTITY, *DUO, "--clip-grad", "0.5"]
    assert look_at_training(4, flags, _weights, _forget_scales) != look_at_training(4, flags, _weights)


def _forget_scales() -> None:
    from dataclasses import replace

    from sdp4bit_patches import duo

    original = duo.DuoBucket._step
    duo.DuoBucket._step = lambda self, steps: original(self, [replace(step, scales=()) for step in steps])


@pytest.mark.parametrize("flags", [DUO4, [*DUO4, *SMALL_BUCKETS], DUO0], ids=["duo4bit", "overlap", "duo0bit"])
def test_resume_is_bitwise(flags: list[str], tmp_path: Path) -> None:
    whole = trained(4, flags, tmp_path, 6)
    save = ["--save", str(tmp_path / "checkpoints"), "--save-interval", "3"]
    first = trained(4, [*flags, *save, "--exit-interval", "3"], tmp_path, 6)
    rest = trained(4, [*flags, "--load", str(tmp_path / "checkpoints")], tmp_path, 6)
    assert first == whole[:3] and rest[-3:] == whole[3:]


def test_the_fast_step_leaves_the_state_alone_and_its_error_does_not_grow() -> None:
    """|y - x| stays what one step's compression error makes of it; x moves by exact gradients only."""
    [distances, *_] = look_at_training(4, [*DUO4, *SCHEDULE, "--lr", "1e-3"], _distances, _watch_distances, 60)
    early, late = distances[10:25], distances[45:]
    assert 0 < max(late) < 3 * max(early)


def test_the_distance_is_in_the_metrics_after_sampled_steps_alone(tmp_path: Path) -> None:
    """A step's slow one runs during the next, whose line has what it came to."""
    flags = [*TINY, *DUO4, "--train-iters", "6", "--log-compression-interval", "2"]
    lines = run_training(4, flags, tmp_path)
    distances = {line["iteration"]: line["duo_distance_per_lr"] for line in lines if "duo_distance_per_lr" in line}
    assert list(distances) == [3, 5] and min(distances.values()) > 0


def test_zero_bits_send_no_gradient_before_the_step() -> None:
    [calls, *_] = look_at_training(4, DUO0, _number_of_calls, _count_calls)
    assert calls["fast"] == 0 and calls["slow"] > 0


_calls: dict[str, int] = {"fast": 0, "slow": 0}


def _number_of_calls(_run: Any) -> dict[str, int]:
    return _calls


def _count_calls() -> None:
    from sdp4bit_patches import collectives, exact_reduce_scatter

    for name, owner in (
        ("fast", collectives.QuantizedReduceScatter),
        ("slow", exact_reduce_scatter.ExactReduceScatter),
    ):
        owner.run = _counted(name, owner.run)


def _counted(name: str, run: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> None:
        _calls[name] += 1
        run(*args, **kwargs)

    return call


_seen: list[float] = []


def _distances(_run: Any) -> list[float]:
    return _seen


def _watch_distances() -> None:
    from sdp4bit_patches import duo

    step, provisional = duo.DuoBucket._step, duo.DuoBucket.step_provisionally

    def checked(self: Any, *args: Any) -> None:
        before = [tensor.clone() for tensor in (self.main, self.exp_avg, self.exp_avg_sq)]
        provisional(self, *args)
        after = (self.main, self.exp_avg, self.exp_avg_sq)
        assert all(old.equal(new) for old, new in zip(before, after, strict=True))

    def measured(self: Any, steps: Any) -> None:
        step(self, steps)
        _seen.append((self.published - self.main).norm().item() / max(steps[0].lr, 1e-9))

    duo.DuoBucket._step, duo.DuoBucket.step_provisionally = measured, checked


def test_gradients_that_are_read_in_their_place_and_copies_of_them_give_the_same_bits() -> None:
    """Through the network, what one rank of the node gets does not lie together: there they are copied."""
    in_place, copied = ([*DUO4, *SMALL_BUCKETS, "--node-channel", channel] for channel in ("memory", "network"))
    assert look_at_training(4, in_place, _turns) == [{True}] * 4
    assert look_at_training(4, copied, _turns) == [{False}] * 4
    assert look_at_training(4, in_place, _weights) == look_at_training(4, copied, _weights)


def _turns(run: Any) -> set[bool]:
    return {bucket.duo.turns is not None for group in run.model[0].bucket_groups for bucket in group.buckets}


@pytest.mark.parametrize("layout", ["no overlap", "experts"])
def test_random_delays_change_no_bit(layout: str) -> None:
    flags = [*DUO4, *SMALL, *LAYOUTS[layout], "--no-check-for-nan-in-loss-and-grad"]
    num_steps = 100 if layout == "no overlap" else 30
    late = look_at_training(4, flags, _weights, _delay_everything, num_steps)
    assert late == look_at_training(4, flags, _weights, _run_every_job_at_once, num_steps)


def _weights(run: Any) -> int:
    import torch

    with run.gathers.paused():
        values = torch.cat([p.detach().view(-1).view(torch.int16) for p in run.model[0].parameters()])
    return int((values.long() * torch.arange(1, len(values) + 1)).sum())


def test_times_are_told_in_every_step(tmp_path: Path) -> None:
    from training_run import TINY, run_training

    lines = run_training(4, [*TINY, "--train-iters", "4", *DUO4], tmp_path)
    assert all(line["duo_slow_ms"] > 0 and line["duo_exposed_ms"] >= 0 for line in lines[1:])
    assert all(line["duo_busy_ms"] >= 0 for line in lines[1:])
