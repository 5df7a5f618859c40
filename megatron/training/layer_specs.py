"""Which module stands where in a transformer block: megatron-core's own specs, completed where there is no TE.

megatron-core's local spec has no context-parallel attention, no norm that allows sequence parallelism, and a router
of experts that can't run. Those three are replaced by ours; everything else is what megatron-core says.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

from megatron.core.fusions.fused_layer_norm import FusedLayerNorm
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.transformer.dot_product_attention import DotProductAttention as StockDotProductAttention
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron.training.attention import DotProductAttention
from megatron.training.norm import LayerNorm, RMSNorm
from megatron.training.router import Router

_NORMS = {"LayerNorm": LayerNorm, "RMSNorm": RMSNorm}


def get_layer_spec(
    config: TransformerConfig, use_te: bool, vp_stage: int | None = None, qk_l2_norm: bool = False
) -> TransformerBlockSubmodules:
    """The spec of this pipeline stage's transformer block: its layers (GPT, Llama or MoE, by ``config``), final norm.

    Args:
        config: the model; ``normalization``, ``num_moe_experts``, ``moe_layer_freq``, ``qk_layernorm`` and the
            pipeline's layout are read.
        use_te: Transformer Engine's modules; otherwise the local spec with this package's attention, norms and router.
        vp_stage: which of this rank's model chunks, with an interleaved pipeline.
        qk_l2_norm: normalize queries and keys by their L2 norm instead of a learned norm.

    Raises:
        ValueError: ``use_te`` without Transformer Engine, or a normalization or attention that the local spec lacks.
    """
    _check(config, use_te)
    block = get_gpt_decoder_block_spec(
        config, use_te, normalization=config.normalization, qk_l2_norm=qk_l2_norm, vp_stage=vp_stage
    )
    if use_te:
        return block
    norm = _NORMS[config.normalization]
    ours = {StockDotProductAttention: DotProductAttention, TopKRouter: Router}
    return _replace(block, ours | {WrappedTorchNorm: norm, FusedLayerNorm: norm})


def _check(config: TransformerConfig, use_te: bool) -> None:
    """Raise ``ValueError`` with the remedy for what can't be built."""
    if use_te and importlib.util.find_spec("transformer_engine") is None:
        raise ValueError("Transformer Engine isn't installed: pip install '.[gpu]', or pass --transformer-impl local")
    if not use_te and config.normalization not in _NORMS:
        raise ValueError(f"normalization={config.normalization!r}: the local spec has {' and '.join(_NORMS)}")
    if not use_te and config.multi_latent_attention:
        raise ValueError("multi_latent_attention=True needs Transformer Engine (--transformer-impl transformer_engine)")


def _replace(spec: Any, ours: dict[type, type]) -> Any:
    """A copy of ``spec`` (spec dataclasses and lists, nested) with the classes that are keys of ``ours`` replaced."""
    if isinstance(spec, list):
        return [_replace(item, ours) for item in spec]
    if isinstance(spec, type):
        return ours.get(spec, spec)
    if dataclasses.is_dataclass(spec):
        fields = {field.name: _replace(getattr(spec, field.name), ours) for field in dataclasses.fields(spec)}
        return dataclasses.replace(spec, **fields)
    return spec
