"""Compression as the trainer sees it: its flags checked against the others, installed, reported, measured."""

from __future__ import annotations

import argparse

from megatron.training.errors import require, user_input
from sdp4bit_patches import config


def comm_config(args: argparse.Namespace) -> config.CommConfig:
    """What ``args`` ask to send between data-parallel ranks.

    Raises:
        UserError: with the flags and the remedy.
    """
    with user_input():
        return config.from_arguments(args)


def check_compression(args: argparse.Namespace) -> None:
    """Refuse compression flags that don't fit each other or the rest.

    Raises:
        UserError: with the flags and the remedy.
    """
    comm = comm_config(args)
    require(
        comm.nodes is None or len(comm.nodes) == args.world_size,
        f"--node-of-rank has {len(comm.nodes or ())} numbers for {args.world_size} ranks; give one for every rank",
    )
    if comm.is_baseline:
        return
    require(
        args.use_distributed_optimizer,
        "compression works on sharded gradients and parameters; add --use-distributed-optimizer",
    )
    require(
        not comm.compresses_weights or args.bf16 or args.fp16,
        "--quantized-weights sends what fp32 main parameters differ from 16-bit ones by; add --bf16",
    )
    require(
        not (comm.quantize_all_parameters and args.tensor_model_parallel_size > 1),
        f"--quantize-all-parameters with --tensor-model-parallel-size {args.tensor_model_parallel_size}: norms and "
        "biases would drift apart between tensor-parallel ranks; drop one of the two",
    )
    if comm.fast_slow_grad_reduce:
        _check_duo(args)


def _check_duo(args: argparse.Namespace) -> None:
    require(
        args.bf16 or args.fp16,
        "--fast-slow-grad-reduce publishes 16-bit parameters beside fp32 main parameters; add --bf16",
    )
    require(
        args.optimizer == "adam",
        f"--fast-slow-grad-reduce with --optimizer {args.optimizer}: its steps are AdamW's; say --optimizer adam",
    )
    require(
        not args.calculate_per_token_loss,
        "--calculate-per-token-loss scales gradients after their sync, --fast-slow-grad-reduce misses that; drop one",
    )
