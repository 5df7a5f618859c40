"""The start-up report: what runs on what, what is absent, what was given without effect."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import platform

import torch

from megatron.training import cpu_attention
from megatron.training.logging import print_rank_0
from megatron.training.model import uses_transformer_engine
from sdp4bit_patches import cpu_device

# GPU-only packages that are used where they are installed, and what is used in their place.
_OPTIONAL = {
    "transformer_engine": "layers come from megatron-core's local spec",
    "flash_attn": "attention is torch's scaled_dot_product_attention",
    "apex": "norms and Adam are torch's",
}


def print_start_report(args: argparse.Namespace) -> None:
    """Print what this run stands on."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "megatron-core"))
    device = "CPU" if cpu_device.is_installed() else torch.cuda.get_device_name()
    backend = torch.distributed.get_backend()
    layers = "Transformer Engine" if uses_transformer_engine(args) else "local"
    print_rank_0(
        f" {versions}, Python {platform.python_version()}, {device}, {backend}, {args.params_dtype}, {layers} layers"
    )
    sizes = {
        "tensor": args.tensor_model_parallel_size,
        "pipeline": args.pipeline_model_parallel_size,
        "context": args.context_parallel_size,
        "expert": args.expert_model_parallel_size,
        "data": args.data_parallel_size,
    }
    layout = ", ".join(f"{name} {size}" for name, size in sizes.items())
    batch = f"global batch {args.global_batch_size}, micro-batch {args.micro_batch_size}"
    print_rank_0(f" {args.world_size} ranks: {layout}; {batch}")
    if cpu_device.is_installed() and args.params_dtype == "bfloat16":
        print_rank_0(f" attention up to {cpu_attention.LONGEST} keys: bf16 scores, as in megatron-core's local spec")
    for note in cpu_device.notes():
        print_rank_0(f" {note}")
    for package, instead in _OPTIONAL.items():
        if importlib.util.find_spec(package) is None:
            print_rank_0(f" {package} is not installed: {instead}")
    for name, reason in args.no_effect.items():
        print_rank_0(f" --{name} has no effect: {reason}")
