"""The mixture-of-experts router of the local layer spec.

megatron-core 0.16's router asks at every step whether Transformer Engine brought a matrix product, by a name that
exists only where Transformer Engine does, and so can't run without it. Here the product is torch's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

_ROUTER_DTYPES = {"fp32": torch.float32, "fp64": torch.float64}


class Router(TopKRouter):
    """megatron-core's top-k router, whose logits are computed by torch."""

    def gating(self, input: Tensor) -> Tensor:
        """Logits [s, b, experts] of ``input`` [s, b, hidden], in ``config.moe_router_dtype`` (None: that of input)."""
        dtype = _ROUTER_DTYPES.get(self.config.moe_router_dtype, input.dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        return F.linear(input.to(dtype), self.weight.to(dtype), bias)
