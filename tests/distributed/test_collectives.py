"""The quantized reduce-scatter and all-gather over gloo processes that stand for the ranks of emulated nodes.

Each result equals, bit for bit, what `collective_oracle` computes on a single process.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

import pytest
import torch
from collective_oracle import Case, gathered, reduce_scattered, same_bits
from collective_runs import Result, all_gather, discover, reduce_scatter, weights
from parallel_launch import parallel_launch

from sdp4bit_patches.topology import group_by_node, shape
from sdp4bit_patches.wire import MessageFormat

# One letter a rank, naming its node: one level and two, both, uneven, and nodes whose ranks are not in a row.
HOSTS = ["a", "aa", "ab", "aaa", "abb", "aabb", "aaaa", "abcd", "abab", "aaabb", "aabbcc", "aaabbb", "abcabc", "abccba"]
# Maps of several ranks a node that share memory, where nodes pair.
PAIRED = {hosts for hosts in HOSTS if len(hosts) > 1 and shape(group_by_node(hosts)) in ("intra", "two-level")}
CHANNELS = ("memory", "network")
SIZES = (0, 1, 2, 31, 33, 63, 65, 127, 129, 2047, 4097)
CHUNKS = (1, 3, 8)
BITS = ((32, 32), (8, 4), (4, 4), (8, 2), (2, 1), (4, 32))
GROUPS = ((32, 32), (128, 128), (128, 32), (64, 96), (32, 512))
EXACT = ("none", "middle", "ends", "all")
DTYPES = (torch.float32, torch.bfloat16)
ROUNDINGS = ("nearest", "stochastic")
NUM_DRAWN = 14


def _ranges(name: str, size: int) -> tuple[tuple[int, int], ...]:
    """Exact ranges of a bucket of `size` elements: they straddle shards and quantization groups."""
    edge = min(size // 4, 37)
    places = {"none": [], "middle": [(size // 3, size // 2)], "ends": [(size - edge, size), (0, edge)]}
    return tuple(pair for pair in (places | {"all": [(0, size)]})[name] if pair[0] < pair[1])


@cache
def _cases(hosts: str) -> list[Case]:
    """Cases in which every value of every knob occurs, combined by chance, the same in each run."""
    drawing = random.Random(hosts)
    columns = []
    for axis in (SIZES, CHUNKS, BITS, GROUPS, (0, 32), EXACT, DTYPES, ROUNDINGS):
        columns.append([axis[index % len(axis)] for index in range(NUM_DRAWN)])
        drawing.shuffle(columns[-1])
    return [_case(hosts, seed, *values) for seed, values in enumerate(zip(*columns, strict=True))]


def _case(hosts, seed, size, chunks, bits, groups, hadamard, exact, dtype, rounding) -> Case:
    formats = [MessageFormat(*pair, hadamard=hadamard) for pair in zip(bits, groups, strict=True)]
    ranges = _ranges(exact, size * len(hosts))
    return Case(hosts, size, *formats, chunks, ranges, dtype, rounding, seed)


def all_cases(num_ranks: int) -> dict[tuple[str, str], list[tuple[Result, Result]]]:
    """What a rank does: every case of every node map of so many ranks, on both channels inside a node."""
    results = {}
    for hosts in (hosts for hosts in HOSTS if len(hosts) == num_ranks):
        for channel in CHANNELS:
            ranks = discover(hosts, channel == "memory")
            assert (ranks.node_memory is not None) == (channel == "memory" and hosts in PAIRED)
            runs = [(reduce_scatter(case, ranks), all_gather(case, ranks)) for case in _cases(hosts)]
            results[hosts, channel] = runs
    return results


@cache
def _launched(num_ranks: int) -> list[dict[tuple[str, str], list[tuple[Result, Result]]]]:
    return parallel_launch(num_ranks, all_cases, num_ranks, timeout_s=120)


def _of(hosts: str, channel: str, collective: int) -> list[tuple[Case, list[Result]]]:
    """Each case with its results by rank; collective 0 is the reduce-scatter, 1 the all-gather."""
    by_rank = [results[hosts, channel] for results in _launched(len(hosts))]
    return [(case, [row[index][collective] for row in by_rank]) for index, case in enumerate(_cases(hosts))]


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("hosts", HOSTS)
def test_reduce_scatter_equals_the_oracle_to_the_bit(hosts: str, channel: str) -> None:
    for case, results in _of(hosts, channel, 0):
        assert same_bits(torch.cat([result.output for result in results]), reduce_scattered(case)), case


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("hosts", HOSTS)
def test_all_gather_gives_every_rank_what_the_oracle_says(hosts: str, channel: str) -> None:
    for case, results in _of(hosts, channel, 1):
        expected = gathered(case, *weights(case), replace(case.inter, hadamard=0), case.seed % 3 == 0)
        for rank, result in enumerate(results):
            assert same_bits(result.output, expected), (rank, case)


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("hosts", HOSTS)
def test_the_bytes_on_every_link_are_those_that_were_planned(hosts: str, channel: str) -> None:
    for case, results in _of(hosts, channel, 0) + _of(hosts, channel, 1):
        for result in results:
            assert result.counted == result.planned, case
