"""Which cores of this machine the nodes of an emulated cluster compute on."""

from __future__ import annotations

from collections.abc import Sequence


def cores_by_node(num_nodes: int, cores: Sequence[int]) -> list[list[int]]:
    """Equal shares of `cores`, none of them in two, as nodes have processors of their own: what one of them computes
    takes no time from the others. Where there are fewer cores than nodes, all of them for every node."""
    share = len(cores) // num_nodes
    if not share:
        return [list(cores)] * num_nodes
    return [list(cores[number * share :][:share]) for number in range(num_nodes)]
