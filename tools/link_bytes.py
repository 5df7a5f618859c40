"""Counts what a rank really hands to torch.distributed, by intercepting its calls: the check of every byte formula."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch.distributed as dist
from torch import Tensor

from sdp4bit_patches.node_memory import NodeMemory


@dataclass
class SentBytes:
    """Bytes that this rank has sent to other ranks of its node (`intra`) and to other nodes (`inter`), in `num_calls`
    collectives."""

    node_size: int
    intra: int = 0
    inter: int = 0
    num_calls: int = 0

    def add(self, num_bytes: list[int], group: dist.ProcessGroup | None) -> None:
        """Count a collective that sends `num_bytes[i]` to the i-th rank of `group`; one's own part counts nowhere."""
        own = dist.get_rank()
        self.num_calls += 1
        for rank, size in zip(dist.get_process_group_ranks(group or dist.group.WORLD), num_bytes, strict=True):
            if rank // self.node_size != own // self.node_size:
                self.inter += size
            elif rank != own:
                self.intra += size

    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,
        output_split_sizes: list[int] | None = None,
        input_split_sizes: list[int] | None = None,
        group: dist.ProcessGroup | None = None,
        async_op: bool = False,
    ) -> None:
        """Count one call of that name."""
        size = dist.get_world_size(group)
        splits = input_split_sizes or [input.shape[0] // size] * size
        row_bytes = input[:1].numel() * input.itemsize
        self.add([split * row_bytes for split in splits], group)

    def all_gather_into_tensor(
        self, output: Tensor, input: Tensor, group: dist.ProcessGroup | None = None, async_op: bool = False
    ) -> None:
        """Count one call of that name: its input goes to every rank."""
        self.add([input.numel() * input.itemsize] * dist.get_world_size(group), group)

    def isend(self, tensor: Tensor, group: dist.ProcessGroup, group_dst: int) -> None:
        """Count one call of that name: a message to one rank."""
        sizes = [0] * group.size()
        sizes[group_dst] = tensor.numel() * tensor.itemsize
        self.add(sizes, group)

    def written(self, memory: NodeMemory, num_bytes: Sequence[int]) -> None:
        """Count what is written into memory of a node, for its ranks."""
        self.add(list(num_bytes), memory.group)


@contextmanager
def sent_bytes(node_size: int) -> Iterator[SentBytes]:
    """Within the context, count what this process sends; `node_size` ranks in a row are a node.

    Other collectives that carry tensors raise `AssertionError`, so that nothing travels uncounted.
    """
    counted = SentBytes(node_size)
    names = {name: _counting(counted, dist, name) for name in ("all_to_all_single", "all_gather_into_tensor", "isend")}
    names |= {name: _refusing(name) for name in ("all_to_all", "all_gather", "all_reduce", "reduce_scatter_tensor")}
    names |= {name: _refusing(name) for name in ("reduce_scatter", "broadcast", "send", "batch_isend_irecv")}
    written = _counting(counted, NodeMemory, "written")
    with mock.patch.multiple(dist, **names), mock.patch.object(NodeMemory, "written", written):
        yield counted


def _counting(counted: SentBytes, owner: Any, name: str) -> Callable[..., Any]:
    original = getattr(owner, name)

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        getattr(counted, name)(*args, **kwargs)
        return original(*args, **kwargs)

    return call


def _refusing(name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"torch.distributed.{name} was called, whose bytes are not counted")

    return call
