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


def allocate_adam_state(optimizer: MegatronOptimizer) -> None:
    """Give torch's AdamW the state that it otherwise makes in its first step.

    megatron-core's DistributedOptimizer reads the step count from that state before it loads a checkpoint into it;
    Transformer Engine's and apex's Adam keep the count elsewhere and are left alone.
    """
    for inner in _torch_adams(optimizer):
        for parameter in (parameter for group in inner.param_groups for parameter in group["params"]):
            inner.state[parameter] = inner.state[parameter] or {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def restore_adam_steps(optimizer: MegatronOptimizer) -> None:
    """Give every parameter of torch's AdamW the step count that was loaded, in a tensor of its own.

    megatron-core's DistributedOptimizer loads the count into the parameter groups only; in the parameters' state it
    leaves zero, or one tensor shared by all, which then counts once for each parameter in every step.
    """
    for inner in _torch_adams(optimizer):
        for group in inner.param_groups:
            for parameter in group["params"] if "step" in group else []:
                inner.state[parameter]["step"] = torch.tensor(float(group["step"]))


def _torch_adams(optimizer: MegatronOptimizer) -> list[torch.optim.Adam]:
    """The torch Adam (or AdamW, its subclass) optimizers inside megatron-core's."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part.optimizer for part in parts if isinstance(part.optimizer, torch.optim.Adam)]


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
