"""Save and load checkpoints through megatron-core's dist_checkpointing, in Megatron-LM's own layout."""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.utils import unwrap_model
from torch.distributed.checkpoint.api import CheckpointException

from megatron.training import checkpoint_files
from megatron.training.checkpoint_writer import InProcessSave
from megatron.training.errors import UserError, checked_on_every_rank
from megatron.training.logging import print_rank_0
from megatron.training.optimizer import allocate_adam_state, load_optimizer

# Arguments that have to be the same in the checkpoint and in the run that loads it, since they shape the weights.
_SHAPES = (
    "num_layers hidden_size ffn_hidden_size num_attention_heads num_query_groups kv_channels max_position_embeddings "
    "position_embedding_type normalization swiglu disable_bias_linear untie_embeddings_and_output_weights num_experts"
).split()


@dataclass
class TrainState:
    """Where training stands."""

    iteration: int = 0
    consumed_train_samples: int = 0
    consumed_valid_samples: int = 0
    skipped_iterations: int = 0


def save_checkpoint(
    args: argparse.Namespace,
    state: TrainState,
    model: list[DistributedDataParallel],
    optimizer: MegatronOptimizer | None,
    scheduler: OptimizerParamScheduler | None,
) -> None:
    """Save everything that a later run needs to continue bitwise; called by all ranks."""
    root, iteration = args.save, state.iteration
    if torch.distributed.get_rank() == 0:
        checkpoint_files.prepare(root, iteration)
    torch.distributed.barrier()
    metadata = _sharding_metadata(args)
    state_dict = _common_state(args, state)
    state_dict |= _sharded_state(args, model, optimizer, is_loading=False, metadata=metadata)
    if scheduler is not None and args.save_optim:
        state_dict["opt_param_scheduler"] = scheduler.state_dict()
    if args.save_rng:
        state_dict["rng_state"] = _rng_state()
    folder = str(checkpoint_files.partial_folder(root, iteration))
    dist_checkpointing.save(state_dict, folder, InProcessSave(), content_metadata=metadata)
    if torch.distributed.get_rank() == 0:
        checkpoint_files.commit(root, iteration)
    torch.distributed.barrier()
    print_rank_0(f" saved checkpoint of iteration {iteration} to {checkpoint_files.checkpoint_folder(root, iteration)}")


def _common_state(args: argparse.Namespace, state: TrainState) -> dict[str, Any]:
    """What is the same on all ranks. Megatron-LM keeps the consumed samples among the arguments."""
    saved = argparse.Namespace(**vars(args))
    saved.consumed_train_samples = state.consumed_train_samples
    saved.consumed_valid_samples = state.consumed_valid_samples
    saved.skipped_train_samples = 0
    saved.skipped_iterations = state.skipped_iterations
    return {"args": saved, "checkpoint_version": 3.0, "iteration": state.iteration}


def _sharding_metadata(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "distrib_optim_sharding_type": "dp_reshardable" if args.use_distributed_optimizer else None,
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
    }


def _chunks_by_name(model: list[DistributedDataParallel]) -> dict[str, torch.nn.Module]:
    """The bare model chunks under Megatron-LM's names: ``model``, or ``model0``, ``model1``, ..."""
    names = ["model"] if len(model) == 1 else [f"model{index}" for index in range(len(model))]
    return dict(zip(names, unwrap_model(model), strict=True))


def _sharded_state(
    args: argparse.Namespace,
    model: list[DistributedDataParallel],
    optimizer: MegatronOptimizer | None,
    is_loading: bool,
    metadata: dict[str, Any],
) -> dict[str, Any]:
    """Model chunks and optimizer as megatron-core's sharded state dicts."""
    # sharded_state_dict adds a process group to the metadata, which is no part of the checkpoint.
    metadata = dict(metadata)
    state: dict[str, Any] = {
        name: chunk.sharded_state_dict(metadata=metadata) for name, chunk in _chunks_by_name(model).items()
    }
    wanted = (args.load_optim and not args.finetune) if is_loading else args.save_optim
    if optimizer is not None and wanted:
        if is_loading:
            allocate_adam_state(optimizer)
        state["optimizer"] = optimizer.sharded_state_dict(dict(state), is_loading=is_loading, metadata=metadata)
    return state


