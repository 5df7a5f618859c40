"""One gloo device for several process groups; torch makes one for each.

A gloo device is a thread that looks a hundred times a second whether there is something to do. megatron-core makes more
than twenty groups on every rank, most of them of that rank alone, whose threads take percents of a core, all idle
(docs/communication_design.md). Groups that share a device take turns in its thread, so those that are busy at the same
time should not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import ProcessGroupGloo, distributed_c10d


@contextmanager
def in_torch(**replacements: Any) -> Iterator[None]:
    """Within it, these names of torch's module of process groups mean something else."""
    originals = {name: getattr(distributed_c10d, name) for name in replacements}
    vars(distributed_c10d).update(replacements)
    try:
        yield
    finally:
        vars(distributed_c10d).update(originals)


class _StandIn(type):
    """The type of what stands for torch's class meanwhile: torch calls it, and asks whether what came is a group."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, ProcessGroupGloo)


class GlooDevice:
    """A device, made with the first group that uses it."""

    def __init__(self) -> None:
        self._devices: list[ProcessGroupGloo.Device] = []

    @contextmanager
    def serves_new_groups(self) -> Iterator[None]:
        """Within it, gloo groups that torch makes use this device, unless another one has been chosen already."""
        if distributed_c10d.ProcessGroupGloo is not ProcessGroupGloo:
            yield
            return
        make = {"__new__": lambda _cls, *args, **kwargs: self._make_group(*args, **kwargs)}
        with in_torch(ProcessGroupGloo=_StandIn("ProcessGroupGloo", (), make)):
            yield

    def _make_group(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> ProcessGroupGloo:
        self._devices = self._devices or _new_devices()
        options = ProcessGroupGloo._Options()
        options._timeout, options._devices = timeout, self._devices
        return ProcessGroupGloo(store, rank, size, options)


def _new_devices() -> list[ProcessGroupGloo.Device]:
    """As torch chooses them."""
    interfaces = os.environ.get("GLOO_SOCKET_IFNAME")
    if not interfaces:
        return [ProcessGroupGloo.create_default_device()]
    return [ProcessGroupGloo.create_device(interface=interface) for interface in interfaces.split(",")]


_by_ranks: dict[tuple[int, ...] | None, GlooDevice] = {}


def device_of_ranks(ranks: Sequence[int] | None) -> GlooDevice:
    """The one device of all groups of the same ranks; None: all ranks."""
    return _by_ranks.setdefault(None if ranks is None else tuple(sorted(ranks)), GlooDevice())
