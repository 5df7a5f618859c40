"""Single properties of the quantized reduce-scatter, each on four ranks of two emulated nodes or of one."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, reduce
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from collective_oracle import Case, gathered, reduce_scattered, same_bits, transformed
from collective_runs import discover, reduce_scatter
from parallel_launch import parallel_launch
from torch import Tensor
from wire_counter import WireCounter

from sdp4bit_patches.collectives import (
    EXACT_FORMAT,
    LinkBytes,
    QuantizedAllGather,
    QuantizedReduceScatter,
)
from sdp4bit_patches.duo import DTYPES
from sdp4bit_patches.exact_reduce_scatter import ExactReduceScatter, keeps_shards_in_order
from sdp4bit_patches.gradient_turns import GradientTurns
from sdp4bit_patches.progress import Scratch
from sdp4bit_patches.topology import Topology, group_by_node
from sdp4bit_patches.wire import MessageFormat

IDENTITY = MessageFormat(32, 128)
INTRA, INTER = MessageFormat(8, 128, hadamard=32), MessageFormat(4, 128, hadamard=32)
BASE = Case("aabb", 1000, INTRA, INTER, num_chunks=2, exact=((1500, 1600),))
CASES = {
    "sdp4bit": BASE,
    "identity": replace(BASE, intra=IDENTITY, inter=IDENTITY, exact=()),
    "other inter group": replace(BASE, inter=replace(INTER, group_size=512)),
    "exact codes": Case("aabb", 512, replace(INTRA, hadamard=0), replace(INTER, hadamard=0), num_chunks=2),
    "one node, Hadamard, group 512": Case("aaaa", 1024, replace(INTRA, group_size=512), INTER),
    "one node, Hadamard, group 2048": Case("aaaa", 2048, replace(INTRA, group_size=2048), INTER),
    "stochastic": replace(BASE, rounding="stochastic"),
}
# Where rank 1 puts it: among the quantized elements of rank 2's shard, and among the exact ones of rank 1's.
BROKEN = {"quantized": 2100, "exact": 1550}


def _with_broken(value: str, place: int) -> Tensor:
    gradients = BASE.gradients()
    gradients[1, place] = float(value)
    return gradients


def _representable() -> Tensor:
    """-m, 0 and m with another m in every group, which 8 and 4 bits hold without an error.

    Rank 0 has the numbers, the others zeros: so the sums that the second hop sends are the numbers as well.
    """
    generator = torch.Generator().manual_seed(5)
    groups = torch.zeros(4, CASES["exact codes"].num_elements // 128, 128)
    groups[0] = (
        torch.randint(-1, 2, groups[0].shape, generator=generator) * torch.arange(1, 1 + len(groups[0]))[:, None]
    )
    return groups.view(4, -1)


def _of_one_rank(distance: int) -> Tensor:
    """Every shard's numbers lie on one rank, so many ranks behind its owner; the others have zeros."""
    case = CASES["exact codes"]
    numbers, gradients = case.gradients()[0].view(4, -1), torch.zeros(4, 4, case.shard_size)
    for owner in range(4):
        gradients[(owner + distance) % 4, owner] = numbers[owner]
    return gradients.view(4, -1)


def all_cases() -> dict[object, Tensor]:
    """What a rank has of every case."""
    ranks = {hosts: discover(hosts) for hosts in ("aabb", "aaaa")}
    outputs: dict[object, Tensor] = {}
    for name, case in CASES.items():
        values = _representable() if name == "exact codes" else None
        outputs[name] = reduce_scatter(case, ranks[case.hosts], values).output
    for hosts, distance in product(("aabb", "aaaa"), (0, 1)):
        case = replace(CASES["exact codes"], hosts=hosts)
        outputs[hosts, distance] = reduce_scatter(case, ranks[hosts], _of_one_rank(distance)).output
    for value in ("nan", "inf"):
        for name, place in BROKEN.items():
            outputs[name, value] = reduce_scatter(BASE, ranks["aabb"], _with_broken(value, place)).output
    return outputs


@cache
def _launched() -> list[dict[object, Tensor]]:
    return parallel_launch(4, all_cases, timeout_s=120)


def _bucket(name: object) -> Tensor:
    return torch.cat([outputs[name] for outputs in _launched()])


