"""Counts what really goes through torch.distributed, by the link it takes."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from sdp4bit_patches import all_to_all, collectives, exact_reduce_scatter, gather
from sdp4bit_patches.node_memory import NodeMemory

_written = NodeMemory.written


class WireCounter:
    """Stands in for `torch.distributed` in a module, and adds up the bytes that this rank sends to other ranks.

    hosts: one letter a rank of the whole job, naming its node.
    """

    def __init__(self, hosts: str) -> None:
        self.hosts, self.intra, self.inter, self.num_calls = hosts, 0, 0, 0

    def listen(self, patch: Any) -> None:
        """Let the collectives go through it; `patch(owner, name, value)` is setattr, or a monkeypatch's."""
        for module in (all_to_all, collectives, exact_reduce_scatter, gather):
            patch(module, "dist", self)
        patch(NodeMemory, "written", lambda memory, num_bytes: self.written(memory, num_bytes))

    def __getattr__(self, name: str) -> Any:
        return getattr(dist, name)

    def _count(self, destination: int, num_bytes: int) -> None:
        if destination != dist.get_rank():
            near = self.hosts[destination] == self.hosts[dist.get_rank()]
            self.intra += num_bytes * near
            self.inter += num_bytes * (not near)

    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,
        output_splits: list[int] | None = None,
        input_splits: list[int] | None = None,
        **more: Any,
    ) -> Any:
        """Counts what each destination gets."""
        ranks = dist.get_process_group_ranks(more["group"])
        splits = input_splits or [len(input) // len(ranks)] * len(ranks)
        assert sum(splits) == len(input), "all of the input is sent"
        for rank, split in zip(ranks, splits, strict=True):
            self._count(rank, split * input.element_size())
        self.num_calls += 1
        return dist.all_to_all_single(output, input, output_splits, input_splits, **more)

    def written(self, memory: Any, num_bytes: list[int]) -> Any:
        """Stands in for `NodeMemory.written`."""
        for rank, size in zip(dist.get_process_group_ranks(memory.group), num_bytes, strict=True):
            self._count(rank, size)
        self.num_calls += 1
        return _written(memory, num_bytes)

    def isend(self, tensor: Tensor, group: dist.ProcessGroup, group_dst: int) -> Any:
        """Counts the message."""
        self._count(dist.get_process_group_ranks(group)[group_dst], tensor.nbytes)
        self.num_calls += 1
        return dist.isend(tensor, group=group, group_dst=group_dst)
