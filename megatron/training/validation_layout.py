"""Checks that the model, its layout over the ranks and the batch divide one another. Standard library only."""

from __future__ import annotations

import argparse

from megatron.training.errors import require


def check_layout(args: argparse.Namespace) -> None:
    """Check the sizes against each other; derive what follows from them, ``data_parallel_size`` among it, in place.

    Raises:
        UserError: with the offending value and the remedy.
    """
    _derive_model(args)
    _check_model(args)
    _check_parallelism(args)
    _check_pipeline(args)
    _check_sequence(args)
    _check_batch(args)
    _check_experts(args)


def _derive_model(args: argparse.Namespace) -> None:
    if args.use_rotary_position_embeddings:
        args.position_embedding_type = "rope"
    if args.ffn_hidden_size is None:
        # 8/3 of the hidden size keeps the parameters of a gated MLP equal to a plain one; 64 suits the kernels.
        args.ffn_hidden_size = int(args.hidden_size * 8 / 3 / 64) * 64 if args.swiglu else 4 * args.hidden_size
    if args.kv_channels is None:
        require(
            args.hidden_size % args.num_attention_heads == 0,
            f"--hidden-size {args.hidden_size} is not divisible by --num-attention-heads {args.num_attention_heads}; "
            "change one, or give --kv-channels",
        )
        args.kv_channels = args.hidden_size // args.num_attention_heads
    if not args.group_query_attention:
        args.num_query_groups = args.num_attention_heads


def _check_model(args: argparse.Namespace) -> None:
    heads, groups, tensor = args.num_attention_heads, args.num_query_groups, args.tensor_model_parallel_size
    require(
        heads % tensor == 0,
        f"--num-attention-heads {heads} is not divisible by --tensor-model-parallel-size {tensor}; "
        "choose a tensor-parallel size that divides the heads",
    )
    require(
        heads % groups == 0,
        f"--num-attention-heads {heads} is not divisible by --num-query-groups {groups}; change one",
    )
    require(
        groups % tensor == 0 or tensor % groups == 0,
        f"--num-query-groups {groups} and --tensor-model-parallel-size {tensor} do not divide each other; change one",
    )
    for name in ("hidden_size", "ffn_hidden_size"):
        value = getattr(args, name)
        require(
            value % tensor == 0,
            f"--{name.replace('_', '-')} {value} is not divisible by --tensor-model-parallel-size {tensor}; change one",
        )
    require(not (args.swiglu and args.squared_relu), "--swiglu and --squared-relu exclude each other; drop one")
    require(
        args.seq_length <= args.max_position_embeddings,
        f"--seq-length {args.seq_length} is longer than --max-position-embeddings {args.max_position_embeddings}; "
        "shorten the sequence or raise the positions",
    )


def _check_parallelism(args: argparse.Namespace) -> None:
    sizes = {
        "tensor": args.tensor_model_parallel_size,
        "pipeline": args.pipeline_model_parallel_size,
        "context": args.context_parallel_size,
    }
    product = sizes["tensor"] * sizes["pipeline"] * sizes["context"]
    require(
        args.world_size % product == 0,
        f"the world size {args.world_size} is not divisible by tensor x pipeline x context parallel size "
        f"{sizes['tensor']} x {sizes['pipeline']} x {sizes['context']} = {product}; "
        "start another number of processes or change a size",
    )
    args.data_parallel_size = args.world_size // product
    if args.sequence_parallel and sizes["tensor"] == 1:
        args.sequence_parallel = False


