"""The optimizer and its schedule, from the arguments; both are megatron-core's."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

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
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    for inner in [part.optimizer for part in parts if isinstance(part.optimizer, torch.optim.Adam)]:
        for parameter in (parameter for group in inner.param_groups for parameter in group["params"]):
            inner.state[parameter] = inner.state[parameter] or {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


# In fp32 the DistributedOptimizer's shards are views of the model's parameters, which it then writes in place.
@torch.no_grad()
def load_optimizer(optimizer: MegatronOptimizer, state: dict[str, Any]) -> None:
    """Load a checkpoint's state (of ``optimizer.sharded_state_dict``) into ``optimizer``.

    With torch's AdamW, megatron-core 0.16's DistributedOptimizer brings the step count into the parameter groups, but
    stumbles over the one in each parameter's state: it wants to load it as a tensor that was never saved, writes zero
    over it, or leaves one tensor to all parameters, which then counts once for each in every step. So the counts are
    taken out while the tensors are loaded, and put back from the groups.
    """
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    states = [state] if len(parts) == 1 else [state[index] for index in range(len(parts))]
    is_torch_adam = [isinstance(part.optimizer, torch.optim.Adam) for part in parts]
    if not all(is_torch_adam) or not all("param_state" in own for own in states):
        optimizer.load_state_dict(state)
        return
    for part, own in zip(parts, states, strict=True):
        part.load_state_dict({key: value for key, value in own.items() if not key.startswith("param_state")})
        for of_parameter in part.optimizer.state.values():
            of_parameter.pop("step")
        kind = own["param_state_sharding_type"]
        getattr(part, f"load_parameter_state_from_{kind}")(own["param_state"])
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                part.optimizer.state[parameter]["step"] = torch.tensor(float(group["step"]))


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