def _rng_state() -> ShardedObject:
    """Every random state of this rank, stored once for each tensor- and pipeline-parallel position."""
    numpy_state = np.random.get_state(legacy=True)
    state = {
        "random_rng_state": random.getstate(),
        "np_rng_state": (numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]),
        "torch_rng_state": torch.get_rng_state(),
        "cuda_rng_state": torch.cuda.get_rng_state(),
        "rng_tracker_states": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }
    pipeline, tensor = (
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_rank(),
    )
    return ShardedObject(
        "rng_state",
        state,
        (
            parallel_state.get_pipeline_model_parallel_world_size(),
            parallel_state.get_tensor_model_parallel_world_size(),
        ),
        (pipeline, tensor),
        replica_id=parallel_state.get_data_parallel_rank(with_context_parallel=True),
    )


def _restore_rng(state: dict[str, Any]) -> None:
    random.setstate(state["random_rng_state"])
    np.random.set_state(state["np_rng_state"])
    torch.set_rng_state(state["torch_rng_state"])
    torch.cuda.set_rng_state(state["cuda_rng_state"])
    tensor_parallel.get_cuda_rng_tracker().set_states(state["rng_tracker_states"])


def load_checkpoint(
    args: argparse.Namespace,
    model: list[DistributedDataParallel],
    optimizer: MegatronOptimizer | None,
    scheduler: OptimizerParamScheduler | None,
) -> TrainState:
    """Load ``args.load``'s checkpoint into model, optimizer, scheduler and random generators; called by all ranks.

    Returns:
        The state to continue from; iteration 0 with ``--finetune`` or where there is no checkpoint (which is said).

    Raises:
        UserError: the checkpoint is damaged, absent though demanded, or of another model.
    """
    with checked_on_every_rank():
        iteration = checkpoint_files.find(args.load, args.ckpt_step)
        if iteration is None and args.exit_on_missing_checkpoint:
            raise UserError(
                f"there is no checkpoint in --load {args.load}; drop --exit-on-missing-checkpoint to start anew"
            )
    if iteration is None:
        print_rank_0(f" no checkpoint in {args.load}: starting from random weights")
        return TrainState()
    folder = str(checkpoint_files.checkpoint_folder(args.load, iteration))
    with checked_on_every_rank():
        common = _load_common(args.load, iteration)
        _check_same_model(args, common["args"], folder)
        metadata = _check_sharding(args, common, folder)
    return _load_into(args, folder, common, metadata, model, optimizer, scheduler)


def _load_common(root: str, iteration: int) -> dict[str, Any]:
    folder = checkpoint_files.checkpoint_folder(root, iteration)
    try:
        return dist_checkpointing.load_common_state_dict(str(folder))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"cannot read {folder}/common.pt ({reason}); {checkpoint_files.remedy(root, iteration)}"
        ) from error


def _check_same_model(args: argparse.Namespace, saved: argparse.Namespace, folder: str) -> None:
    """Refuse a checkpoint of another model before a shape error does it less kindly."""
    theirs, ours = getattr(saved, "padded_vocab_size", None), args.padded_vocab_size
    if theirs is not None and theirs != ours:
        raise UserError(
            f"the checkpoint {folder} has a vocabulary of {theirs} (padded), this run one of {ours}; "
            "use the tokenizer it was trained with, and the same --make-vocab-size-divisible-by"
        )
    for name in _SHAPES:
        if hasattr(saved, name) and getattr(saved, name) != getattr(args, name):
            raise UserError(
                f"the checkpoint {folder} was trained with --{name.replace('_', '-')} {getattr(saved, name)}, "
                f"this run says {getattr(args, name)}; make them equal"
            )


