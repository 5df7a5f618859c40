"""One training step and one validation, over megatron-core's schedules."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer import TransformerConfig

from megatron.training.host_group import start_sum_over_ranks, sum_over_ranks

DataIterators = Iterator[Any] | None | list[Iterator[Any] | None]


@dataclass
class StepResult:
    """What a training step gave: mean loss over its tokens, gradient norm before clipping, and whether it counted."""

    lm_loss: float
    grad_norm: float | None
    num_zeros_in_grad: int | None
    skipped: bool
    exit_requested: bool


def connect_schedule(
    args: argparse.Namespace,
    config: TransformerConfig,
    model: list[DistributedDataParallel],
    optimizer: MegatronOptimizer | None,
) -> None:
    """Tell megatron-core's schedules how to scale the loss and when to synchronize gradients and parameters."""

    def one_or_all(functions: list[Callable]) -> Callable | list[Callable]:
        return functions[0] if len(functions) == 1 else functions

    config.grad_scale_func = optimizer.scale_loss if optimizer else None
    config.finalize_model_grads_func = finalize_model_grads
    if args.overlap_grad_reduce:
        config.no_sync_func = one_or_all([chunk.no_sync for chunk in model])
        if args.pipeline_model_parallel_size > 1:
            config.grad_sync_func = one_or_all([chunk.start_grad_sync for chunk in model])
    if args.overlap_param_gather and args.align_param_gather:
        config.param_sync_func = one_or_all([chunk.start_param_sync for chunk in model])


def train_step(
    args: argparse.Namespace,
    forward_step: Callable,
    data_iterator: DataIterators,
    model: list[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    wants_exit: Callable[[], bool],
) -> StepResult:
    """Forward, backward, gradient synchronization and optimizer step of one global batch.

    ``wants_exit()`` of any rank is ``StepResult.exit_requested`` of all: it rides along with the loss.
    """
    for chunk in model:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    losses = _forward_backward(args, forward_step, data_iterator, model, forward_only=False)
    # Under way during the optimizer's step: after it, a few bytes would queue behind all that a second sync sends.
    finish_sum = start_sum_over_ranks([*_local_loss(losses), float(wants_exit())])
    succeeded, grad_norm, num_zeros = optimizer.step()
    loss_sum, num_tokens, exits = finish_sum()
    norm = None if grad_norm is None else float(grad_norm)
    return StepResult(loss_sum / max(num_tokens, 1.0), norm, num_zeros, not succeeded, exits > 0)


def evaluate(
    args: argparse.Namespace,
    forward_step: Callable,
    data_iterator: DataIterators,
    model: list[DistributedDataParallel],
    wants_exit: Callable[[], bool],
) -> float | None:
    """Mean loss over ``args.eval_iters`` global batches, without dropout and without gradients.

    None where ``wants_exit()`` of any rank has ended it before: a launcher kills what takes long to stop.
    """
    totals = [0.0, 0.0]
    exits = 0.0
    for chunk in model:
        chunk.eval()
    with torch.no_grad():
        for _ in range(args.eval_iters):
            losses = _forward_backward(args, forward_step, data_iterator, model, forward_only=True)
            *sums, exits = sum_over_ranks([*_local_loss(losses), float(wants_exit())])
            totals = [total + part for total, part in zip(totals, sums, strict=True)]
            if exits:
                break
    for chunk in model:
        chunk.train()
    return None if exits else totals[0] / max(totals[1], 1.0)


def _forward_backward(
    args: argparse.Namespace,
    forward_step: Callable,
    data_iterator: DataIterators,
    model: list[DistributedDataParallel],
    forward_only: bool,
) -> list[dict[str, torch.Tensor]]:
    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=data_iterator,
        model=model if len(model) > 1 else model[0],
        num_microbatches=get_num_microbatches(),
        seq_length=args.seq_length,
        micro_batch_size=args.micro_batch_size,
        forward_only=forward_only,
    )


def _local_loss(losses: list[dict[str, torch.Tensor]]) -> list[float]:
    """This rank's summed loss and number of tokens; zero on all but one rank of each model replica's last stage."""
    if not losses or parallel_state.get_tensor_model_parallel_rank() != 0:
        return [0.0, 0.0]
    return torch.stack([loss["lm loss"] for loss in losses]).sum(0).tolist()
