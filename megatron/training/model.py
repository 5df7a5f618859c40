"""Build the model chunks of this rank from the arguments: megatron-core's GPTModel in its data-parallel wrapper."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import Float16Module

from megatron.training.errors import UserError
from megatron.training.layer_specs import get_layer_spec
from sdp4bit_patches import cpu_device

# Arguments whose name differs from megatron-core's TransformerConfig.
_RENAMED = {
    "norm_epsilon": "layernorm_epsilon",
    "apply_layernorm_1p": "layernorm_zero_centered_gamma",
    "num_experts": "num_moe_experts",
    "overlap_p2p_communication": "overlap_p2p_comm",
}


def uses_transformer_engine(args: argparse.Namespace) -> bool:
    """Whether the layers come from Transformer Engine: asked for, or by default on CUDA where it is installed."""
    installed = importlib.util.find_spec("transformer_engine") is not None
    if args.transformer_impl == "transformer_engine" and (not installed or cpu_device.is_installed()):
        missing = "is not installed" if not installed else "needs CUDA"
        raise UserError(f"--transformer-impl transformer_engine: it {missing}; say local, or pip install '.[gpu]'")
    return args.transformer_impl != "local" and installed and not cpu_device.is_installed()


def transformer_config(args: argparse.Namespace) -> TransformerConfig:
    """megatron-core's configuration of the layers, from arguments of the same name and the few that differ.

    Raises:
        UserError: a combination that megatron-core refuses, with its own words.
    """
    if not uses_transformer_engine(args):
        _check_local_layers(args)
    fields = {field.name for field in dataclasses.fields(TransformerConfig) if field.init}
    values = {name: value for name, value in vars(args).items() if name in fields and value is not None}
    values |= {theirs: getattr(args, ours) for ours, theirs in _RENAMED.items()}
    dtype = getattr(torch, args.params_dtype)
    values |= {
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "autocast_dtype": dtype,
        "batch_p2p_comm": not args.overlap_p2p_communication,
        "add_bias_linear": not args.disable_bias_linear,
        "gated_linear_unit": args.swiglu,
        "activation_func": _activation(args),
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "gradient_accumulation_fusion": False,
        "persist_layer_norm": False,
        # gloo reads an output until it is sent, while NCCL's stream order lets megatron-core free it at once.
        "deallocate_pipeline_outputs": not cpu_device.is_installed(),
        "qk_layernorm": args.qk_layernorm,
        # The CPU's weights then do not depend on the tensor-parallel size.
        "use_cpu_initialization": args.use_cpu_initialization or cpu_device.is_installed(),
    }
    try:
        return TransformerConfig(**values)
    except (ValueError, AssertionError) as error:
        raise UserError(f"megatron-core refuses this model: {error}; change the flags it names") from error


def _check_local_layers(args: argparse.Namespace) -> None:
    """Refuse what only Transformer Engine's layers can do."""
    for name in ("fp32_residual_connection", "moe_grouped_gemm"):
        if getattr(args, name):
            raise UserError(
                f"--{name.replace('_', '-')} needs Transformer Engine; drop it, or pip install '.[gpu]' on CUDA"
            )
    # On one rank, megatron-core adds an expert's bias in place to what its tensor-parallel region returned, which
    # autograd forbids; where experts are spread, that region is left out.
    if args.num_experts is not None and not args.disable_bias_linear and args.expert_model_parallel_size == 1:
        raise UserError(
            f"--num-experts {args.num_experts}: the local layers' experts have no bias on a single rank; "
            "add --disable-bias-linear, or spread them with --expert-model-parallel-size"
        )


def _activation(args: argparse.Namespace) -> object:
    if args.swiglu:
        return F.silu
    if args.squared_relu:
        return lambda hidden: torch.pow(F.relu(hidden), 2)
    return F.gelu


def build_gpt_model(
    args: argparse.Namespace,
    config: TransformerConfig,
    pre_process: bool = True,
    post_process: bool = True,
    vp_stage: int | None = None,
) -> GPTModel:
    """The bare GPTModel of one pipeline stage (or of one interleaved chunk), with ``args.padded_vocab_size`` tokens."""
    return GPTModel(
        config=config,
        transformer_layer_spec=get_layer_spec(config, uses_transformer_engine(args), vp_stage),
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        pre_process=pre_process,
        post_process=post_process,
        parallel_output=True,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        position_embedding_type=args.position_embedding_type,
        rotary_percent=args.rotary_percent,
        rotary_base=args.rotary_base,
        rope_scaling=args.use_rope_scaling,
        rope_scaling_factor=args.rope_scaling_factor,
        vp_stage=vp_stage,
    )


def build_model(args: argparse.Namespace, config: TransformerConfig) -> list[DistributedDataParallel]:
    """The model chunks of this rank (more than one with an interleaved pipeline), wrapped for data parallelism."""
    chunks = args.virtual_pipeline_model_parallel_size
    stages = range(chunks) if chunks else [None]
    ddp_config = data_parallel_config(args)
    return [
        _wrap(args, config, ddp_config, _build_stage(args, config, stage), index) for index, stage in enumerate(stages)
    ]


def _build_stage(args: argparse.Namespace, config: TransformerConfig, vp_stage: int | None) -> GPTModel:
    ignore_virtual = vp_stage is None
    return build_gpt_model(
        args,
        config,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=ignore_virtual, vp_stage=vp_stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=ignore_virtual, vp_stage=vp_stage),
        vp_stage=vp_stage,
    )


def _wrap(
    args: argparse.Namespace,
    config: TransformerConfig,
    ddp_config: DistributedDataParallelConfig,
    model: GPTModel,
    chunk: int,
) -> DistributedDataParallel:
    if not args.use_cpu_initialization:
        model.cuda()
    module = Float16Module(config, model) if args.bf16 or args.fp16 else model
    # Only the first chunk's communication is on the critical path; the others send their gradients whole.
    return DistributedDataParallel(config, ddp_config, module, disable_bucketing=chunk > 0)


def data_parallel_config(args: argparse.Namespace) -> DistributedDataParallelConfig:
    """megatron-core's configuration of what travels between data-parallel ranks."""
    return DistributedDataParallelConfig(
        grad_reduce_in_fp32=args.accumulate_allreduce_grads_in_fp32,
        overlap_grad_reduce=args.overlap_grad_reduce,
        overlap_param_gather=args.overlap_param_gather,
        align_param_gather=args.align_param_gather,
        use_distributed_optimizer=args.use_distributed_optimizer,
        check_for_nan_in_grad=args.check_for_nan_in_loss_and_grad,
        bucket_size=args.ddp_bucket_size,
        average_in_collective=args.ddp_average_in_collective,
    )
