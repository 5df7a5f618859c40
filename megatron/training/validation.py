"""Checks a set of arguments against each other and fills in what follows from them. Standard library only.

Every check runs before torch is imported, on every rank alike, so that a mistake ends the job within a second.
"""

from __future__ import annotations

import argparse

from megatron.training.errors import require
from megatron.training.ranges import check_ranges
from megatron.training.unused_flags import unused_flags


def validate_args(args: argparse.Namespace, world_size: int) -> argparse.Namespace:
    """Check ``args`` for ``world_size`` ranks and derive the rest, in place.

    Sets ``world_size``, ``data_parallel_size``, ``virtual_pipeline_model_parallel_size``, ``params_dtype`` (a name),
    and the defaults that depend on other flags.

    Raises:
        UserError: with the offending value and the remedy.
    """
    args.world_size = world_size
    _require_given(args)
    check_ranges(args)
    args.no_effect |= unused_flags(args)
    _derive_model(args)
    _check_model(args)
    _check_parallelism(args)
    _check_pipeline(args)
    _check_sequence(args)
    _check_batch(args)
    _check_schedule(args)
    _check_precision(args)
    _check_distributed_optimizer(args)
    _check_experts(args)
    _check_recompute(args)
    _check_data(args)
    _check_checkpoints(args)
    _check_watching(args)
    return args


def _require_given(args: argparse.Namespace) -> None:
    needed = ["num_layers", "hidden_size", "num_attention_heads", "seq_length", "max_position_embeddings"]
    needed += ["micro_batch_size", "lr"]
    missing = [f"--{name.replace('_', '-')}" for name in needed if getattr(args, name) is None]
    require(not missing, f"{' '.join(missing)} not given; say it on the command line or in the --config file")


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


def _check_schedule(args: argparse.Namespace) -> None:
    for name in ("min_lr", "lr_warmup_init"):
        value = getattr(args, name)
        require(value <= args.lr, f"--{name.replace('_', '-')} {value} is above --lr {args.lr}; lower it")
    require(
        (args.train_iters is None) != (args.train_samples is None) or args.skip_train,
        "give exactly one of --train-iters and --train-samples",
    )
    if args.train_samples is not None:
        require(not args.rampup_batch_size, "--train-samples with --rampup-batch-size: give --train-iters instead")
        args.train_iters = args.train_samples // args.global_batch_size
    args.train_iters = args.train_iters or 0
    _derive_decay(args)
    _derive_weight_decay(args)


def _derive_weight_decay(args: argparse.Namespace) -> None:
    start, end, style = args.start_weight_decay, args.end_weight_decay, args.weight_decay_incr_style
    if style == "constant":
        require(
            start is None and end is None,
            f"--start-weight-decay {start} and --end-weight-decay {end} need --weight-decay-incr-style linear or "
            "cosine; give it, or say --weight-decay alone",
        )
        args.start_weight_decay = args.end_weight_decay = args.weight_decay
        return
    require(
        start is not None and end is not None and start <= end,
        f"--weight-decay-incr-style {style} needs --start-weight-decay (given: {start}) and an --end-weight-decay "
        f"(given: {end}) that is not below it",
    )


def _derive_decay(args: argparse.Namespace) -> None:
    """Decay and warm-up in samples, the unit of the scheduler."""
    batch = args.global_batch_size
    for what in ("decay", "warmup"):
        iterations, samples = getattr(args, f"lr_{what}_iters"), getattr(args, f"lr_{what}_samples")
        require(
            not (iterations and samples),
            f"--lr-{what}-iters {iterations} and --lr-{what}-samples {samples} say the same; give one",
        )
    samples = args.lr_decay_samples or (args.lr_decay_iters or max(args.train_iters, 1)) * batch
    warmup = args.lr_warmup_samples or args.lr_warmup_iters * batch
    if args.lr_warmup_fraction is not None:
        require(
            not warmup,
            f"--lr-warmup-fraction {args.lr_warmup_fraction} excludes --lr-warmup-iters and --lr-warmup-samples; "
            "give one",
        )
        warmup = int(args.lr_warmup_fraction * samples)
    require(
        warmup < samples,
        f"the warm-up of {warmup // batch} iterations is not shorter than the decay of {samples // batch}; "
        "shorten --lr-warmup-iters or lengthen --lr-decay-iters",
    )
    args.lr_decay_steps, args.lr_warmup_steps = samples, warmup
    args.lr_wsd_decay_steps = None if args.lr_wsd_decay_iters is None else args.lr_wsd_decay_iters * batch
    require(
        args.lr_decay_style != "WSD" or args.lr_wsd_decay_steps is not None,
        "--lr-decay-style WSD needs --lr-wsd-decay-iters",
    )


