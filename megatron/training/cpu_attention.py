"""Causal attention in bf16 on the CPU, as two batched matrix products around a softmax.

torch's fused kernel for the CPU keeps no matrix of scores, but for short sequences that costs more than it saves: two
to three times the time below (tools/bench_attention.py). So up to ``LONGEST`` keys the matrix is kept.

Scores and probabilities are rounded to bf16 and the softmax in between is summed in fp32, as in megatron-core's own
attention for the local spec; the fused kernel keeps both in fp32.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# With more keys the matrix of scores, heads x queries x keys, takes more memory than its speed is worth.
LONGEST = 1024


def suits(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> bool:
    """Whether :func:`attend` is the faster way to compute this attention (shapes as there)."""
    return (
        causal
        and mask is None
        and query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and key.size(2) <= LONGEST
    )


def attend(query: Tensor, key: Tensor, value: Tensor, dropout: float, scale: float | None) -> Tensor:
    """Causal attention; the last query is at the position of the last key.

    Args:
        query: [b, heads, queries, dim].
        key: [b, kv_heads, keys, dim]; ``heads`` is a multiple of ``kv_heads``.
        value: [b, kv_heads, keys, dim_v].
        dropout: probability with which a probability is dropped; 0 outside training.
        scale: factor of the scores; None for 1 / sqrt(dim).

    Returns:
        [b, heads, queries, dim_v].
    """
    batch, heads, num_queries, dim = query.shape
    num_keys, repeats = key.size(2), heads // key.size(1)
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    hidden = torch.full((num_queries, num_keys), -math.inf, dtype=query.dtype).triu(num_keys - num_queries + 1)
    scores = torch.baddbmm(
        hidden,
        query.reshape(-1, num_queries, dim),
        key.reshape(-1, num_keys, dim).transpose(1, 2),
        alpha=1 / math.sqrt(dim) if scale is None else scale,
    )
    probabilities = F.dropout(torch.softmax(scores, dim=-1), dropout)
    return torch.bmm(probabilities, value.reshape(-1, num_keys, value.size(3))).view(batch, heads, num_queries, -1)
