"""One micro-batch: fetch it, run the model, and define its loss."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.timers import Timers
from megatron.core.utils import get_attr_wrapped_model

from megatron.training.batch import get_batch


def make_forward_step(args: argparse.Namespace, timers: Timers) -> Callable:
    """The ``forward_step_func`` that megatron-core's schedules call for every micro-batch."""

    def forward_step(data_iterator: Iterator[Any] | None, model: GPTModel) -> tuple[torch.Tensor, Callable]:
        timers("batch-generator", log_level=2).start()
        batch = get_batch(data_iterator, args, get_attr_wrapped_model(model, "vp_stage"))
        timers("batch-generator").stop()
        output = model(batch.tokens, batch.position_ids, batch.attention_mask, labels=batch.labels)
        return output, partial(loss_of_micro_batch, batch.loss_mask)

    return forward_step


def loss_of_micro_batch(
    loss_mask: torch.Tensor, token_losses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of a micro-batch as megatron-core's schedules take it.

    Args:
        loss_mask: [b, s] with 1 where a token counts.
        token_losses: [b, s] cross entropy of each token of this context-parallel rank.

    Returns:
        The summed loss (differentiable), the number of tokens (int32), and ``{"lm loss": [sum, tokens]}`` as float64.
    """
    mask = loss_mask.reshape(-1).float()
    loss = torch.sum(token_losses.reshape(-1).float() * mask)
    num_tokens = mask.sum().to(torch.int32)
    counted = torch.stack([loss.detach().double(), num_tokens.double()])
    return loss, num_tokens, {"lm loss": counted}