def _check_precision(args: argparse.Namespace) -> None:
    require(not (args.bf16 and args.fp16), "--bf16 and --fp16 exclude each other; drop one")
    require(
        not (args.grad_reduce_in_bf16 and (args.accumulate_allreduce_grads_in_fp32 or not args.bf16)),
        "--grad-reduce-in-bf16 needs --bf16 and excludes --accumulate-allreduce-grads-in-fp32",
    )
    if args.bf16 and not args.grad_reduce_in_bf16:
        args.accumulate_allreduce_grads_in_fp32 = True
    args.params_dtype = "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"


def _check_distributed_optimizer(args: argparse.Namespace) -> None:
    require(
        args.num_distributed_optimizer_instances == 1,
        f"--num-distributed-optimizer-instances {args.num_distributed_optimizer_instances} is not supported; set 1",
    )
    if args.overlap_param_gather:
        require(
            args.use_distributed_optimizer and args.overlap_grad_reduce,
            "--overlap-param-gather needs --use-distributed-optimizer and --overlap-grad-reduce; add them",
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


def _check_recompute(args: argparse.Namespace) -> None:
    if args.recompute_activations:
        require(
            args.recompute_granularity in (None, "selective"),
            "--recompute-activations means --recompute-granularity selective; drop one",
        )
        args.recompute_granularity = "selective"
    if args.recompute_granularity == "full":
        args.recompute_method = args.recompute_method or "uniform"
        args.recompute_num_layers = args.recompute_num_layers or 1
    else:
        require(
            args.recompute_method is None and args.recompute_num_layers is None,
            "--recompute-method and --recompute-num-layers need --recompute-granularity full; add it",
        )


def _check_data(args: argparse.Namespace) -> None:
    per_split = [args.train_data_path, args.valid_data_path, args.test_data_path]
    sources = [args.mock_data, bool(args.data_path), any(per_split)]
    require(
        sum(sources) == 1, "give exactly one source of data: --data-path, --train/valid/test-data-path or --mock-data"
    )
    require(not (any(per_split) and args.split), "--split is for --data-path; drop it with --train-data-path")
    if args.split is None and not any(per_split):
        args.split = "969,30,1"
    if args.tokenizer_type is None:
        require(args.mock_data, "--tokenizer-type not given; say how the data was tokenized")
        args.tokenizer_type = "NullTokenizer"
    needs = {
        "GPT2BPETokenizer": ("vocab_file", "merge_file"),
        "HuggingFaceTokenizer": ("tokenizer_model",),
        "NullTokenizer": ("vocab_size",),
    }
    for name in needs[args.tokenizer_type]:
        require(
            getattr(args, name) is not None, f"--tokenizer-type {args.tokenizer_type} needs --{name.replace('_', '-')}"
        )


def _check_checkpoints(args: argparse.Namespace) -> None:
    require(
        not args.dist_ckpt_optim_fully_reshardable,
        "--dist-ckpt-optim-fully-reshardable is refused, since megatron-core 0.16.1 gives back another optimizer state "
        "than it saved (seen with tied embeddings in an interleaved pipeline); drop it: the state then loads under any "
        "data-parallel size, and the weights alone under any layout",
    )
    require(
        args.save is not None or args.save_interval is None,
        "--save-interval without --save saves nothing; give the folder",
    )
    require(args.ckpt_step is None or args.load is not None, "--ckpt-step needs --load")
    needs_adam = args.use_distributed_optimizer and bool(args.save or args.load)
    require(
        args.optimizer == "adam" or not needs_adam,
        f"megatron-core's distributed optimizer cannot checkpoint {args.optimizer}; use --optimizer adam, or drop "
        "--use-distributed-optimizer",
    )


def _check_watching(args: argparse.Namespace) -> None:
    require(
        not (args.override_opt_param_scheduler and args.use_checkpoint_opt_param_scheduler),
        "--override-opt_param-scheduler and --use-checkpoint-opt_param-scheduler exclude each other; drop one",
    )
