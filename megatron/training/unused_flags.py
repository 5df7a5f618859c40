"""Flags that were given but change nothing in this run, because what they refine is not in it. Standard library only.

The start-up report repeats them: a user who gave one expects something of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

from megatron.training.flags import GROUPS

_DEFAULTS = {flag.name: flag.default for flags in GROUPS.values() for flag in flags}


class _Refinement(NamedTuple):
    """``flags`` only matter where ``matter`` holds; ``reason`` says why they don't elsewhere."""

    flags: str
    matter: Callable[[argparse.Namespace], object]
    reason: str


_REFINEMENTS = (
    _Refinement("num-query-groups", lambda a: a.group_query_attention, "it needs --group-query-attention"),
    _Refinement(
        "rotary-base rotary-percent rotary-interleaved use-rope-scaling",
        lambda a: a.position_embedding_type == "rope" or a.use_rotary_position_embeddings,
        "it needs --position-embedding-type rope",
    ),
    _Refinement("rope-scaling-factor", lambda a: a.use_rope_scaling, "it needs --use-rope-scaling"),
    _Refinement("add-qkv-bias", lambda a: a.disable_bias_linear, "every linear layer has a bias already"),
    _Refinement(
        "moe-router-topk moe-ffn-hidden-size moe-router-load-balancing-type moe-aux-loss-coeff moe-z-loss-coeff "
        "moe-token-dispatcher-type moe-grouped-gemm expert-tensor-parallel-size",
        lambda a: a.num_experts,
        "it needs --num-experts",
    ),
    _Refinement("min-lr", lambda a: a.lr_decay_style != "constant", "--lr-decay-style constant stays at --lr"),
    _Refinement("lr-wsd-decay-style lr-wsd-decay-iters", lambda a: a.lr_decay_style == "WSD", "the style is not WSD"),
    _Refinement(
        "lr-warmup-init",
        lambda a: a.lr_warmup_fraction or a.lr_warmup_iters or a.lr_warmup_samples,
        "there is no warm-up",
    ),
    _Refinement("weight-decay", lambda a: a.weight_decay_incr_style == "constant", "it goes from start to end"),
    _Refinement("adam-beta1 adam-beta2 adam-eps", lambda a: a.optimizer == "adam", "the optimizer is SGD"),
    _Refinement("sgd-momentum", lambda a: a.optimizer == "sgd", "the optimizer is Adam"),
    _Refinement(
        "loss-scale initial-loss-scale min-loss-scale loss-scale-window hysteresis",
        lambda a: a.fp16,
        "losses are scaled with --fp16 only",
    ),
    _Refinement(
        "initial-loss-scale min-loss-scale loss-scale-window hysteresis",
        lambda a: a.loss_scale is None,
        "--loss-scale makes the scale constant",
    ),
    _Refinement(
        "sequence-parallel", lambda a: a.tensor_model_parallel_size > 1, "it needs --tensor-model-parallel-size > 1"
    ),
    _Refinement("ddp-bucket-size", lambda a: a.overlap_grad_reduce, "one bucket is best without --overlap-grad-reduce"),
    _Refinement(
        "overlap-p2p-communication align-param-gather",
        lambda a: a.num_layers_per_virtual_pipeline_stage or a.num_virtual_stages_per_pipeline_rank,
        "the pipeline is not interleaved",
    ),
    _Refinement("align-param-gather", lambda a: a.overlap_param_gather, "it needs --overlap-param-gather"),
    _Refinement("split", lambda a: not a.mock_data, "generated tokens are not split"),
    _Refinement(
        "vocab-file merge-file", lambda a: a.tokenizer_type == "GPT2BPETokenizer", "the tokenizer has no such file"
    ),
    _Refinement(
        "tokenizer-model", lambda a: a.tokenizer_type == "HuggingFaceTokenizer", "the tokenizer has no such folder"
    ),
    _Refinement(
        "dist-ckpt-optim-fully-reshardable",
        lambda a: a.use_distributed_optimizer,
        "only the state of --use-distributed-optimizer is sharded",
    ),
    _Refinement("dist-ckpt-optim-fully-reshardable save-optim save-rng", lambda a: a.save, "it needs --save"),
    _Refinement("finetune load-optim load-rng exit-on-missing-checkpoint", lambda a: a.load, "it needs --load"),
    _Refinement("tensorboard-log-interval", lambda a: a.tensorboard_dir, "it needs --tensorboard-dir"),
    _Refinement("eval-interval", lambda a: a.eval_iters, "--eval-iters 0 means no validation"),
)


def unused_flags(args: argparse.Namespace) -> dict[str, str]:
    """The flags of ``args`` (as parsed, nothing derived yet) that differ from their default to no avail; why."""
    found: dict[str, str] = {}
    for flags, matter, reason in _REFINEMENTS:
        if matter(args):
            continue
        for name in flags.split():
            value = getattr(args, name.replace("-", "_"))
            if value != _DEFAULTS[name]:
                found.setdefault(f"no-{name}" if value is False else name, reason)
    return found
