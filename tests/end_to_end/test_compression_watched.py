"""What people watch of compression: the start-up report, bytes and errors in the metrics; watching changes nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from compressed_training import OVERLAP, SDP4BIT, look_at_training, outcome, trained
from training_run import TINY, run_training
from wire_counter import WireCounter

NUM_STEPS = 4
_seen: dict[str, Any] = {}


def _count_and_listen() -> None:
    """Count what this rank sends through torch.distributed, and keep what it prints."""
    from megatron.training import training

    _seen["counter"] = WireCounter("aabb")
    _seen["counter"].listen(setattr)
    _seen["printed"] = []
    training.print_rank_0 = _seen["printed"].append


def _what_was_seen(run: Any) -> tuple[int, int, str]:
    counter = _seen["counter"]
    with run.gathers.paused():  # brings the last step's parameters
        pass
    return counter.intra, counter.inter, "\n".join(_seen["printed"])


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The metrics of a run that is measured in every second step."""
    flags = [*TINY, *SDP4BIT, *OVERLAP, "--train-iters", "6", "--log-compression-interval", "2"]
    return run_training(4, flags, tmp_path_factory.mktemp("watched"))


def test_measuring_changes_no_bit(watched: list[dict[str, Any]], tmp_path: Path) -> None:
    assert outcome(watched) == trained(4, [*SDP4BIT, *OVERLAP], tmp_path, 6)


def test_the_metrics_file_has_errors_of_both_messages_in_the_sampled_steps_alone(watched: list[dict]) -> None:
    """Parameters of step 2 are gathered in step 3: then its sample is complete."""
    sampled = [line.get("compression_iteration") for line in watched]
    assert sampled == [None, None, 2, None, 4, None]
    line = watched[2]
    # 4 bits with a scale for 128 normal values: steps of about 2.6/7 sigma, an error of 1/sqrt(6) steps and more.
    assert 0.02 < line["bucket0_gradient_relative_error"] < 0.5
    assert 0.02 < line["bucket0_weight_relative_error"] < 0.5
    for message in ("gradient", "weight"):
        assert abs(line[f"bucket0_{message}_bias"]) < 0.02, "stochastic rounding is unbiased"
        assert line[f"bucket0_{message}_snr_db"] > 5
    assert {"exposed_gradients_ms", "exposed_parameters_ms"} <= line.keys()


def test_without_shared_memory_the_bits_are_the_same_and_the_report_says_why(tmp_path: Path) -> None:
    flags = [*SDP4BIT, *OVERLAP, "--node-channel", "network"]
    assert trained(4, flags, tmp_path / "network", 6) == trained(4, [*SDP4BIT, *OVERLAP], tmp_path / "memory", 6)
    printed = look_at_training(4, flags, _what_was_seen, _count_and_listen, 1)[0][2]
    assert "inside a node through the network stack, not through shared memory: --node-channel network" in printed


def test_bytes_in_the_report_in_the_metrics_and_on_the_wire_are_the_same(watched: list[dict]) -> None:
    intra, inter, printed = look_at_training(4, [*SDP4BIT, *OVERLAP], _what_was_seen, _count_and_listen, NUM_STEPS)[0]
    assert (watched[2]["bytes_intra_node"], watched[2]["bytes_inter_node"]) == (intra / NUM_STEPS, inter / NUM_STEPS)
    reported = re.search(r"a step sends from this rank (\S+) MiB inside its node and (\S+) MiB to other nodes", printed)
    expected = [f"{num_bytes / NUM_STEPS / 2**20:.2f}" for num_bytes in (intra, inter)]
    assert list(reported.groups()) == expected
    assert "gradients 8 bits in groups of 128 inside a node and 4 bits in groups of 128 between nodes" in printed
    assert "weights 4 bits in groups of 2048" in printed and "2 nodes x 2 ranks" in printed
    assert re.search(r"inside a node through memory that its ranks share, \d\.\d MiB in all", printed)
    assert re.search(r"[\d,]+ elements of norms, biases or TP replicas exactly", printed)
