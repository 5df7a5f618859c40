"""Combinations with other features of megatron-core that are refused, each with a sentence and the remedy."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from sdp4bit_patches.config import CommConfig

_DDP = {
    "use_megatron_fsdp": "--use-megatron-fsdp: Megatron-FSDP has buffers of its own",
    "fp8_param_gather": "--fp8-param-gather: fp8 parameters have no 16-bit copy to take a difference from",
    "reuse_grad_buf_for_mxfp8_param_ag": "--reuse-grad-buf-for-mxfp8-param-ag: the buffer is shared with gradients",
    "nccl_ub": "--use-nccl-ub: quantized messages do not travel in NCCL's registered buffers",
    "reduce_scatter_with_fp32_accumulation": "--reduce-scatter-with-fp32-accumulation: it replaces the same collective",
}
_OPTIMIZER = {
    "use_precision_aware_optimizer": "--use-precision-aware-optimizer: it keeps the main parameters to itself",
    "optimizer_cpu_offload": "--optimizer-cpu-offload: the main parameters are not where the gradients are",
    "overlap_param_gather_with_optimizer_step": "--overlap-param-gather-with-optimizer-step: parameters would be sent "
    "before all differences are known",
}


class Refusal(ValueError):
    """Compression cannot do what it was asked for: one sentence with the flag and the remedy."""


def check_ddp_config(config: CommConfig, ddp_config: Any) -> None:
    """Raise `Refusal` where megatron-core's data-parallel configuration rules compression out."""
    for name, reason in _DDP.items():
        _refuse(getattr(ddp_config, name, False), f"{reason}; drop it, or train without compression")
    instances = ddp_config.num_distributed_optimizer_instances
    sentence = f"--num-distributed-optimizer-instances {instances}: compression knows a single one; say 1"
    _refuse(instances > 1, sentence)
    missing = not config.is_baseline and not ddp_config.use_distributed_optimizer
    _refuse(missing, "compression needs sharded gradients: add --use-distributed-optimizer")


def check_optimizer_config(optimizer_config: Any) -> None:
    """Raise `Refusal` where megatron-core's optimizer configuration rules compressed parameters out."""
    for name, reason in _OPTIMIZER.items():
        _refuse(getattr(optimizer_config, name, False), f"{reason}; drop it, or do not quantize weights")


def check_duo(optimizer: Any, optimizer_config: Any, model_chunks: list[Any]) -> None:
    """Raise `Refusal` where the second gradient sync cannot follow what megatron-core does to the first."""
    check_optimizer_config(optimizer_config)
    name = f"{type(optimizer).__module__}.{type(optimizer).__name__}"
    sentence = f"--fast-slow-grad-reduce steps as torch's AdamW does, this run has {name}; uninstall what brought it"
    _refuse(type(optimizer) is not torch.optim.AdamW, sentence)
    per_token = any(getattr(chunk.config, "calculate_per_token_loss", False) for chunk in model_chunks)
    sentence = "--calculate-per-token-loss scales gradients after their sync, the second one would miss it; drop it"
    _refuse(per_token, f"--fast-slow-grad-reduce with {sentence}")


def check_fallback(config: CommConfig, reason: str) -> None:
    """Say once that something travels otherwise than asked for; an error with `--strict-compression`."""
    _refuse(config.strict_compression, f"{reason}; drop --strict-compression to accept it")
    warnings.warn(reason, RuntimeWarning, stacklevel=3)


def _refuse(applies: bool, sentence: str) -> None:
    if applies:
        raise Refusal(sentence)
