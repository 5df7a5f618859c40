"""Runs a `Case` of `collective_oracle` in the processes of `parallel_launch`, and counts its bytes on the way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from collective_oracle import Case, same_bits
from torch import Tensor
from wire_counter import WireCounter

from sdp4bit_patches import topology
from sdp4bit_patches.collectives import LinkBytes, QuantizedAllGather, QuantizedReduceScatter
from sdp4bit_patches.progress import Scratch


def discover(hosts: str, share_memory: bool = True) -> topology.Topology:
    """The topology of ranks whose host names are those letters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topology, "socket", SimpleNamespace(gethostname=lambda: hosts[torch.distributed.get_rank()]))
        return topology.discover(torch.distributed.group.WORLD, share_memory=share_memory)


@dataclass
class Result:
    """What a rank has at the end: its shard, its bytes as planned and as counted, and its number of collectives."""

    output: Tensor
    planned: LinkBytes
    counted: LinkBytes
    num_calls: int


def _run(plan, ranks: topology.Topology, hosts: str, run) -> Result:
    scratch = Scratch(torch.device("cpu"))
    scratch.reserve(plan.scratch_sizes)
    with pytest.MonkeyPatch.context() as patch:
        counter = WireCounter(hosts)
        counter.listen(patch.setattr)
        output = run(scratch)
    return Result(output, plan.link_bytes, LinkBytes(counter.intra, counter.inter), counter.num_calls)


def reduce_scatter(case: Case, ranks: topology.Topology, gradients: Tensor | None = None) -> Result:
    """Run a case on this rank; the output is the rank's part of its own input, as in a bucket."""
    exact, device = case.slices(), torch.device("cpu")
    formats = (case.intra, case.inter)
    plan = QuantizedReduceScatter(case.num_elements, ranks, *formats, device, exact, case.num_chunks)
    own = (case.gradients() if gradients is None else gradients)[ranks.rank].clone()
    shard = own[ranks.rank * case.shard_size :][: case.shard_size]

    def run(scratch: Scratch) -> Tensor:
        plan.run(shard, own, scratch, lambda form, hop: case.rounding_name(form, hop, ranks.rank))
        return shard.clone()

    return _run(plan, ranks, case.hosts, run)


def weights(case: Case) -> tuple[Tensor, Tensor]:
    """The model's parameters, and the fp32 main parameters that they should become."""
    model = case.gradients()[0]
    change = torch.randn(case.num_elements, generator=torch.Generator().manual_seed(case.seed)) * 0.01
    return model, model.float() * (1 + change) + change


def all_gather(case: Case, ranks: topology.Topology) -> Result:
    """Gather parameters in the case's format between nodes, without transform."""
    model, main = weights(case)
    shard = main[ranks.rank * case.shard_size :][: case.shard_size]
    message_format = replace(case.inter, hadamard=0)
    plan = QuantizedAllGather(
        case.num_elements, ranks, message_format, model.dtype, torch.device("cpu"), case.slices(), case.seed % 3 == 0
    )

    def run(scratch: Scratch) -> Tensor:
        before = shard.clone()
        plan.run(model, shard, scratch, lambda form, hop: case.rounding_name(form, 2 + hop, ranks.rank))
        assert same_bits(shard, before), "the main parameters stay as they are"
        return model

    return _run(plan, ranks, case.hosts, run)
