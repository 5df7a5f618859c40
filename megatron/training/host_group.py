"""A gloo group over all ranks for the few numbers that every rank's host has to agree on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

import torch

_group: torch.distributed.ProcessGroup | None = None


def initialize_host_group(timeout_minutes: float) -> None:
    """Create the group; every rank calls it once, after the default process group stands."""
    global _group
    _group = torch.distributed.new_group(backend="gloo", timeout=timedelta(minutes=timeout_minutes))


def start_sum_over_ranks(values: Sequence[float]) -> Callable[[], list[float]]:
    """Begin the element-wise sum of ``values`` over all ranks in float64, the same bits on each; call what it returns
    to wait for it. Every rank begins its sums in the same order."""
    summed = torch.tensor(values, dtype=torch.float64, device="cpu")
    work = torch.distributed.all_reduce(summed, group=_group, async_op=True)

    def finish() -> list[float]:
        work.wait()
        return summed.tolist()

    return finish


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """The same sum at once."""
    return start_sum_over_ranks(values)()
