"""One training to be predicted: a model on a cluster, its layout, its batch and what travels between its replicas."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from sdp4bit_patches.config import CommConfig
from tools.simulator.machine import Cluster
from tools.simulator.model_shape import ModelShape

RECOMPUTE = ("none", "selective", "full")


@dataclass(frozen=True)
class Job:
    """A training. `dp` is without context parallelism; ranks are placed as Megatron does: TP, then CP, DP, PP.

    `transformer_engine`: fused layers; otherwise the local layer spec. `async_tensor_parallel`: part of the backward
    pass's collectives hides behind products. `mask_in_loader`: data loaders make an s x s attention mask per sample.

    Raises:
        ValueError: sizes that do not fit each other; the sentence names the flag.
    """

    model: ModelShape
    cluster: Cluster
    comm: CommConfig
    tp: int = 1
    cp: int = 1
    pp: int = 1
    dp: int = 1
    virtual_pp: int = 1
    micro_batch: int = 1
    accumulation: int = 1
    seq: int = 2048
    sequence_parallel: bool = True
    flash_attention: bool = True
    recompute: str = "none"
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False
    fp32_gradients: bool = True
    distributed_optimizer: bool = True
    transformer_engine: bool = True
    async_tensor_parallel: bool = True
    mask_in_loader: bool = False

    def __post_init__(self) -> None:
        sizes = ("tp", "cp", "pp", "dp", "virtual_pp", "micro_batch", "accumulation", "seq")
        for name in sizes:
            _require(getattr(self, name) >= 1, f"{name} = {getattr(self, name)}: give a positive integer")
        model = self.model
        heads = f"{model.heads} attention heads and {model.query_groups} query groups"
        splits = model.heads % self.tp == 0 and (model.query_groups % self.tp == 0 or self.tp % model.query_groups == 0)
        _require(splits, f"tensor parallel size {self.tp} does not divide {heads}")
        stages = self.pp * self.virtual_pp
        _require(
            model.num_layers % stages == 0, f"{model.num_layers} layers do not divide into {stages} pipeline chunks"
        )
        _require(
            self.seq % (2 * self.cp) == 0 or self.cp == 1, f"sequence {self.seq} does not divide by 2 x CP {self.cp}"
        )
        _require(self.recompute in RECOMPUTE, f"recompute = {self.recompute!r}: use one of {', '.join(RECOMPUTE)}")
        _require(self.virtual_pp == 1 or self.pp > 1, "virtual pipeline stages need a pipeline: pp > 1")
        even = self.virtual_pp == 1 or self.accumulation % self.pp == 0
        _require(even, f"interleaving needs accumulation ({self.accumulation}) to be a multiple of pp ({self.pp})")

    @property
    def gpus(self) -> int:
        """Devices in all."""
        return self.tp * self.cp * self.pp * self.dp

    @property
    def global_batch(self) -> int:
        """Sequences of a step."""
        return self.dp * self.micro_batch * self.accumulation

    @property
    def tokens(self) -> float:
        """Tokens of a micro-batch that one context-parallel rank holds."""
        return self.seq * self.micro_batch / self.cp

    @property
    def data_ranks(self) -> int:
        """Ranks that share gradients and optimizer state: data times context parallel."""
        return self.dp * self.cp

    @property
    def activation_split(self) -> int:
        """Over how many ranks the activations outside the split matrices are spread."""
        return self.tp if self.sequence_parallel else 1

    @property
    def flops_per_step(self) -> float:
        """Model FLOPs of a step of all devices, as the tables count them."""
        return self.model.flops_per_sample(self.seq, self.tp) * self.global_batch

    def tflops_per_gpu(self, step_seconds: float) -> float:
        """TFLOP/s of one device in steps of `step_seconds`."""
        return self.flops_per_step / (step_seconds * self.gpus * 1e12)

    def replace(self, **changes: object) -> Job:
        """The same training with other fields."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Placement:
    """How a group of `size` ranks lies on nodes: `local` of them on each of `nodes` nodes."""

    size: int
    local: int

    @property
    def nodes(self) -> int:
        """Nodes that the group spans."""
        return -(-self.size // self.local)


def place(size: int, stride: int, devices: int) -> Placement:
    """Ranks `0, stride, 2 stride, ...` on nodes of `devices` ranks in a row."""
    return Placement(size, max(1, min(size, devices // stride)))


def _require(valid: bool, sentence: str) -> None:
    if not valid:
        raise ValueError(sentence)
