"""A grad buffer in two memories that take turns: the second sync reads a step's gradients where they lie.

DUO needs a step's gradients while the next step makes new ones. To copy them takes as long as the second sync's own
sums. So where they are fp32 in host memory, a bucket that is full changes sides: its compressed sum, and the gradients
of the next step, go to the other side, whose gradients have been synced by then. Where the ranks of a node share
memory, both sides are in it, and every rank reads what the others have.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdp4bit_patches.exact_slices import offset_in
from sdp4bit_patches.node_memory import NodeMemory


class GradientTurns:
    """Two sides for the gradients of `buffer`, megatron-core's, whose fp32 gradients move to the first one.

    memory: what the ranks of a node share; they make theirs together, in one order.
    """

    def __init__(self, buffer: Any, memory: NodeMemory | None) -> None:
        gradients, self._buffer = buffer.grad_data, buffer
        if memory:
            self._sides = [memory.allocate(gradients.nbytes).view(gradients.dtype) for _ in range(2)]
            self._place = memory.group.rank()
        else:
            self._sides = list(torch.zeros(2, 1, gradients.numel(), dtype=gradients.dtype, device=gradients.device))
            self._place = 0
        self._sides[0][self._place].copy_(gradients)
        self.buckets = {bucket.bucket_id: BucketTurns(self, bucket) for bucket in buffer.buckets}

    def side(self, index: int) -> Tensor:
        """[ranks, elements of the buffer]: every rank of the node where they share memory, else this one alone."""
        return self._sides[index]

    def use(self, index: int) -> Tensor:
        """Let the buffer be this rank's part of a side, which is returned. All its buckets turn in the same steps."""
        self._buffer.grad_data = self._sides[index][self._place]
        return self._buffer.grad_data


class BucketTurns:
    """A bucket's part of both sides."""

    def __init__(self, turns: GradientTurns, bucket: Any) -> None:
        self._turns, self._bucket, self._side = turns, bucket, 0
        self._begin, self._size = bucket.offset, bucket.grad_data.numel()
        self._parameters = [(p, offset_in(bucket.grad_data, p.main_grad)) for p in bucket.params_list]
        self._use(0)

    def _use(self, side: int) -> None:
        self._side = side
        data = self._turns.use(side)[self._begin :][: self._size]
        self._bucket.grad_data = data
        for parameter, begin in self._parameters:
            parameter.main_grad = data[begin : begin + parameter.numel()].view(parameter.shape)

    def turn(self) -> Tensor:
        """Let the bucket's gradients be on the other side from now on; returns those that are there, in their place."""
        gradients = self._bucket.grad_data
        self._use(1 - self._side)
        return gradients

    def left(self) -> Tensor:
        """[ranks, elements]: what `turn` has left behind, that of every rank of the node where they share memory."""
        return self._turns.side(1 - self._side)[:, self._begin :][:, : self._size]
