"""From the names of hosts to the hops of a reduce-scatter."""

from __future__ import annotations

import pytest

from sdp4bit_patches.topology import Topology, group_by_node, shape


@pytest.mark.parametrize(
    ("hosts", "nodes"),
    [
        ("a", ((0,),)),
        ("aabb", ((0, 1), (2, 3))),
        ("abab", ((0, 2), (1, 3))),
        ("bbaa", ((0, 1), (2, 3))),
        ("abccba", ((0, 5), (1, 4), (2, 3))),
        ("aaabb", ((0, 1, 2), (3, 4))),
    ],
)
def test_ranks_of_one_host_are_a_node_and_nodes_are_ordered_by_their_first_rank(hosts: str, nodes: tuple) -> None:
    assert group_by_node(hosts) == nodes


@pytest.mark.parametrize(
    ("hosts", "hops", "words"),
    [
        ("a", "intra", "1 node x 1 rank"),
        ("aaaa", "intra", "1 node x 4 ranks"),
        ("abcd", "inter", "4 nodes x 1 rank"),
        ("aabb", "two-level", "2 nodes x 2 ranks"),
        ("aabbcc", "two-level", "3 nodes x 2 ranks"),
        ("abab", "two-level", "2 nodes x 2 ranks"),
        ("aaabb", "uneven", "nodes of 3 + 2 ranks"),
        ("abb", "uneven", "nodes of 1 + 2 ranks"),
    ],
)
def test_the_hops_follow_from_the_sizes_of_the_nodes(hosts: str, hops: str, words: str) -> None:
    topology = Topology(group_by_node(hosts), 0, None, None, None)
    assert shape(topology.nodes) == topology.shape == hops
    assert topology.description == words and topology.size == len(hosts)


def test_a_rank_knows_its_node_and_its_place_there() -> None:
    places = [Topology(group_by_node("abccba"), rank, None, None, None) for rank in range(6)]
    assert [(topology.node, topology.local_rank) for topology in places] == [
        (0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (0, 1)
    ]  # fmt: skip
