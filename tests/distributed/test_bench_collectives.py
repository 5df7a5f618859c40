"""The benchmark of collectives: every row computes what it stands for, and bytes are counted where they are sent."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from parallel_launch import parallel_launch

from sdp4bit_patches.config import PRESETS, CommConfig
from tools.bench_collectives import count_bytes, results
from tools.collective_rows import Peer, Quantized, Tensors, all_gather_peers, reduce_scatter_peers
from tools.link_bytes import sent_bytes

SIZE = 4 * 2**12


def _config(**knobs) -> CommConfig:
    return CommConfig(**PRESETS["sdp4bit"] | {"node_size": 2} | knobs)


def _reduce_scatter_errors() -> dict[str, float]:
    """Relative error of every row's shard against the sum in fp64."""
    tensors = Tensors(SIZE)
    exact = tensors.gradients.double()
    dist.all_reduce(exact)
    exact = exact[dist.get_rank() * tensors.shard :][: tensors.shard]
    ours = Peer("reduce-scatter", "ours", Quantized(tensors, _config()).run_reduce_scatter)
    errors = {}
    for row in [ours, *reduce_scatter_peers(tensors)]:
        tensors.output.fill_(torch.nan)
        row.run()
        errors[row.name] = ((tensors.output - exact).norm() / exact.norm()).item()
    return errors


def test_every_reduce_scatter_gives_this_ranks_shard_of_the_sum() -> None:
    for errors in parallel_launch(4, _reduce_scatter_errors):
        assert errors.pop("fp32 all_to_all + local sum") < 1e-6
        assert errors.pop("gloo's reduce_scatter_tensor, fp32") < 1e-6
        assert 1e-4 < errors.pop("bf16 all_to_all + local fp32 sum") < 1e-2
        assert 1e-2 < errors.pop("ours") < 0.3
        assert not errors


def _gathered() -> tuple[bool, list[torch.Tensor]]:
    tensors = Tensors(SIZE)
    before = tensors.model.clone()
    peers = all_gather_peers(tensors)
    gathered = [peer.run.__defaults__[0] for peer in peers]
    for peer in peers:
        peer.run()
    Quantized(tensors, _config()).run_all_gather()
    return bool((tensors.model != before).any()), [tensors.model, *gathered]


def test_every_all_gather_gives_all_ranks_the_same_parameters_and_ours_nearly_these() -> None:
    ranks = parallel_launch(4, _gathered)
    for _, gathered in ranks[1:]:
        assert all(torch.equal(mine, first) for mine, first in zip(gathered, ranks[0][1], strict=True))
    moved, [ours, bf16, fp32] = ranks[0]
    assert moved
    assert torch.equal(bf16, fp32.bfloat16())
    assert (ours.float() - fp32).abs().max() < 0.02  # a rounding of bf16 around 3


def _traffic(knobs: dict) -> list[dict]:
    return count_bytes(Quantized(Tensors(SIZE), _config(**knobs)), knobs["node_size"])


@pytest.mark.parametrize("knobs", [{"node_size": 2}, {"node_size": 2, "gradient_alltoall_pipeline": 4}])
def test_counted_bytes_are_those_of_the_formula(knobs: dict) -> None:
    gradients, weights = parallel_launch(4, _traffic, knobs)[3]
    shard = SIZE // 4
    # 4-bit codes and an fp32 scale for every 128 (or 2,048) elements; 8-bit codes inside the node, for both nodes.
    assert gradients["inter_bytes"] == shard // 2 + shard // 128 * 4
    assert gradients["intra_bytes"] == 2 * (shard + shard // 128 * 4)
    assert gradients["inter_bits_per_element"] == 4.25
    assert weights["inter_bytes"] == (message := shard // 2 + max(16, shard // 2048 * 4))
    assert weights["intra_bytes"] == 2 * message


def _traffic_against_another_formula() -> None:
    quantized = Quantized(Tensors(SIZE), _config())
    quantized.config = _config(gradient_quantization_bits_inter=8)
    count_bytes(quantized, 2)


def test_bytes_that_are_not_those_of_the_formula_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"quantized_reduce_scatter sends .* but wire.py says"):
        parallel_launch(4, _traffic_against_another_formula)


def _count_by_hand() -> tuple[int, int, int]:
    with sent_bytes(node_size=2) as sent:
        splits = [1, 2, 3, 4]
        whole = torch.zeros(10, dtype=torch.float16)
        dist.all_to_all_single(torch.zeros(4 * splits[dist.get_rank()], dtype=torch.float16), whole,
                               [splits[dist.get_rank()]] * 4, splits)  # fmt: skip
        dist.all_gather_into_tensor(torch.zeros(20), torch.zeros(5))
    dist.all_reduce(torch.zeros(1))  # no more counted, and no more refused
    return sent.intra, sent.inter, sent.num_calls


def test_ones_own_part_counts_nowhere_and_the_others_by_their_node() -> None:
    counts = parallel_launch(4, _count_by_hand)
    assert counts[0] == (2 * 2 + 20, 2 * 7 + 40, 2)
    assert counts[3] == (3 * 2 + 20, 3 * 2 + 40, 2)


def _uncounted() -> None:
    with sent_bytes(node_size=1):
        dist.all_reduce(torch.zeros(1))


def test_a_collective_that_would_travel_uncounted_is_an_error() -> None:
    with pytest.raises(AssertionError, match="all_reduce was called, whose bytes are not counted"):
        parallel_launch(2, _uncounted)


def test_a_ratio_is_the_median_of_the_rounds_own() -> None:
    """A drift that meets both rows of a round alike, however large, changes no ratio."""
    rows = [Peer("reduce-scatter", "quantized_reduce_scatter", print), Peer("reduce-scatter", "peer", print, 2.5)]
    table = results(rows, [[1.0, 10.0, 3.0], [2.0, 20.0, 9.0]])
    assert [row["ratio"] for row in table] == [1.0, 2.0]
    assert [row["ms"] for row in table] == [3000.0, 9000.0]
