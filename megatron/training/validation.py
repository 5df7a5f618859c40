"""Checks a set of arguments against each other and fills in what follows from them. Standard library only.

Every check runs before torch is imported, on every rank alike, so that a mistake ends the job within a second.
"""

from __future__ import annotations

import argparse

from megatron.training.compression import check_compression
from megatron.training.errors import require
from megatron.training.layout import check_rank_layout
from megatron.training.ranges import check_ranges
from megatron.training.unused_flags import unused_flags
from megatron.training.validation_layout import check_layout
from megatron.training.validation_schedule import check_schedule


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
    check_rank_layout(args)
    check_layout(args)
    check_schedule(args)
    _check_precision(args)
    _check_distributed_optimizer(args)
    check_compression(args)
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