def test_identity_is_the_exact_sum_inside_the_nodes_then_between_them_and_own_elements_last() -> None:
    rows = CASES["identity"].gradients()
    a, b, c, d = (row.chunk(4) for row in rows)
    of_two_owners = [(b[0] + (c[0] + d[0])) + a[0], (a[1] + (c[1] + d[1])) + b[1]]
    assert same_bits(_bucket("identity")[: rows.shape[1] // 2], torch.cat(of_two_owners))
    assert same_bits(_bucket("identity"), _sum_by_node(rows, CASES["identity"].hosts))
    own_elements_in_their_place = (rows[0] + rows[1]) + (rows[2] + rows[3])
    assert not same_bits(_bucket("identity"), own_elements_in_their_place), "the order of the sum shows"


def test_what_the_codes_hold_exactly_arrives_exactly_each_element_in_its_place() -> None:
    gradients = _representable()
    assert torch.allclose(_bucket("exact codes"), gradients[0], rtol=1e-6, atol=0)
    swapped = gradients[0].view(-1, 128).flip(0).reshape(-1)
    assert not torch.allclose(_bucket("exact codes"), swapped, rtol=1e-6, atol=0)


def _with_output_elsewhere() -> tuple[Tensor, bool]:
    """A rank's sum, and whether its gradients are what they were."""
    ranks, device = discover(BASE.hosts), torch.device("cpu")
    plan = QuantizedReduceScatter(BASE.num_elements, ranks, INTRA, INTER, device, BASE.slices(), BASE.num_chunks)
    scratch, output = Scratch(device), torch.empty(BASE.shard_size)
    scratch.reserve(plan.scratch_sizes)
    gradients = BASE.gradients()[ranks.rank]
    plan.run(output, gradients, scratch, lambda form, hop: BASE.rounding_name(form, hop, ranks.rank))
    return output, same_bits(gradients, BASE.gradients()[ranks.rank])


def test_an_output_elsewhere_has_the_same_bits_and_leaves_the_gradients_as_they_were() -> None:
    outputs, unchanged = zip(*parallel_launch(4, _with_output_elsewhere), strict=True)
    assert same_bits(torch.cat(outputs), _bucket("sdp4bit"))
    assert all(unchanged)


@pytest.mark.parametrize("hosts", ["aabb", "aaaa"])
def test_what_a_rank_has_of_its_own_shard_is_not_quantized(hosts: str) -> None:
    numbers = CASES["exact codes"].gradients()[0]
    assert same_bits(_bucket((hosts, 0)), numbers)
    assert not torch.allclose(_bucket((hosts, 1)), numbers, rtol=1e-3), "what others have of it is"


@pytest.mark.parametrize("name", ["one node, Hadamard, group 512", "one node, Hadamard, group 2048"])
def test_a_single_hop_with_hadamard_is_right_for_groups_over_128(name: str) -> None:
    case, result = CASES[name], _bucket(name)
    exact = case.gradients().sum(0)
    assert same_bits(result, reduce_scattered(case))
    # A block that is not transformed back (or twice) would be off by its own size, and by a factor of 32.
    limit = 4 * _largest_step(case) * case.num_ranks
    errors = (result - exact).abs()
    assert errors.max() < limit
    assert (transformed(result, 32) / 32 - exact).abs().max() > 10 * limit, "the limit tells H x from x"


def _largest_step(case: Case) -> float:
    """The distance between two neighbouring values, in the group with the largest transformed gradient."""
    return float(transformed(case.gradients().view(-1), 32).abs().max()) / 127 / 32**0.5


def test_the_group_size_between_nodes_is_used() -> None:
    """A published implementation ignores it: then these two would be equal."""
    assert not same_bits(_bucket("sdp4bit"), _bucket("other inter group"))
    assert same_bits(_bucket("other inter group"), reduce_scattered(CASES["other inter group"]))


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_one_ranks_nan_or_infinity_reaches_the_owner(value: str) -> None:
    quantized, exact = _bucket(("quantized", value)), _bucket(("exact", value))
    assert quantized[BROKEN["quantized"]].isnan()
    # It takes its own group along, in shards of 1,000 elements that begin at 2,000, and nothing else.
    broken = (~quantized.isfinite()).nonzero().flatten()
    assert broken.min() >= 2000 and broken.max() < 2128
    assert (~exact.isfinite()).nonzero().flatten().tolist() == [BROKEN["exact"]]
    assert not exact[BROKEN["exact"]].isfinite()


def test_stochastic_rounding_differs_from_nearest_and_equals_its_oracle() -> None:
    assert same_bits(_bucket("stochastic"), reduce_scattered(CASES["stochastic"]))
    assert not same_bits(_bucket("stochastic"), _bucket("sdp4bit"))
    assert not same_bits(_bucket("stochastic"), reduce_scattered(replace(CASES["stochastic"], rounding="nearest")))


def test_the_comparison_sees_other_nodes_another_order_and_another_scale() -> None:
    """Negative controls of every comparison with the oracle."""
    result = _bucket("sdp4bit")
    assert same_bits(result, reduce_scattered(BASE))
    interleaved = group_by_node("abab")
    assert not same_bits(result, reduce_scattered(BASE, nodes=interleaved))
    assert not same_bits(result, reduce_scattered(BASE, BASE.gradients()[[2, 1, 0, 3]]))
    halved = BASE.gradients()
    halved[3] *= 0.5
    assert not same_bits(result, reduce_scattered(BASE, halved))
    for other in (replace(BASE, exact=()), replace(BASE, intra=replace(INTRA, group_size=64))):
        assert not same_bits(result, reduce_scattered(other))


def test_the_oracle_of_the_gather_sees_a_shard_in_another_place() -> None:
    model, main = torch.zeros(4000), torch.randn(4000, generator=torch.Generator().manual_seed(1))
    form = MessageFormat(4, 128)
    swapped = torch.cat(list(main.split(1000))[::-1])
    assert not same_bits(gathered(BASE, model, main, form), gathered(BASE, model, swapped, form))


def _planned(num_elements: int, hosts: str = "aabb") -> list[QuantizedReduceScatter | QuantizedAllGather]:
    """Plans of SDP4Bit's published formats for a bucket, made without any process group."""
    nodes, device = Topology(group_by_node(hosts), 0, None, None, None), torch.device("cpu")
    scatter = QuantizedReduceScatter(num_elements, nodes, INTRA, INTER, device, num_chunks=8)
    return [scatter, QuantizedAllGather(num_elements, nodes, MessageFormat(4, 2048), torch.bfloat16, device)]


def test_a_large_buckets_messages_are_as_small_as_published() -> None:
    """4.25 bits a gradient and 4.016 a weight, and what the last groups are filled with."""
    num_elements = 16 * 2**20
    scatter, gather = _planned(num_elements)
    shard = num_elements // 4
    assert 8 * scatter.link_bytes.intra / (2 * shard) <= 8.27
    assert 8 * scatter.link_bytes.inter / shard <= 4.27
    assert 8 * gather.link_bytes.inter / shard <= 4.02
    exact = QuantizedReduceScatter(num_elements, scatter.topology, EXACT_FORMAT, EXACT_FORMAT, torch.device("cpu"))
    assert 8 * exact.link_bytes.inter / shard == 32, "the bound is one that an uncompressed exchange misses"


def test_the_planned_bytes_follow_from_the_size_of_one_message() -> None:
    """Two nodes of two: inside, two shards for the other local rank; between, one for the other node."""
    scatter, gather = _planned(4 * 8 * 128 * 5)
    chunk = 128 * 5
    assert scatter.link_bytes.intra == 8 * 2 * INTRA.num_bytes(chunk)
    assert scatter.link_bytes.inter == 8 * INTER.num_bytes(chunk)
    message = MessageFormat(4, 2048).num_bytes(8 * chunk)
    assert (gather.link_bytes.intra, gather.link_bytes.inter) == (2 * message, message)


def test_a_bucket_that_does_not_split_into_equal_shards_is_refused() -> None:
    with pytest.raises(ValueError, match="4001 elements do not split among 4 ranks: pad the bucket"):
        _planned(4001)


EXACT_HOSTS = ("aabb", "abba", "aaaa", "abcd", "aaab")
EXACT_CASES = [(*case, shared) for case in product(EXACT_HOSTS, ("fp32", "bf16")) for shared in (True, False)]


def _exact_sums() -> dict[tuple[str, str, bool], tuple[Tensor, LinkBytes]]:
    """What a rank has of the sum in each dtype, through shared memory and without, and the bytes it sent for it.

    Gradients that can be read where they lie are, and have to give the same sum as copies of them.
    """
    gradients = BASE.gradients()[torch.distributed.get_rank()]
    results = {}
    for hosts, dtype, shared in EXACT_CASES:
        ranks = discover(hosts, shared)
        plan = ExactReduceScatter(gradients.numel(), ranks, torch.device("cpu"))
        scratch = Scratch(torch.device("cpu"))
        scratch.reserve(plan.scratch_sizes)
        counter, output = WireCounter(hosts), torch.empty(gradients.numel() // 4)
        with pytest.MonkeyPatch.context() as patch:
            counter.listen(patch.setattr)
            for factor in (3, 1):  # Twice, so that what was kept before must not be seen any more.
                plan.keep(factor * gradients)
                plan.run(output, DTYPES[dtype], scratch)
        counted = LinkBytes(counter.intra // 2, counter.inter // 2)
        assert dtype == "bf16" or counted == plan.link_bytes
        results[hosts, dtype, shared] = output, counted
        if keeps_shards_in_order(ranks):
            assert same_bits(_sum_in_place(gradients, ranks, dtype), output)
    return results


def _sum_in_place(gradients: Tensor, ranks: Topology, dtype: str) -> Tensor:
    """The sum of gradients that change sides; twice, so that both sides are read."""
    bucket = SimpleNamespace(bucket_id=0, offset=0, grad_data=torch.zeros_like(gradients), params_list=[])
    turns = GradientTurns(SimpleNamespace(grad_data=bucket.grad_data, buckets=[bucket]), ranks.node_memory).buckets[0]
    plan = ExactReduceScatter(gradients.numel(), ranks, torch.device("cpu"), turns)
    scratch, output = Scratch(torch.device("cpu")), torch.empty(gradients.numel() // 4)
    scratch.reserve(plan.scratch_sizes)
    for factor in (3, 1):
        bucket.grad_data.copy_(factor * gradients)
        plan.keep(turns.turn())
        plan.run(output, DTYPES[dtype], scratch)
    return output


def test_an_exact_sum_is_taken_by_node_and_crosses_between_nodes_once() -> None:
    rows, results = BASE.gradients(), parallel_launch(4, _exact_sums, timeout_s=120)
    shard = rows.shape[1]  # bytes of fp32: a quarter of the elements, four bytes each
    for hosts, dtype, shared in EXACT_CASES:
        found = torch.cat([result[hosts, dtype, shared][0] for result in results])
        whole = _sum_by_node(rows, hosts)
        if dtype == "fp32" or (hosts, shared) == ("aaaa", True):
            assert same_bits(found, whole)
        else:
            assert 1e-4 < (found - whole).norm() / whole.norm() < 1e-2
    for result in results:
        sent = {case: counted for case, (_, counted) in result.items()}
        for hosts in ("aabb", "abba"):
            assert sent[hosts, "fp32", True] == sent[hosts, "fp32", False] == LinkBytes(2 * shard, shard)
            assert sent[hosts, "bf16", False] == LinkBytes(shard, shard // 2)
            assert sent[hosts, "bf16", True] == LinkBytes(2 * shard, shard // 2)
        assert sent["abcd", "fp32", True] == LinkBytes(0, 3 * shard)


def _sum_by_node(rows: Tensor, hosts: str) -> Tensor:
    """Each owner's shard, without its own elements over the ranks of each node, then over the nodes as the ranks in its
    place ascend (at once where nodes are uneven), and then its own."""
    nodes = group_by_node(hosts)
    if len({len(node) for node in nodes}) > 1:
        nodes = ((*range(len(rows)),),)
    shards = []
    for owner, shard in enumerate(rows.chunk(len(rows), dim=1)):
        place = next(node.index(owner) for node in nodes if owner in node)
        others = [[rank for rank in node if rank != owner] for node in sorted(nodes, key=lambda node: node[place])]
        sums = [reduce(torch.add, shard[ranks]) for ranks in others if ranks]
        shards.append(reduce(torch.add, [*sums, shard[owner]]))
    return torch.cat(shards)
