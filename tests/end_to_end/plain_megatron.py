"""A training script on megatron-core that has never heard of this project: its own flags, its own loop."""

from __future__ import annotations

import argparse

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import Float16Module

VOCABULARY, LENGTH = 128, 32


def build_model(args: argparse.Namespace) -> DistributedDataParallel:
    config = TransformerConfig(
        num_layers=2,
        hidden_size=64,
        num_attention_heads=4,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        bf16=True,
        params_dtype=torch.bfloat16,
        pipeline_dtype=torch.bfloat16,
        tensor_model_parallel_size=args.tensor_model_parallel_size,
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
    )
    model = GPTModel(config, get_gpt_layer_local_spec(), VOCABULARY, LENGTH)
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, use_distributed_optimizer=True, overlap_grad_reduce=args.overlap
    )
    return DistributedDataParallel(config, ddp_config, Float16Module(config, model))


def step(model: DistributedDataParallel, optimizer: object, iteration: int) -> float:
    torch.manual_seed(1000 * iteration + parallel_state.get_data_parallel_rank())
    tokens = torch.randint(0, VOCABULARY, (2, LENGTH + 1)) // 8
    machine = get_rerun_state_machine()
    while machine.should_run_forward_backward(None):
        model.zero_grad_buffer()
        optimizer.zero_grad()
        positions = torch.arange(LENGTH).expand(2, LENGTH)
        mask = torch.triu(torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool), 1)
        loss = model(tokens[:, :-1].contiguous(), positions, mask, labels=tokens[:, 1:].contiguous()).mean()
        loss.backward()
        finalize_model_grads([model])
    optimizer.step()
    mean = loss.detach().clone()
    torch.distributed.all_reduce(mean, group=parallel_state.get_data_parallel_group())
    return mean.item() / parallel_state.get_data_parallel_world_size()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--tensor-model-parallel-size", type=int, default=1)
    parser.add_argument("--overlap", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel(args.tensor_model_parallel_size)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    torch.manual_seed(1)
    model = build_model(args)
    optimizer = get_megatron_optimizer(OptimizerConfig(lr=1e-2, bf16=True, use_distributed_optimizer=True), [model])
    for iteration in range(args.steps):
        loss = step(model, optimizer, iteration)
        if torch.distributed.get_rank() == 0:
            print(f"loss {iteration + 1} {loss:.6f}", flush=True)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
