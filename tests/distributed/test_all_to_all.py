"""The all-to-all whose receives are posted first: what arrives where, and in which order."""

from __future__ import annotations

import torch
import torch.distributed as dist
from parallel_launch import parallel_launch

from sdp4bit_patches import all_to_all
from sdp4bit_patches.all_to_all import AllToAll

# What rank r sends to rank d: nothing in places; what would be for itself stays where it is.
SIZES = [[3, 0, 5], [2, 4, 1], [0, 6, 0]]


def _own_part(rank: int, destination: int) -> torch.Tensor:
    return torch.full((SIZES[rank][destination],), 10 * rank + destination)


def _exchange_uneven() -> bool:
    own = dist.get_rank()
    sizes = [row[own] for row in SIZES]
    received = torch.full((sum(sizes),), -1)
    exchange = AllToAll(received, sizes, dist.group.WORLD)
    sent = torch.cat([_own_part(own, rank) for rank in range(3)])
    exchange.send(sent, SIZES[own]).wait()
    others = [_own_part(rank, own) if rank != own else torch.full((SIZES[own][own],), -1) for rank in range(3)]
    return torch.equal(received, torch.cat(others))


def test_every_rank_gets_the_others_parts_in_the_order_of_the_ranks() -> None:
    assert all(parallel_launch(3, _exchange_uneven))


def _several_under_way() -> bool:
    """Chunks are expected together and sent one after the other: each arrives in its own place."""
    other = 1 - dist.get_rank()
    places = torch.zeros(4, 2 * 1000)
    expected = [AllToAll(place, [1000, 1000], dist.group.WORLD) for place in places]
    sent = [exchange.send(torch.full((2000,), 1.0 + chunk), [1000, 1000]) for chunk, exchange in enumerate(expected)]
    for exchange in sent:
        exchange.wait()
    return all(bool((place.view(2, -1)[other] == 1 + chunk).all()) for chunk, place in enumerate(places))


def test_chunks_under_way_at_once_do_not_mix() -> None:
    assert all(parallel_launch(2, _several_under_way))


class _Watched:
    """Stands in for torch.distributed and notes the names of calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> object:
        if name in ("irecv", "isend", "all_to_all_single"):
            self.calls.append(name)
        return getattr(dist, name)


def _calls() -> list[str]:
    watched = _Watched()
    all_to_all.dist = watched
    exchange = AllToAll(torch.zeros(3), [1, 1, 1], dist.group.WORLD)
    watched.calls.append("computes what it sends")
    exchange.send(torch.ones(3), [1, 1, 1]).wait()
    return watched.calls


def test_all_receives_are_posted_before_anything_is_computed_or_sent() -> None:
    for calls in parallel_launch(3, _calls):
        assert calls == ["irecv", "irecv", "computes what it sends", "isend", "isend"]
