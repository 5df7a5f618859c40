"""Start a rank: process groups, device, seeds, number of micro-batches."""

from __future__ import annotations

import argparse
import os
import random
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator

from megatron.training.errors import UserError, require
from megatron.training.layout import read_layout
from sdp4bit_patches import cpu_device


def initialize_megatron(args: argparse.Namespace) -> None:
    """Initialize torch.distributed, megatron-core's parallel state and every random generator from ``args``.

    Raises:
        UserError: the backend does not fit the machine.
    """
    if args.deterministic_mode:
        _use_deterministic_algorithms()
    _init_process_group(args)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=args.tensor_model_parallel_size,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=args.virtual_pipeline_model_parallel_size,
        context_parallel_size=args.context_parallel_size,
        expert_model_parallel_size=args.expert_model_parallel_size,
        expert_tensor_parallel_size=args.expert_tensor_parallel_size,
        # Said to be an integer, but a timedelta is made of it: fractions of a minute hold.
        distributed_timeout_minutes=args.distributed_timeout_minutes,
    )
    set_random_seed(args.seed)
    init_num_microbatches_calculator(
        torch.distributed.get_rank(),
        args.rampup_batch_size,
        args.global_batch_size,
        args.micro_batch_size,
        args.data_parallel_size,
    )


def _use_deterministic_algorithms() -> None:
    # cuBLAS and NCCL read these when they start; a value that the user has set stands.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("NCCL_ALGO", "Ring")
    os.environ.setdefault("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "0")
    torch.use_deterministic_algorithms(True)


def _init_process_group(args: argparse.Namespace) -> None:
    """One process group over all ranks, under torchrun or as a single process; one that stands already is kept."""
    if torch.distributed.is_initialized():
        require(args.layout is None, "--layout orders ranks when their group is made, but it stands already; drop it")
        return
    backend = args.distributed_backend or ("gloo" if cpu_device.is_installed() else "nccl")
    if backend == "nccl" and cpu_device.is_installed():
        raise UserError("--distributed-backend nccl needs CUDA, which this machine lacks; say gloo or drop the flag")
    if not cpu_device.is_installed():
        torch.cuda.set_device(_gpu_of_this_rank())
    timeout = timedelta(minutes=args.distributed_timeout_minutes)
    if "MASTER_ADDR" in os.environ:
        _meet(backend, timeout, args.layout)
    else:
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)


def _meet(backend: str, timeout: timedelta, layout: str | None) -> None:
    """The group of torchrun's processes; with a layout each takes the rank that its device has there."""
    if layout is None:
        torch.distributed.init_process_group(backend, timeout=timeout)
        return
    # The store stays where the launcher put it, at its own rank 0: only the ranks within the group are others.
    store, process, world_size = next(torch.distributed.rendezvous("env://", timeout=timeout))
    rank = read_layout(Path(layout)).rank_of_process[process]
    os.environ["RANK"] = str(rank)  # who prints an error for all is told by it
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def _gpu_of_this_rank() -> int:
    """The ordinal of this rank's GPU; each process of a node has one of its own."""
    local_rank, num_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local_rank >= num_gpus:
        processes = os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1)
        raise UserError(
            f"{processes} processes on this node have {num_gpus} GPU(s); start one process for each GPU, or hide them "
            "with CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    return local_rank


def set_random_seed(seed: int) -> None:
    """Seed Python, NumPy and torch; pipeline stages differ, and tensor-parallel ranks where megatron-core says so."""
    seed += 100 * parallel_state.get_pipeline_model_parallel_rank()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
