"""One micro-batch, sent to all tensor-parallel ranks and cut for context parallelism."""

from __future__ import annotations

from argparse import Namespace
from typing import NamedTuple

import torch
from megatron.core import parallel_state
from megatron.core.utils import get_batch_on_this_cp_rank

from megatron.training.data import DataIterator, reads_data


class Batch(NamedTuple):
    """A micro-batch in Megatron's order; all None on a pipeline stage that reads no data.

    s is ``seq_length / context_parallel_size``. tokens, labels, position_ids: [micro_batch_size, s], int64. loss_mask:
    the same shape, float32, 0 or 1. attention_mask: [micro_batch_size, 1, s, seq_length], bool, True where attention
    must not look; None without ``--reset-attention-mask``.
    """

    tokens: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    loss_mask: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    position_ids: torch.Tensor | None = None


_INTEGER_KEYS = ("tokens", "labels", "loss_mask", "position_ids")


def get_batch(data_iterator: DataIterator, args: Namespace, vp_stage: int | None = None) -> Batch:
    """The next micro-batch. Collective over the tensor-parallel group.

    Args:
        data_iterator: of :func:`build_data_iterators`; None on all but the first tensor-parallel rank.
        args: ``micro_batch_size``, ``seq_length``, ``reset_attention_mask``.
        vp_stage: number of the model chunk in an interleaved pipeline.

    Raises:
        StopIteration: the data has ended (on the first tensor-parallel rank only: see ``num_train_samples``).
    """
    if not reads_data(args, vp_stage):
        return Batch()
    batch = _receive(args) if data_iterator is None else _send(next(data_iterator), args)
    return Batch(**get_batch_on_this_cp_rank(batch))


def _send(sample: dict[str, torch.Tensor], args: Namespace) -> dict[str, torch.Tensor]:
    # One message for what are four tensors: at this size the number of messages is what costs. The loss mask is 0 or 1.
    integers = torch.stack([sample[key].long() for key in _INTEGER_KEYS])
    mask = sample["attention_mask"] if args.reset_attention_mask else None
    return _broadcast(integers, mask)


def _receive(args: Namespace) -> dict[str, torch.Tensor]:
    shape = (args.micro_batch_size, args.seq_length)
    integers = torch.empty((len(_INTEGER_KEYS), *shape), dtype=torch.int64)
    mask_shape = (args.micro_batch_size, 1, args.seq_length, args.seq_length)
    return _broadcast(integers, torch.empty(mask_shape, dtype=torch.bool) if args.reset_attention_mask else None)


def _broadcast(integers: torch.Tensor, attention_mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
    batch = dict(zip(_INTEGER_KEYS, _from_first_tensor_rank(integers), strict=True))
    batch["loss_mask"] = batch["loss_mask"].float()
    if attention_mask is not None:
        batch["attention_mask"] = _from_first_tensor_rank(attention_mask.to(torch.uint8)).bool()
    return batch


def _from_first_tensor_rank(tensor: torch.Tensor) -> torch.Tensor:
    if torch.cuda.is_available():
        tensor = tensor.cuda(non_blocking=True)
    if parallel_state.get_tensor_model_parallel_world_size() > 1:
        source = parallel_state.get_tensor_model_parallel_src_rank()
        torch.distributed.broadcast(tensor, source, parallel_state.get_tensor_model_parallel_group())
    return tensor
