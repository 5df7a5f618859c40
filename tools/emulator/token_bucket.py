"""Slow links without any privilege: each collective lasts as long as its bytes would need on the wire.

Every process counts what it hands to torch.distributed for other nodes. A node's ranks share its link: a memory-mapped
file says until when it is taken. A collective reserves its place in that queue, and is over when both the real one and
its reservation are. Where a link is slower to some nodes than to others, each rate has a queue of its own.
"""

from __future__ import annotations

import fcntl
import functools
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

_CLOCK = struct.Struct("d")  # seconds of time.monotonic(), which all processes of a machine share
_COUNT = struct.Struct("Q")  # bytes


class SharedLink:
    """What one node sends at one rate (bit/s): a queue and a byte count, shared by its ranks through a file."""

    def __init__(self, path: Path, bandwidth: float) -> None:
        self.bandwidth = bandwidth
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._file, _CLOCK.size + _COUNT.size)
        self._memory = mmap.mmap(self._file, _CLOCK.size + _COUNT.size)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def reserve(self, num_bytes: int) -> float:
        """Queue `num_bytes`; the time (of time.monotonic) when they are through."""
        with self._locked():
            [busy_until] = _CLOCK.unpack_from(self._memory, 0)
            done = max(busy_until, time.monotonic()) + 8 * num_bytes / self.bandwidth
            _CLOCK.pack_into(self._memory, 0, done)
            _COUNT.pack_into(self._memory, _CLOCK.size, self.sent_bytes + num_bytes)
        return done

    @property
    def sent_bytes(self) -> int:
        """All that was queued so far."""
        return _COUNT.unpack_from(self._memory, _CLOCK.size)[0]


class ShapedWork:
    """A collective under way, over when it is and when its bytes would be through the link."""

    def __init__(self, work: Any, done: float) -> None:
        self._work, self._done = work, done

    def wait(self, *arguments: Any) -> bool:
        """As that of the collective itself."""
        result = self._work.wait(*arguments)
        sleep_until(self._done)
        return result

    def is_completed(self) -> bool:
        """As that of the collective itself."""
        return self._work.is_completed() and time.monotonic() >= self._done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def sleep_until(moment: float) -> None:
    """Return at `moment` of time.monotonic()."""
    left = moment - time.monotonic()
    if left > 0:
        time.sleep(left)


def shape_collectives(links: list[SharedLink | None], node_of_rank: list[int]) -> None:
    """From now on, what this process sends through torch.distributed takes the time of its links.

    links: by node; None for this rank's own. node_of_rank: by rank of the whole job.
    """
    for name, count in _SENT.items():
        setattr(dist, name, _shaped(getattr(dist, name), count, links, node_of_rank))


def _shaped(
    original: Callable[..., Any], count: Callable[..., list[float]], links: list[Any], node_of_rank: list[int]
) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*arguments: Any, **named: Any) -> Any:
        group = named.get("group") or dist.group.WORLD
        sizes = count(dist.get_process_group_ranks(group), *arguments, **named)
        done = 0.0
        for rank, size in zip(dist.get_process_group_ranks(group), sizes, strict=True):
            link = links[node_of_rank[rank]]
            if link is not None and size:
                done = max(done, link.reserve(round(size)))
        work = original(*arguments, **named)
        if hasattr(work, "wait"):
            return ShapedWork(work, done)
        sleep_until(done)
        return work

    return call


# Bytes that this rank sends to each rank of the group, by collective. All but the first three go around a ring: the
# next rank gets everything. Group arguments are looked up by name: torch's own modules and Megatron's give them so.


def _all_to_all_single(
    ranks: list[int], output: Any, input: Any, _o: Any = None, splits: Any = None, **named: Any
) -> list[float]:
    splits = splits or named.get("input_split_sizes") or [input.shape[0] / len(ranks)] * len(ranks)
    row = input[:1].numel() * input.element_size()
    return [split * row for split in splits]


def _point_to_point(ranks: list[int], tensor: Any, dst: int | None = None, **named: Any) -> list[float]:
    target = ranks[named["group_dst"]] if named.get("group_dst") is not None else dst
    return [tensor.numel() * tensor.element_size() * (rank == target) for rank in ranks]


def _to_next(ranks: list[int], num_bytes: float) -> list[float]:
    following = ranks[(ranks.index(dist.get_rank()) + 1) % len(ranks)]
    return [num_bytes * (rank == following) for rank in ranks]


def _all_gather_into_tensor(ranks: list[int], output: Any, input: Any, **_named: Any) -> list[float]:
    return _to_next(ranks, input.numel() * input.element_size() * (len(ranks) - 1))


def _reduce_scatter_tensor(ranks: list[int], output: Any, input: Any, *_op: Any, **_named: Any) -> list[float]:
    return _to_next(ranks, input.numel() * input.element_size() * (len(ranks) - 1) / len(ranks))


def _all_reduce(ranks: list[int], tensor: Any, *_op: Any, **_named: Any) -> list[float]:
    return _to_next(ranks, tensor.numel() * tensor.element_size() * 2 * (len(ranks) - 1) / len(ranks))


_SENT: dict[str, Callable[..., list[float]]] = {
    "all_to_all_single": _all_to_all_single,
    "isend": _point_to_point,
    "send": _point_to_point,
    "all_gather_into_tensor": _all_gather_into_tensor,
    "reduce_scatter_tensor": _reduce_scatter_tensor,
    "all_reduce": _all_reduce,
}
