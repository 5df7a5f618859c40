"""The keys and values of the whole sequence, for context-parallel attention.

Context parallelism (CP) cuts a sequence of ``s`` tokens into ``2 * cp`` chunks; rank ``r`` holds chunk ``r`` and chunk
``2 * cp - 1 - r``, so that every rank has the same causal work (``megatron.core.utils.get_batch_on_this_cp_rank``).
A query needs all keys before it, most of which are elsewhere. Two ways were weighed:

* A ring: K/V blocks travel from neighbour to neighbour, and the partial outputs are merged by an online softmax.
  It holds two blocks of K/V at a time and hides the transfers behind the matrix products. It also needs the kernels'
  log-sum-exp, which torch has no public, device-independent name for, a backward pass written by hand around the
  same ring, and its rounding depends on ``cp``, since every merge rescales what was there.
* Gathering K/V: each rank gathers the keys and values of the whole sequence, once, and runs the ordinary kernel for
  each of its two chunks of queries. It moves the same bytes, exposed, and holds ``s * b * kv_heads * (dim_k + dim_v)``
  elements a layer until the backward pass, which is little beside the activations with grouped-query attention, and
  nothing with ``--recompute-activations``, which gathers again. Every row of the softmax is computed in one piece,
  as without CP; any mask works; gradients come from autograd, with one collective to bring them home.

Gathering was chosen: bits that can be reproduced and a page of code, for an exchange that isn't overlapped. The
gradients come home by an all-to-all and a local sum rather than a reduce-scatter: the same bytes, a fixed order of
summation in fp32 with a single rounding, and faster on gloo.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup


def to_sequence_order(by_rank: Tensor, cp_size: int) -> Tensor:
    """Reorder ``by_rank`` [s, ...], the ranks' tokens one rank after the other, into the order of the sequence."""
    chunks = by_rank.unflatten(0, (cp_size, 2, -1))
    return torch.cat([chunks[:, 0], chunks[:, 1].flip(0)]).flatten(0, 1)


def to_rank_order(in_sequence: Tensor, cp_size: int) -> Tensor:
    """The inverse of :func:`to_sequence_order`."""
    chunks = in_sequence.unflatten(0, (2 * cp_size, -1))
    return torch.stack([chunks[:cp_size], chunks[cp_size:].flip(0)], dim=1).flatten(0, 2)


class _GatherSequence(torch.autograd.Function):
    """Forward: [s / cp, ...] of each rank to [s, ...] in sequence order. Backward: the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, local: Tensor, cp_group: ProcessGroup) -> Tensor:
        ctx.cp_group = cp_group
        by_rank = local.new_empty(cp_group.size() * local.size(0), *local.shape[1:])
        torch.distributed.all_gather_into_tensor(by_rank, local.contiguous(), group=cp_group)
        return to_sequence_order(by_rank, cp_group.size())

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        cp_size = ctx.cp_group.size()
        sent = to_rank_order(gradient, cp_size)
        received = torch.empty_like(sent)
        torch.distributed.all_to_all_single(received, sent, group=ctx.cp_group)
        return received.unflatten(0, (cp_size, -1)).sum(0), None


def gather_key_value(key: Tensor, value: Tensor, cp_group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """Gather ``key`` and ``value`` [s / cp, b, kv_heads, dim] of every CP rank into [s, b, kv_heads, dim] each.

    One collective each way carries both. Differentiable: the gradients of all ranks are summed where they belong.
    """
    both = _GatherSequence.apply(torch.cat([key, value], dim=-1), cp_group)
    return both.split([key.size(-1), value.size(-1)], dim=-1)