def _check_sharding(args: argparse.Namespace, common: dict[str, Any], folder: str) -> dict[str, Any]:
    """The sharding metadata to load with; refuses an optimizer state that this layout can't take."""
    metadata = common.get("content_metadata") or _sharding_metadata(args)
    saved, loads_optimizer = common["args"], args.load_optim and not args.finetune
    same_layout = _agree(
        saved,
        args,
        "tensor_model_parallel_size pipeline_model_parallel_size virtual_pipeline_model_parallel_size",
    )
    if loads_optimizer and not same_layout and metadata.get("distrib_optim_sharding_type") == "dp_reshardable":
        raise UserError(
            f"the optimizer state in {folder} loads under another data-parallel size only, not under other tensor or "
            "pipeline sizes; load the weights alone with --no-load-optim"
        )
    return metadata


def _agree(saved: argparse.Namespace, args: argparse.Namespace, names: str) -> bool:
    """Whether the checkpoint's arguments of these names are this run's."""
    return all(getattr(saved, name, None) == getattr(args, name) for name in names.split())


def _load_into(
    args: argparse.Namespace,
    folder: str,
    common: dict[str, Any],
    metadata: dict[str, Any],
    model: list[DistributedDataParallel],
    optimizer: MegatronOptimizer | None,
    scheduler: OptimizerParamScheduler | None,
) -> TrainState:
    state_dict = _sharded_state(args, model, optimizer, is_loading=True, metadata=metadata)
    with_rng = _wants_rng(args, common)
    if with_rng:
        state_dict["rng_state"] = _rng_state()
    loaded = _load_sharded(args.load, common["iteration"], state_dict)
    for name, chunk in _chunks_by_name(model).items():
        chunk.load_state_dict(loaded[name])
    if args.finetune:
        if optimizer is not None:
            optimizer.reload_model_params()
        print_rank_0(f" loaded the weights of {folder}; starting at iteration 0")
        return TrainState()
    if "optimizer" in state_dict:
        load_optimizer(optimizer, loaded["optimizer"])
    elif optimizer is not None:
        optimizer.reload_model_params()
    if scheduler is not None and "opt_param_scheduler" in loaded and args.load_optim:
        _load_scheduler(scheduler, loaded["opt_param_scheduler"])
    if with_rng:
        _restore_rng(loaded["rng_state"])
    print_rank_0(f" loaded checkpoint {folder}")
    saved = loaded["args"]
    return TrainState(
        loaded["iteration"],
        saved.consumed_train_samples,
        saved.consumed_valid_samples,
        getattr(saved, "skipped_iterations", 0),
    )


def _load_sharded(root: str, iteration: int, state_dict: dict[str, Any]) -> dict[str, Any]:
    """megatron-core's load, where a file that is cut short (and had no size to compare) is found at the latest."""
    folder = checkpoint_files.checkpoint_folder(root, iteration)
    try:
        return dist_checkpointing.load(state_dict, str(folder))
    except (CheckpointException, CheckpointingException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot load {folder} ({reason}); {checkpoint_files.remedy(root, iteration)}") from error


def _load_scheduler(scheduler: OptimizerParamScheduler, state: dict[str, Any]) -> None:
    # A constant has no length: such a run may be given more iterations than it had.
    for style, length in (("lr_decay_style", "lr_decay_steps"), ("wd_incr_style", "wd_incr_steps")):
        if getattr(scheduler, style) == "constant":
            state = state | {length: getattr(scheduler, length)}
    try:
        scheduler.load_state_dict(state)
    except AssertionError as error:
        raise UserError(
            f"the schedule differs from the checkpoint's: {' '.join(str(error).split())}; add "
            "--override-opt_param-scheduler to keep the flags' or --use-checkpoint-opt_param-scheduler to drop them"
        ) from error


def _wants_rng(args: argparse.Namespace, common: dict[str, Any]) -> bool:
    """Whether the checkpoint's random states fit this run; where they don't, it is said."""
    if not args.load_rng or args.finetune or not getattr(common["args"], "save_rng", True):
        return False
    same = _agree(common["args"], args, "tensor_model_parallel_size pipeline_model_parallel_size")
    if not same:
        print_rank_0(" the checkpoint's random states belong to another layout: starting with fresh ones")
    return same
