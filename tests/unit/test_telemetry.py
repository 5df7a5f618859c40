"""Telemetry: error figures held against numbers worked out by hand, sampling, and what is counted when."""

from __future__ import annotations

import math

import pytest
import torch
from parallel_launch import parallel_launch

from sdp4bit_patches.collectives import LinkBytes
from sdp4bit_patches.progress import Handle
from sdp4bit_patches.telemetry import Telemetry, error_metrics


def test_relative_error_snr_and_bias_by_hand() -> None:
    """Sent (3.3, -4.4) for exact (3, -4): e = (0.3, -0.4), |e| = 0.5, |x| = 5, and sum e / sum |x| = -0.1 / 7."""
    metrics = error_metrics([0.25, 25.0, -0.1, 7.0])
    assert metrics == pytest.approx({"relative_error": 0.1, "snr_db": 20.0, "bias": -0.1 / 7})


def test_no_error_is_an_infinite_snr_and_nothing_sent_has_no_error() -> None:
    assert error_metrics([0.0, 4.0, 0.0, 2.0]) == {"relative_error": 0.0, "snr_db": math.inf, "bias": 0.0}
    assert error_metrics([0.0, 0.0, 0.0, 0.0])["relative_error"] == 0.0


def test_nan_and_an_error_beside_nothing_show_as_nan() -> None:
    """Not as an infinite SNR, which would say that there is no error."""
    assert all(math.isnan(value) for value in error_metrics([1.0, 0.0, 1.0, 0.0]).values())
    assert all(math.isnan(value) for value in error_metrics([math.nan, math.nan, math.nan, math.nan]).values())


def test_only_every_interval_th_step_is_sampled() -> None:
    telemetry = Telemetry(3)
    assert [step for step in range(1, 10) if telemetry.measures(step)] == [3, 6, 9]
    assert not any(Telemetry(0).measures(step) for step in range(10))
    for step in range(1, 5):
        telemetry.count(step, LinkBytes(10, 1))
    assert telemetry.take(2) == {}
    assert telemetry.take(3) == {"compression_iteration": 3, "bytes_intra_node": 10, "bytes_inter_node": 1}
    assert telemetry.take(4) == {}, "each sample is given once"


def test_bytes_of_all_messages_of_a_step_add_up() -> None:
    telemetry = Telemetry(1)
    for sent in (LinkBytes(10, 1), LinkBytes(200, 30)):
        telemetry.count(1, sent)
    metrics = telemetry.take(1)
    assert (metrics["bytes_intra_node"], metrics["bytes_inter_node"]) == (210, 31)


def test_a_sample_waits_for_the_messages_that_are_sent_in_the_next_step() -> None:
    telemetry = Telemetry(2)
    telemetry.lag = 1
    telemetry.count(2, LinkBytes(10, 1))
    assert telemetry.take(2) == {}
    telemetry.count(2, LinkBytes(5, 0))
    assert telemetry.take(3)["bytes_intra_node"] == 15


def test_the_time_that_waits_take_is_exposed_time_by_what_was_waited_for() -> None:
    telemetry = Telemetry(1)
    handle = Handle(lambda: None)
    timed = telemetry.timed(1, "gradients", handle)
    timed.wait()
    assert telemetry.take(1)["exposed_gradients_ms"] == handle.exposed_ms > 0
    assert Telemetry(2).timed(1, "gradients", handle) is handle, "nothing is added to the steps between"


def recorded() -> dict[str, float]:
    """Rank 0 has sent 3.3 for 3, rank 1 has sent -4.4 for -4."""
    telemetry, rank = Telemetry(1), torch.distributed.get_rank()
    exact = torch.tensor([[3.0], [-4.0]])[rank]
    telemetry.record(1, "bucket0_gradient", exact * 1.1, exact, torch.distributed.group.WORLD)
    return telemetry.take(1)


def test_errors_are_those_of_all_ranks_together() -> None:
    first, second = parallel_launch(2, recorded)
    assert first == second
    assert first["bucket0_gradient_relative_error"] == pytest.approx(0.1, rel=1e-6)
    assert first["bucket0_gradient_bias"] == pytest.approx(-0.1 / 7, rel=1e-5)
