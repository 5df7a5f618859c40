"""Floating-point operations of a training step, by the formula that Megatron's papers count with."""

from __future__ import annotations

import argparse


def flops_per_sample(args: argparse.Namespace) -> float:
    """Model FLOPs of forward and backward for one sequence of ``args.seq_length`` tokens.

    A multiply and an add count as two, the backward pass as twice the forward, recompute not at all, and attention as
    full (not causal). With s the sequence, h the hidden size, l the layers, a heads of c channels, k key/value
    heads, f the MLP's width and V the padded vocabulary, a token's forward pass in one layer takes::

        2 h c (a + 2 k)      query, key and value projection
        4 s c a              scores and weighted values
        2 h c a              output projection
        4 h f, or 6 h f      plain, or gated MLP (times the experts a token visits)

    and the output layer 2 h V. For a c = h, k = a and f = 4 h, times three for the backward pass, that is
    ``72 s l h^2 (1 + s/(6h) + V/(12 l h))``, and in general ``60 s l h^2 (1 + k/(5a) + s/(5h) + V/(10 l h))`` for the
    plain MLP (Narayanan et al. 2021, section 5.1, with key/value heads counted); for the gated one
    ``12 s l h^2 (1 + k/a + s/h + 1.5 f/h + V/(2 l h))``.
    """
    hidden, channels, length = args.hidden_size, args.kv_channels, args.seq_length
    heads, groups = args.num_attention_heads, args.num_query_groups
    attention = 2 * hidden * channels * (heads + 2 * groups) + 4 * length * channels * heads
    attention += 2 * hidden * channels * heads
    width = args.ffn_hidden_size if args.num_experts is None else args.moe_ffn_hidden_size * args.moe_router_topk
    mlp = (6 if args.swiglu else 4) * hidden * width
    forward = args.num_layers * (attention + mlp) + 2 * hidden * args.padded_vocab_size
    return 3.0 * length * forward


def tflops_per_gpu(args: argparse.Namespace, global_batch_size: int, seconds: float) -> float:
    """TFLOP/s of each rank in a step of ``seconds`` over ``global_batch_size`` sequences."""
    return flops_per_sample(args) * global_batch_size / (seconds * 1e12 * args.world_size)
