"""What tools/bench_collectives.py measures: the quantized collectives as training uses them, and plain ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist

from sdp4bit_patches.collectives import QuantizedAllGather, QuantizedReduceScatter, Rounding
from sdp4bit_patches.config import CommConfig, rounding_of
from sdp4bit_patches.progress import Scratch, make_progress
from sdp4bit_patches.topology import Topology, discover

OURS = {"reduce-scatter": "quantized_reduce_scatter", "all-gather": "quantized_all_gather"}
CPU = torch.device("cpu")


class Peer(NamedTuple):
    """One row: a way to do what `kind` says. `at_least`: by how much ours has to be faster."""

    kind: str
    name: str
    run: Callable[[], object]
    at_least: float | None = None


class Tensors:
    """What all rows share, `num_elements` of a bucket: gradients, a model that differs from its main parameters."""

    def __init__(self, num_elements: int) -> None:
        generator = torch.Generator().manual_seed(dist.get_rank())
        self.size, self.shard = num_elements, num_elements // dist.get_world_size()
        self.gradients = torch.randn(num_elements, generator=generator)
        self.output = torch.empty(self.shard)
        self.model = torch.randn(num_elements, generator=torch.Generator().manual_seed(0)).bfloat16()
        own = self.model[dist.get_rank() * self.shard :][: self.shard].float()
        self.main = own + 1e-3 * torch.randn(self.shard, generator=generator)


class Quantized:
    """The project's two collectives, as a training run of `config` uses them."""

    def __init__(self, tensors: Tensors, config: CommConfig) -> None:
        self.tensors, self.config = tensors, config
        self.topology: Topology = discover(dist.group.WORLD, config.node_size)
        formats = (config.intra_format, config.inter_format)
        chunks = config.gradient_alltoall_pipeline
        self.reduce_scatter = QuantizedReduceScatter(tensors.size, self.topology, *formats, CPU, num_chunks=chunks)
        self.all_gather = QuantizedAllGather(tensors.size, self.topology, config.weight_format, torch.bfloat16, CPU)
        self.progress, self.scratch = make_progress(CPU), Scratch(CPU)
        for plan in (self.reduce_scatter, self.all_gather):
            self.scratch.reserve(plan.scratch_sizes)

    def _rounding(self, first_hop: int) -> Rounding:
        rank = self.topology.rank
        return lambda form, hop: rounding_of(self.config, form, 1, 0, first_hop + hop, rank)

    def run_reduce_scatter(self) -> None:
        """Ours; the input stays as it is."""
        arguments = (self.tensors.output, self.tensors.gradients, self.scratch, self._rounding(0))
        self.progress.start(lambda: self.reduce_scatter.run(*arguments)).wait()

    def run_all_gather(self) -> None:
        """Ours. The model moves by it, ever less: how large differences are changes nothing of its time."""
        arguments = (self.tensors.model, self.tensors.main, self.scratch, self._rounding(2))
        self.progress.start(lambda: self.all_gather.run(*arguments)).wait()


def reduce_scatter_peers(t: Tensors) -> list[Peer]:
    """Plain ways to sum gradients into shards."""
    ranks = dist.get_world_size()
    rows, sent, halves = torch.empty_like(t.gradients), *(torch.empty(t.size, dtype=torch.bfloat16) for _ in range(2))

    def fp32() -> None:
        dist.all_to_all_single(rows, t.gradients)
        torch.sum(rows.view(ranks, -1), dim=0, out=t.output)

    def bf16() -> None:
        sent.copy_(t.gradients)
        dist.all_to_all_single(halves, sent)
        first, *others = halves.view(ranks, -1)
        t.output.copy_(first)
        for other in others:
            t.output.add_(other)

    return [
        Peer("reduce-scatter", "fp32 all_to_all + local sum", fp32, at_least=2.5),
        Peer("reduce-scatter", "bf16 all_to_all + local fp32 sum", bf16),
        Peer(
            "reduce-scatter",
            "gloo's reduce_scatter_tensor, fp32",
            lambda: dist.reduce_scatter_tensor(t.output, t.gradients),
            at_least=8.0,
        ),
    ]


def all_gather_peers(t: Tensors) -> list[Peer]:
    """Plain ways to gather shards of parameters."""
    peers = []
    for dtype, at_least in ((torch.bfloat16, 3.0), (torch.float32, None)):
        whole, own = torch.empty(t.size, dtype=dtype), t.main.to(dtype)
        name = f"{str(dtype).removeprefix('torch.')} all_gather_into_tensor"
        peers.append(
            Peer("all-gather", name, lambda w=whole, o=own: dist.all_gather_into_tensor(w, o), at_least=at_least)
        )
    return peers
