"""Which values the numbers among the flags may take, each by itself. Standard library only."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

from megatron.training.errors import require

_POSITIVE = (
    "num_layers hidden_size ffn_hidden_size num_attention_heads kv_channels num_query_groups max_position_embeddings "
    "rotary_base rope_scaling_factor norm_epsilon make_vocab_size_divisible_by "
    "num_experts moe_router_topk moe_ffn_hidden_size "
    "micro_batch_size global_batch_size exit_interval exit_duration_in_mins recompute_num_layers "
    "lr lr_decay_iters lr_decay_samples lr_wsd_decay_iters adam_eps "
    "initial_loss_scale min_loss_scale loss_scale_window hysteresis "
    "tensor_model_parallel_size pipeline_model_parallel_size context_parallel_size expert_model_parallel_size "
    "expert_tensor_parallel_size num_layers_per_virtual_pipeline_stage num_virtual_stages_per_pipeline_rank "
    "ddp_bucket_size num_distributed_optimizer_instances check_weight_hash_across_dp_replicas_interval "
    "distributed_timeout_minutes seq_length vocab_size save_interval log_interval eval_interval "
    "tensorboard_log_interval"
).split()
_NOT_NEGATIVE = (
    "init_method_std moe_aux_loss_coeff moe_z_loss_coeff train_iters train_samples seed min_lr lr_warmup_iters "
    "lr_warmup_samples lr_warmup_init weight_decay start_weight_decay end_weight_decay clip_grad loss_scale "
    "num_workers ckpt_step eval_iters"
).split()
# At least 0 and below 1.
_FRACTION = "attention_dropout hidden_dropout lr_warmup_fraction adam_beta1 adam_beta2 sgd_momentum".split()


def check_ranges(args: argparse.Namespace) -> None:
    """Refuse a number outside of its range, and any infinity or NaN.

    Raises:
        UserError: with the flag, its value and the range.
    """
    for name, value in vars(args).items():
        if isinstance(value, float):
            require(math.isfinite(value), f"{_flag(name)} {value} is not a finite number; give one")
    _check(args, _POSITIVE, lambda value: value > 0, "positive")
    _check(args, _NOT_NEGATIVE, lambda value: value >= 0, "0 or more")
    _check(args, _FRACTION, lambda value: 0 <= value < 1, "at least 0 and below 1")
    _check(args, ["rotary_percent"], lambda value: 0 < value <= 1, "above 0 and at most 1")
    # NumPy's generator takes no more, and every pipeline stage adds to it.
    _check(args, ["seed"], lambda value: value < 2**31, f"below {2**31}")


def _check(args: argparse.Namespace, names: list[str], holds: Callable[[float], bool], words: str) -> None:
    for name in names:
        value = getattr(args, name)
        require(value is None or holds(value), f"{_flag(name)} {value} has to be {words}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
