"""How many bytes a step of stock megatron-core sends, told from a checkpoint: the runs themselves do not count them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

GRADIENT_BYTES = 4  # fp32
PARAMETER_BYTES = 2  # bf16 and fp16


def count_buffer_elements(checkpoint: Path) -> int:
    """Elements of all gradient buffers, padding included, as the distributed optimizer's main parameters have them."""
    from torch.distributed.checkpoint import FileSystemReader

    entries = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    sizes = [entry.size for name, entry in entries.items() if name.startswith("optimizer.") and name.endswith(".param")]
    return sum(size.numel() for size in sizes)


def sent_bytes(num_elements: int, args: Namespace) -> tuple[int, int] | None:
    """Bytes that a rank sends in a step to the other ranks of its node and to other nodes, as (intra, inter).

    Every rank sends each other rank that one's shard of the fp32 gradients, and its own shard of the 16-bit parameters.
    None for a layout or for dtypes of which this is not all, or not true.
    """
    ranks = args.data_parallel_size
    plain = ranks == args.world_size and args.expert_model_parallel_size == 1 and (args.bf16 or args.fp16)
    if not (plain and args.use_distributed_optimizer) or args.grad_reduce_in_bf16:
        return None
    local = args.node_size or ranks
    if ranks % local:
        return None
    to_each = num_elements // ranks * (GRADIENT_BYTES + PARAMETER_BYTES)
    return (local - 1) * to_each, (ranks - local) * to_each
