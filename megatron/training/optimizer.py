"""The optimizer and its schedule, from the arguments; both are megatron-core's."""

from __future__ import annotations

import argparse
import dataclasses

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.timers import Timers


def build_optimizer(
    args: argparse.Namespace, model: list[DistributedDataParallel], timers: Timers
) -> MegatronOptimizer:
    """megatron-core's optimizer over the model chunks (its DistributedOptimizer with --use-distributed-optimizer)."""
    fields = {field.name for field in dataclasses.fields(OptimizerConfig) if field.init}
    values = {name: value for name, value in vars(args).items() if name in fields}
    values |= {"params_dtype": getattr(torch, args.params_dtype), "timers": timers}
    return get_megatron_optimizer(OptimizerConfig(**values), model)


def build_scheduler(args: argparse.Namespace, optimizer: MegatronOptimizer) -> OptimizerParamScheduler:
    """The schedule of learning rate and weight decay; its steps are samples."""
    return OptimizerParamScheduler(
        optimizer,
        init_lr=args.lr_warmup_init,
        max_lr=args.lr,
        min_lr=args.min_lr,
        lr_warmup_steps=args.lr_warmup_steps,
        lr_decay_steps=args.lr_decay_steps,
        lr_decay_style=args.lr_decay_style,
        start_wd=args.start_weight_decay,
        end_wd=args.end_weight_decay,
        wd_incr_steps=max(args.train_iters, 1) * args.global_batch_size,
        wd_incr_style=args.weight_decay_incr_style,
        use_checkpoint_opt_param_scheduler=args.use_checkpoint_opt_param_scheduler,
        override_opt_param_scheduler=args.override_opt_param_scheduler,
        wsd_decay_steps=args.lr_wsd_decay_steps,
        lr_wsd_decay_style=args.lr_wsd_decay_style,
    )
