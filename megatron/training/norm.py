"""LayerNorm and RMSNorm of the local layer spec, by torch's kernels, with sequence parallelism.

With sequence parallelism each tensor-parallel rank normalizes its part of the sequence and so sees a part of the
gradient of the norm's parameters. Parameters whose ``sequence_parallel`` attribute is set are summed over the
tensor-parallel group by ``megatron.core.distributed.finalize_model_grads``.

The parameters are named ``weight`` and ``bias`` as in torch, Apex and Transformer Engine: checkpoints are shared.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


def _check_config(config: TransformerConfig) -> None:
    """Raise ``ValueError`` for what torch's norms can't do."""
    if config.persist_layer_norm:
        raise ValueError(
            "persist_layer_norm=True: a kernel of Apex; the local spec uses torch's (--no-persist-layer-norm)"
        )
    if config.memory_efficient_layer_norm:
        raise ValueError(
            "memory_efficient_layer_norm=True: a kernel of Apex; drop it, or recompute the norms "
            "(--recompute-granularity selective --recompute-modules layernorm)"
        )
    if config.fp32_residual_connection and config.params_dtype != torch.float32:
        raise ValueError(
            "fp32_residual_connection=True: the local spec keeps residuals in the dtype of the parameters; "
            "drop it or use Transformer Engine (--transformer-impl transformer_engine)"
        )


class LayerNorm(torch.nn.LayerNorm):
    """``torch.nn.LayerNorm`` over the last dimension, built with Megatron's arguments.

    Args:
        config: ``sequence_parallel`` flags the parameters; with ``layernorm_zero_centered_gamma`` the stored weight
            is the deviation from one.
        hidden_size: size of the last dimension.
        eps: added to the variance.
        unused: what Megatron's other norms take; ``config`` decides.

    Raises:
        ValueError: the configuration asks for a kernel that torch lacks.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: Any) -> None:
        _check_config(config)
        self.zero_centered_gamma = config.layernorm_zero_centered_gamma
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel
        self.bias.sequence_parallel = config.sequence_parallel

    def reset_parameters(self) -> None:
        """Start from the identity's scale and no shift."""
        super().reset_parameters()
        if self.zero_centered_gamma:
            torch.nn.init.zeros_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize ``input`` [..., hidden_size]; the same shape and dtype come back."""
        weight = self.weight + 1 if self.zero_centered_gamma else self.weight
        return F.layer_norm(input, self.normalized_shape, weight, self.bias, self.eps)


class RMSNorm(torch.nn.RMSNorm):
    """``torch.nn.RMSNorm`` over the last dimension, built with Megatron's arguments (see :class:`LayerNorm`)."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: Any) -> None:
        _check_config(config)
        self.zero_centered_gamma = config.layernorm_zero_centered_gamma
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel

    def reset_parameters(self) -> None:
        """Start from the identity's scale."""
        super().reset_parameters()
        if self.zero_centered_gamma:
            torch.nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x`` [..., hidden_size]; the same shape and dtype come back."""
        weight = self.weight + 1 if self.zero_centered_gamma else self.weight
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)