def _check_pipeline(args: argparse.Namespace) -> None:
    stages, layers = args.pipeline_model_parallel_size, args.num_layers
    require(
        layers % stages == 0,
        f"--num-layers {layers} is not divisible by --pipeline-model-parallel-size {stages}; change one",
    )
    args.virtual_pipeline_model_parallel_size = _virtual_stages(args, layers // stages)
    if args.virtual_pipeline_model_parallel_size is None:
        args.overlap_p2p_communication = False
        args.align_param_gather = False
    # Without overlap both neighbours' messages travel in one batch, where those of the same peer can be mixed up.
    require(
        args.virtual_pipeline_model_parallel_size is None or args.overlap_p2p_communication or stages > 2,
        "an interleaved pipeline of 2 stages needs --overlap-p2p-communication; drop --no-overlap-p2p-communication",
    )


def _virtual_stages(args: argparse.Namespace, layers_per_stage: int) -> int | None:
    """Model chunks per rank, or None without an interleaved schedule."""
    per_chunk, chunks = args.num_layers_per_virtual_pipeline_stage, args.num_virtual_stages_per_pipeline_rank
    if per_chunk is None and chunks is None:
        return None
    require(
        per_chunk is None or chunks is None,
        "--num-layers-per-virtual-pipeline-stage and --num-virtual-stages-per-pipeline-rank say the same; give one",
    )
    require(
        args.pipeline_model_parallel_size > 1,
        "an interleaved pipeline needs --pipeline-model-parallel-size of at least 2",
    )
    divisor = per_chunk or chunks
    require(
        divisor is not None and divisor > 0 and layers_per_stage % divisor == 0,
        f"{layers_per_stage} layers per pipeline stage do not split into interleaved chunks by {divisor}; "
        "change --num-layers or the virtual pipeline flag",
    )
    count = layers_per_stage // per_chunk if per_chunk else chunks
    return count if count and count > 1 else None


def _check_sequence(args: argparse.Namespace) -> None:
    length, context = args.seq_length, args.context_parallel_size
    if context > 1:
        require(
            length % (2 * context) == 0,
            f"--context-parallel-size {context} does not divide --seq-length {length} into {2 * context} equal chunks "
            "(two for each rank); change one",
        )
        require(
            not (args.reset_attention_mask or args.reset_position_ids),
            "--reset-attention-mask and --reset-position-ids are not supported with --context-parallel-size > 1; "
            "drop them or set it to 1",
        )
    if args.sequence_parallel:
        local, tensor = length // context, args.tensor_model_parallel_size
        require(
            local % tensor == 0,
            f"--sequence-parallel needs {local} tokens per rank to be divisible by --tensor-model-parallel-size "
            f"{tensor}; change --seq-length",
        )


def _check_batch(args: argparse.Namespace) -> None:
    step = args.micro_batch_size * args.data_parallel_size
    if args.global_batch_size is None:
        args.global_batch_size = step
    require(
        args.global_batch_size % step == 0,
        f"--global-batch-size {args.global_batch_size} is not divisible by micro-batch size x data-parallel size "
        f"{args.micro_batch_size} x {args.data_parallel_size} = {step}; change one",
    )
    if args.virtual_pipeline_model_parallel_size:
        microbatches, stages = args.global_batch_size // step, args.pipeline_model_parallel_size
        require(
            microbatches % stages == 0,
            f"the interleaved pipeline needs a number of micro-batches ({microbatches}) divisible by "
            f"--pipeline-model-parallel-size {stages}; change --global-batch-size",
        )
        step *= stages  # while the batch grows, too
    if args.rampup_batch_size:
        start, increment, samples = args.rampup_batch_size
        require(
            start > 0 and start % step == 0 and increment > 0 and increment % step == 0 and samples > 0,
            f"--rampup-batch-size {start} {increment} {samples}: all three have to be positive, start and increment "
            f"multiples of {step} (micro-batch x data-parallel size, x stages of an interleaved pipeline)",
        )
        growth = args.global_batch_size - start
        require(
            growth > 0 and growth % increment == 0,
            f"--rampup-batch-size {start} {increment} {samples} does not reach --global-batch-size "
            f"{args.global_batch_size} in whole increments; change one",
        )


def _check_experts(args: argparse.Namespace) -> None:
    expert = args.expert_model_parallel_size
    if args.num_experts is None:
        require(expert == 1, f"--expert-model-parallel-size {expert} needs --num-experts")
        return
    args.moe_ffn_hidden_size = args.moe_ffn_hidden_size or args.ffn_hidden_size
    require(
        args.num_experts % expert == 0,
        f"--num-experts {args.num_experts} is not divisible by --expert-model-parallel-size {expert}; change one",
    )
    tensor = args.expert_tensor_parallel_size or args.tensor_model_parallel_size
    divisor = expert * tensor * args.pipeline_model_parallel_size
    require(
        args.world_size % divisor == 0,
        f"the world size {args.world_size} is not divisible by expert x expert-tensor x pipeline parallel size = "
        f"{divisor}; change --expert-model-parallel-size",
    )
    require(
        args.moe_router_topk <= args.num_experts,
        f"--moe-router-topk {args.moe_router_topk} is above --num-experts {args.num_experts}; lower it",
    )
    require(
        args.tensor_model_parallel_size == 1 or args.sequence_parallel,
        "mixture of experts with --tensor-model-parallel-size > 1 needs --sequence-parallel; add it",
    )
