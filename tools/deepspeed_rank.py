"""One rank of `tools/bench_layouts.py --peers deepspeed`: the run file's GPT under ZeRO-3 or DeepSpeed's pipeline.

The model is of torch.nn alone, with the shapes, the tied embedding, the batch and the precision of the run file, on
random tokens, and without activation recomputation, as the measured layouts train. Rank 0 writes every step's seconds
and its loss as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from torch import Tensor, nn
from torch.nn import functional

from tools.atomic_files import atomic_files
from tools.command_line import positive_int, run_tool

INITIAL_STD = 0.02  # Megatron's --init-method-std


class SmallEmbedding(nn.Embedding):
    """An embedding that begins as GPT's do."""

    def reset_parameters(self) -> None:
        """See the class."""
        nn.init.normal_(self.weight, std=INITIAL_STD)


class TokenEmbedding(SmallEmbedding):
    """Tokens, int64 [b, s], to vectors [b, s, h]; vectors to logits [b, s, v], as the tied output layer."""

    def forward(self, given: Tensor) -> Tensor:
        """See the class."""
        return functional.linear(given, self.weight) if given.is_floating_point() else super().forward(given)


class Positions(SmallEmbedding):
    """Adds learned positions to vectors, [b, s, h]."""

    def forward(self, given: Tensor) -> Tensor:
        """See the class."""
        return given + self.weight[: given.shape[1]]


class Block(nn.TransformerEncoderLayer):
    """One pre-norm transformer layer with causal attention, [b, s, h] to [b, s, h]."""

    def forward(self, given: Tensor) -> Tensor:
        """See the class."""
        mask = nn.Transformer.generate_square_subsequent_mask(given.shape[1], given.device, given.dtype)
        return super().forward(given, src_mask=mask, is_causal=True)


def layer_specs(flags: dict[str, Any]) -> list[LayerSpec]:
    """The model's layers in order."""
    hidden, sequence = flags["hidden-size"], flags["seq-length"]
    tokens = TiedLayerSpec("tokens", TokenEmbedding, flags["vocab-size"] + 1, hidden, tied_weight_attr=["weight"])
    words = (hidden, flags["num-attention-heads"], 4 * hidden, 0.0, functional.gelu, 1e-5, True, True)
    blocks = [LayerSpec(Block, *words) for _ in range(flags["num-layers"])]
    return [tokens, LayerSpec(Positions, sequence, hidden), *blocks, LayerSpec(nn.LayerNorm, hidden), tokens]


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits [b, s, v] to labels, int64 [b, s]."""
    return functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


def batches(flags: dict[str, Any], replicas: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random tokens and labels, int64 [micro-batch, sequence] each, without end; every replica has its own."""
    generator = torch.Generator().manual_seed(dist.get_rank() % replicas)
    shape = flags["micro-batch-size"], flags["seq-length"] + 1
    while True:
        tokens = torch.randint(flags["vocab-size"] + 1, shape, generator=generator)
        yield tokens[:, :-1], tokens[:, 1:]


def settings(flags: dict[str, Any], stage: int) -> dict[str, Any]:
    """DeepSpeed's configuration, with ZeRO of that stage."""
    return {
        "train_batch_size": flags["global-batch-size"],
        "train_micro_batch_size_per_gpu": flags["micro-batch-size"],
        "bf16": {"enabled": flags["bf16"]},
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 1.0,
    }


def engine_of(model: nn.Module, flags: dict[str, Any], stage: int) -> Any:
    """DeepSpeed's engine for the model; Adam is torch's, as DeepSpeed's own would have to be compiled."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=flags["lr"])
    return deepspeed.initialize(model=model, optimizer=optimizer, config=settings(flags, stage))[0]


def zero3(flags: dict[str, Any]) -> Callable[[], float]:
    """A step of pure data parallelism whose parameters, gradients and optimizer are sharded over all ranks."""
    tokens, *between, _ = (spec.build() for spec in layer_specs(flags))
    engine = engine_of(nn.Sequential(tokens, *between, tokens), flags, stage=3)
    data = batches(flags, dist.get_world_size())

    def step() -> float:
        for _ in range(engine.gradient_accumulation_steps()):
            inputs, labels = next(data)
            loss = loss_of(engine(inputs), labels)
            engine.backward(loss)
            engine.step()
        return loss.item()

    return step


def pipeline(flags: dict[str, Any]) -> Callable[[], float]:
    """A step of DeepSpeed's 1F1B, as many layers on every stage, with its optimizer sharded over the replicas."""
    model = PipelineModule(
        layer_specs(flags), num_stages=flags["pp"], loss_fn=loss_of, partition_method=f"type:{Block.__name__}"
    )
    engine = engine_of(model, flags, stage=1)
    data = batches(flags, dist.get_world_size() // flags["pp"])
    return lambda: engine.train_batch(data_iter=data).item()


SYSTEMS = {"zero3": zero3, "pipeline": pipeline}


def main() -> None:
    """One rank."""
    args = parse_arguments()
    if args.device_of_rank:
        os.environ["RANK"] = str(args.device_of_rank.split(",").index(os.environ["RANK"]))
    flags = tomllib.loads(args.config.read_text()) | {"pp": args.pp}
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    torch.manual_seed(0)
    step, seconds, losses = SYSTEMS[args.system](flags), [], []
    for _ in range(args.steps):
        begin = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - begin)
    if dist.get_rank() == 0:
        with atomic_files(args.out) as [temporary]:
            temporary.write_text(json.dumps({"seconds": seconds, "losses": losses}))
    dist.barrier()
    dist.destroy_process_group()


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--config", type=Path, required=True, help="run file of pretrain_gpt.py")
    parser.add_argument("--pp", type=positive_int, required=True, help="stages of the pipeline")
    parser.add_argument("--steps", type=positive_int, required=True)
    parser.add_argument("--device-of-rank", help="launcher's ranks in the order in which they are DeepSpeed's: 0,2,1,3")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    run_tool(main)
