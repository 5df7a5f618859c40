"""Memory of a rank: what the parts will take, told at start, and what the process really took, told at the end."""

from __future__ import annotations

import argparse
import resource

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel

from sdp4bit_patches import cpu_device

MIB = 2**20


def activation_bytes_per_layer(args: argparse.Namespace) -> float:
    """Bytes that one transformer layer keeps for the backward pass of one micro-batch, on one rank.

    The formula of Korthikanti et al. 2022 (arXiv 2205.05198, equations 1, 2 and 4) in its 16-bit form: with s tokens of
    this context-parallel rank, b samples, h the hidden size, t the tensor-parallel size, ``s b h (10 + 24/t)``, all of
    it over t with sequence parallelism. The attention matrix (``5 a s^2 b / t``) is not kept, since the fused
    attention kernels recompute it. With full recompute only the layer's input stays: ``2 s b h``.
    """
    tensor = args.tensor_model_parallel_size
    tokens = args.seq_length / args.context_parallel_size * args.micro_batch_size
    element = 1.0 if args.params_dtype != "float32" else 2.0
    if args.recompute_granularity == "full":
        return element * 2 * tokens * args.hidden_size / (tensor if args.sequence_parallel else 1)
    # The MLP's share (19 of the 34 bytes in the paper) scales with its width; a gated MLP keeps three projections.
    mlp = 19 * args.ffn_hidden_size / (4 * args.hidden_size) * (1.5 if args.swiglu else 1.0)
    split, whole = (15 - 10 + mlp), 10.0
    per_token = (split + whole) / tensor if args.sequence_parallel else split / tensor + whole
    return element * tokens * args.hidden_size * per_token


def memory_parts(
    args: argparse.Namespace, parameters: int, parameter_bytes: int, data_parallel_size: int
) -> dict[str, float]:
    """Bytes that a rank with so many ``parameters`` will need, by part.

    ``data_parallel_size``: the ranks that share the distributed optimizer's state, context parallelism included.
    """
    gradient_bytes = parameters * (
        4 if args.accumulate_allreduce_grads_in_fp32 or args.params_dtype == "float32" else 2
    )
    # Adam's two moments in fp32, and an fp32 main copy where the model's parameters are shorter.
    optimizer_bytes = parameters * (8 if args.params_dtype == "float32" else 12)
    if args.use_distributed_optimizer:
        optimizer_bytes /= data_parallel_size
    activations = activation_bytes_per_layer(args) * args.num_layers / args.pipeline_model_parallel_size
    # The first 1F1B stage holds as many micro-batches as there are stages.
    in_flight = min(
        args.pipeline_model_parallel_size, args.global_batch_size // (args.micro_batch_size * args.data_parallel_size)
    )
    return {
        f"parameters ({parameters:,})": parameter_bytes,
        "gradients": gradient_bytes,
        "optimizer": optimizer_bytes,
        f"activations (estimate, {in_flight} micro-batch{'es' if in_flight > 1 else ''})": activations * in_flight,
    }


def memory_report(args: argparse.Namespace, model: list[DistributedDataParallel]) -> list[str]:
    """Lines with the memory that this rank will need, by part, in MiB."""
    parameters = sum(parameter.numel() for chunk in model for parameter in chunk.parameters())
    parameter_bytes = sum(p.numel() * p.element_size() for chunk in model for p in chunk.parameters())
    shards = parallel_state.get_data_parallel_world_size(with_context_parallel=True)
    parts = memory_parts(args, parameters, parameter_bytes, shards)
    lines = [f"  {name}: {size / MIB:,.1f} MiB" for name, size in parts.items()]
    return [*lines, f"  sum: {sum(parts.values()) / MIB:,.1f} MiB"]


def peak_memory_mib() -> float:
    """The most memory this rank has held so far: CUDA's allocator, or the process's resident set on the CPU."""
    if cpu_device.is_installed():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return torch.cuda.max_memory_allocated() / MIB
