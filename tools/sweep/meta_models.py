"""Builds the models of runs on torch's meta device, in a world of ranks that do not exist: parameters and memory."""

from __future__ import annotations

import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from sdp4bit_patches import cpu_device

cpu_device.install()  # before megatron.core, which binds what it finds in torch.cuda when it is imported
warnings.filterwarnings("ignore")  # megatron.core's notes about GPU packages, which nothing here needs

import torch
from megatron.core import parallel_state
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron.training.memory import memory_parts
from megatron.training.model import build_gpt_model, transformer_config
from megatron.training.tokenizer import padded_vocab_size

# What a rank's parameters follow from: runs that agree in these are built once.
_SHAPE = """
num_layers hidden_size ffn_hidden_size num_attention_heads num_query_groups kv_channels max_position_embeddings
vocab_size make_vocab_size_divisible_by tensor_model_parallel_size pipeline_model_parallel_size params_dtype swiglu
normalization position_embedding_type untie_embeddings_and_output_weights disable_bias_linear
""".split()


class Estimate(NamedTuple):
    """Of the rank that holds most: its parameters, and what it needs for them, gradients, optimizer and activations."""

    parameters: int
    memory_bytes: float


class MetaModels:
    """Models of many runs, each shape built once."""

    def __init__(self) -> None:
        self._built: dict[tuple, list[tuple[int, int]]] = {}

    def estimate(self, args: Namespace) -> Estimate:
        """Parameters and memory of a run whose ``args`` are parsed and validated.

        Raises:
            UserError: megatron-core refuses the model.
        """
        shape = tuple(getattr(args, name) for name in _SHAPE)
        if shape not in self._built:
            stages = {0, args.pipeline_model_parallel_size - 1}
            self._built[shape] = [_build(args, stage) for stage in sorted(stages)]
        shards = args.data_parallel_size * args.context_parallel_size
        parts = [(size[0], memory_parts(args, *size, shards)) for size in self._built[shape]]
        return max((Estimate(parameters, sum(sizes.values())) for parameters, sizes in parts), key=lambda e: e[1])


def _build(args: Namespace, stage: int) -> tuple[int, int]:
    """Parameters of a pipeline stage on one of its ranks, and their bytes."""
    args.padded_vocab_size = padded_vocab_size(args.vocab_size, args)
    with _world(args, stage), torch.device("meta"):
        model = build_gpt_model(
            args,
            transformer_config(args),
            pre_process=parallel_state.is_pipeline_first_stage(),
            post_process=parallel_state.is_pipeline_last_stage(),
        )
    parameters = list(model.parameters())
    assert all(parameter.is_meta for parameter in parameters)
    return sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters)


@contextmanager
def _world(args: Namespace, stage: int) -> Iterator[None]:
    """The process groups of one replica of the run's model, as a rank of ``stage`` has them; nothing is ever sent."""
    model_ranks = args.tensor_model_parallel_size * args.context_parallel_size
    size = model_ranks * args.pipeline_model_parallel_size
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=stage * model_ranks, world_size=size)
    try:
        parallel_state.initialize_model_parallel(
            args.tensor_model_parallel_size,
            args.pipeline_model_parallel_size,
            context_parallel_size=args.context_parallel_size,
            create_gloo_process_groups=False,
        )
        yield
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
