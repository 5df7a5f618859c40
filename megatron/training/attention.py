"""Core attention of the local layer spec (no Transformer Engine): torch's kernels, and context parallelism.

How the keys and values of the other context-parallel ranks get here: :mod:`megatron.training.context_parallel`.
"""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import is_layer_window_attention
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from megatron.training import cpu_attention
from megatron.training.context_parallel import gather_key_value

_USE_TE = "or use Transformer Engine (--transformer-impl transformer_engine)"


def _check_config(config: TransformerConfig, layer_number: int, attention_type: str, cp_comm_type: str | None) -> None:
    """Raise ``ValueError`` for what this attention doesn't do."""
    if is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number):
        raise ValueError(f"window_size={config.window_size}: local attention has no sliding window; drop it {_USE_TE}")
    if config.softmax_type != "vanilla":
        raise ValueError(f"softmax_type={config.softmax_type!r}: local attention has only 'vanilla'; use it {_USE_TE}")
    if config.qk_clip or config.log_max_attention_logit:
        raise ValueError(f"qk_clip, log_max_attention_logit: local attention keeps no logits; drop them {_USE_TE}")
    if config.context_parallel_size > 1 and cp_comm_type not in (None, "all_gather"):
        raise ValueError(f"cp_comm_type={cp_comm_type!r}: local attention gathers; use 'all_gather' {_USE_TE}")
    if config.context_parallel_size > 1 and attention_type != "self":
        raise ValueError(f"context parallelism with attention_type={attention_type!r}: only 'self' has it; use cp 1")


class DotProductAttention(MegatronModule):
    """Stands in for ``megatron.core.transformer.dot_product_attention.DotProductAttention``, with its arguments.

    The softmax is always computed in fp32, whatever ``config.attention_softmax_in_fp32`` says (in bf16 on the CPU, for
    short sequences, of scores rounded to bf16: :mod:`megatron.training.cpu_attention`). So
    ``config.apply_query_key_layer_scaling`` (divide the scores by the layer's number, multiply them again in fp32:
    against fp16 overflow) has nothing left to do; ``config.masked_softmax_fusion`` names a kernel that is not used.
    Dropout draws the same numbers on all CP ranks, as Megatron's seeds do not know of CP.

    Raises:
        ValueError: the configuration asks for something that isn't here (sliding window, other softmax, ...).
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        _check_config(config, layer_number, attention_type, cp_comm_type)
        pg_collection = pg_collection or ProcessGroupCollection.use_mpu_process_groups(required_pgs=["tp", "cp"])
        self.attn_mask_type = attn_mask_type
        self.attention_dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.softmax_scale = softmax_scale  # None: 1 / sqrt(dim), the kernels' default
        self.cp_group = pg_collection.cp if config.context_parallel_size > 1 else None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attend, within this tensor-parallel rank's heads.

        Args:
            query: [s, b, heads, dim]; with context parallelism ``s`` is this rank's part, two chunks.
            key: [s, b, kv_heads, dim]; ``heads`` is a multiple of ``kv_heads``.
            value: [s, b, kv_heads, dim_v].
            attention_mask: None, or bool [b or 1, 1, s, whole sequence], True where a query must not look. With a
                causal type it can only hide more. A query for which everything is hidden gets zeros.
            attn_mask_type: overrides the constructor's.
            attention_bias: must be None.
            packed_seq_params: must be None.

        Returns:
            [s, b, heads * dim_v], in the dtype of ``query``.

        Raises:
            ValueError: packed sequences, an attention bias or another mask type was asked for.
        """
        if attention_bias is not None or packed_seq_params is not None:
            raise ValueError(f"local attention takes no attention bias and no packed sequences; drop them {_USE_TE}")
        causal = _is_causal(attn_mask_type or self.attn_mask_type)
        if self.cp_group is not None:
            key, value = gather_key_value(key, value, self.cp_group)
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        with self._random_state():
            if causal and self.cp_group is not None:
                context = self._attend_chunks(query, key, value, attention_mask)
            else:
                context = self._attend(query, key, value, attention_mask, causal)
        return context.permute(2, 0, 1, 3).flatten(2)

    def _attend_chunks(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Causal attention of this rank's two chunks of queries, each to the keys up to its own end."""
        cp_size, cp_rank = self.cp_group.size(), self.cp_group.rank()
        queries, masks = query.chunk(2, dim=2), (None, None) if mask is None else mask.chunk(2, dim=2)
        context = []
        for chunk, chunk_query, chunk_mask in zip((cp_rank, 2 * cp_size - 1 - cp_rank), queries, masks, strict=True):
            end = (chunk + 1) * chunk_query.size(2)
            visible = None if chunk_mask is None else chunk_mask[..., :end]
            context.append(self._attend(chunk_query, key[:, :, :end], value[:, :, :end], visible, causal=True))
        return torch.cat(context, dim=2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """[b, heads, queries, dim] and [b, kv_heads, keys, dim] to [b, heads, queries, dim_v].

        Where causal, the last query is at the position of the last key.
        """
        dropout = self.attention_dropout if self.training else 0.0
        if cpu_attention.suits(query, key, mask, causal):
            return cpu_attention.attend(query, key, value, dropout, self.softmax_scale)
        num_queries, num_keys = query.size(2), key.size(2)
        allowed = ~mask if mask is not None else causal_lower_right(num_queries, num_keys) if causal else None
        if mask is not None and causal:
            allowed = allowed & torch.ones_like(mask[:1, :1]).tril(num_keys - num_queries)
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=allowed,
            dropout_p=dropout,
            scale=self.softmax_scale,
            enable_gqa=query.size(1) != key.size(1),
        )

    def _random_state(self) -> contextlib.AbstractContextManager:
        """Tensor-parallel ranks hold different heads: dropout differs between them, from Megatron's tracked state.

        With sequence parallelism the default state already differs between them.
        """
        if self.attention_dropout == 0.0 or not self.training or self.config.sequence_parallel:
            return contextlib.nullcontext()
        return tensor_parallel.get_cuda_rng_tracker().fork()


def _is_causal(attn_mask_type: AttnMaskType) -> bool:
    """Whether queries see only what is before them; ``ValueError`` for types that need packed sequences."""
    if attn_mask_type in (AttnMaskType.causal, AttnMaskType.causal_bottom_right):
        return True
    if attn_mask_type in (AttnMaskType.padding, AttnMaskType.no_mask, AttnMaskType.arbitrary):
        return False
    raise ValueError(
        f"attn_mask_type={attn_mask_type.name}: local attention has no packed sequences; drop it {_USE_TE}"
    )
