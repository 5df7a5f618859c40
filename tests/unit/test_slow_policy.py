"""When the second sync does not pay: it is told with the arithmetic, and done with less of it where that is allowed."""

from __future__ import annotations

import threading
import time

import pytest

from sdp4bit_patches.duo import StepClock, processor_time_beside_training, ranks_per_core
from sdp4bit_patches.slow_policy import INTERVAL, LEVELS, SlowPolicy


def _alone(values: list[float]) -> list[float]:
    return values


def _interval(policy: SlowPolicy, slow_ms: float, window_ms: float, start: int = 0) -> str | None:
    """A model of the machine: what does not fit into the window is exposed, half of it travels with bf16."""
    words = None
    for step in range(start, start + INTERVAL):
        synced = policy.syncs(step)
        took = slow_ms * (0.5 if policy.level.dtype == "bf16" else 1.0) if synced else 0.0
        exposed = max(took - window_ms, 0.0)
        policy.watch.add(100.0 + exposed, exposed, took, window_ms, 0.0, synced)
        words = policy.decide(_alone) or words
    return words


def test_a_hidden_sync_is_left_as_it_is() -> None:
    policy = SlowPolicy(adaptive=True)
    assert all(_interval(policy, 60, 80) is None for _ in range(5))
    assert policy.level == LEVELS[0]


def test_without_leave_it_warns_once_with_the_arithmetic() -> None:
    policy = SlowPolicy(adaptive=False)
    words = _interval(policy, 200, 80)
    assert "slow sync 200 ms" in words and "hides it 80 ms" in words and "exposed 120.0%" in words
    assert _interval(policy, 200, 80) is None
    assert policy.level == LEVELS[0]


def test_it_goes_down_until_steps_are_within_the_tolerance() -> None:
    policy = SlowPolicy(adaptive=True)
    for _ in range(10):
        _interval(policy, 150, 80)
    assert policy.level == LEVELS[1], "bf16 fits"
    hopeless = SlowPolicy(adaptive=True)
    for _ in range(10):
        _interval(hopeless, 2000, 80)
    assert hopeless.level.period == 0 and not hopeless.syncs(8)


def test_it_goes_up_again_when_the_window_has_grown() -> None:
    policy = SlowPolicy(adaptive=True)
    for _ in range(3):
        _interval(policy, 150, 80)
    assert policy.level == LEVELS[1]
    assert "has room again" in _interval(policy, 150, 400)
    assert policy.level == LEVELS[0]


def test_it_never_goes_above_what_the_flags_ask_for() -> None:
    policy = SlowPolicy(adaptive=True, first=1)
    for _ in range(5):
        _interval(policy, 10, 400)
    assert policy.level == LEVELS[1]


def test_the_worst_rank_decides_for_all() -> None:
    policy = SlowPolicy(adaptive=True)
    for _ in range(INTERVAL):
        policy.watch.add(100.0, 0.0, 10.0, 80.0, 0.0, True)
    assert policy.decide(lambda values: [0.5, 190.0, -80.0, 0.0]) is not None
    assert policy.level == LEVELS[3], "bf16 leaves 15 ms of 110, 7 % of a step: every fourth step"


def test_one_decision_finds_the_level_that_the_arithmetic_gives() -> None:
    policy = SlowPolicy(adaptive=True)
    assert "bf16 every 8 steps" in _interval(policy, 190, 80), "bf16 leaves 15 ms: 1.9 of 100 in a mean step"
    hopeless = SlowPolicy(adaptive=True)
    assert "exact gradients now: never" in _interval(hopeless, 2000, 80)


def test_from_the_lowest_level_it_looks_again_and_later_each_time() -> None:
    policy = SlowPolicy(adaptive=True)
    _interval(policy, 580, 80)
    assert policy.level == LEVELS[-1], "500 of 100 ms exposed"
    rests = []
    for _ in range(3):
        words = [_interval(policy, 580, 80)]
        while words[-1] is None:
            words.append(_interval(policy, 580, 80))
        assert "looks again" in words[-1] and policy.level == LEVELS[-2]
        rests.append(len(words) * INTERVAL)
        assert "now: never" in _interval(policy, 580, 80)
    assert rests == [1000, 2000, 4000], "five steps' time is half a percent of 1,000"
    while policy.level == LEVELS[-1]:
        _interval(policy, 10, 400)
    for _ in LEVELS:
        _interval(policy, 10, 400)
    assert policy.level == LEVELS[1], "the window has grown: up again, to fp32 not, whose 580 ms are remembered"


def _busy_interval(policy: SlowPolicy, busy_ms: float, window_ms: float = 80.0) -> str | None:
    """A sync that is hidden, but whose processor time makes steps of 100 ms longer."""
    words = None
    for step in range(INTERVAL):
        synced = policy.syncs(step)
        step_ms = window_ms + 20.0 + busy_ms * synced
        policy.watch.add(step_ms, 0.0, 50.0 * synced, window_ms, busy_ms * synced, synced)
        words = policy.decide(_alone) or words
    return words


def test_processor_time_on_shared_cores_counts_though_it_is_hidden() -> None:
    policy = SlowPolicy(adaptive=True)
    words = _busy_interval(policy, 7.0)
    assert "exposed 0.0% of a step, its work on shared cores 7.0%" in words and policy.level == LEVELS[3]
    assert _busy_interval(policy, 7.0) is None, "every second step would be 3.5 %: it does not go up again"
    assert _busy_interval(policy, 1.0) is not None and policy.level == LEVELS[2], "there is room again"


def test_a_level_whose_work_was_too_much_is_not_tried_again_until_steps_are_longer() -> None:
    policy = SlowPolicy(adaptive=True)
    cheaper = {"fp32": 2.5, "bf16": 1.5}
    for _ in range(12):
        _busy_interval(policy, cheaper[policy.level.dtype])
    assert policy.level == LEVELS[1], "bf16 in every step is 1.5 %; fp32 was measured at 2.5"
    for _ in range(3):
        _busy_interval(policy, cheaper[policy.level.dtype], window_ms=160.0)
    assert policy.level == LEVELS[0], "beside twice the compute it is 1.3"


def _work(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_the_processor_time_of_every_thread_but_the_one_that_trains_counts() -> None:
    begun = processor_time_beside_training()
    _work(0.2)
    assert processor_time_beside_training() - begun < 0.1
    helper = threading.Thread(target=_work, args=(0.2,))
    helper.start()
    helper.join()
    assert processor_time_beside_training() - begun >= 0.19


def test_a_slow_sync_takes_from_a_core_only_while_its_ranks_compute() -> None:
    clock = StepClock(ranks_per_core=4.0)
    clock.end_step()
    time.sleep(0.2)
    clock.done(10.0)
    assert clock.end_step()["busy_ms"] < 10.0, "the core was idle"
    _work(0.2)
    clock.done(10.0)
    assert clock.end_step()["busy_ms"] == 40.0, "four ranks fill it, and each has a slow sync"
    free = StepClock(ranks_per_core=0.0)
    free.end_step()
    _work(0.01)
    free.done(10.0)
    assert free.end_step()["busy_ms"] == 0.0


@pytest.mark.parametrize(
    ("ranks", "cores", "expected"), [(4, 8, 0.0), (4, 7, 1.0), (4, 4, 1.0), (4, 2, 2.0), (1, 1, 1.0)]
)
def test_ranks_of_a_core_are_counted_where_none_is_left_for_their_syncs(ranks, cores, expected, monkeypatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert ranks_per_core() == expected
