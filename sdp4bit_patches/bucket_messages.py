"""One bucket's messages: its gradients reduced, its parameters gathered, each planned once and run every step."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sdp4bit_patches.collectives import EXACT_FORMAT, LinkBytes, QuantizedAllGather, QuantizedReduceScatter, exact_bytes
from sdp4bit_patches.config import rounding_of
from sdp4bit_patches.duo import DuoBucket
from sdp4bit_patches.exact_slices import ExactSlices
from sdp4bit_patches.gather import all_gather
from sdp4bit_patches.session import Session
from sdp4bit_patches.topology import Topology
from sdp4bit_patches.weight_difference import WeightDifference
from sdp4bit_patches.wire import MessageFormat, StochasticRounding

# Hops in the keys of random numbers: 0 and 1 are the reduce-scatter's.
WEIGHT_HOP = 2


class BucketMessages:
    """The collectives of one of megatron-core's buckets over the ranks of `topology`.

    `exact_ranges` are the elements that travel unquantized. The optimizer leaves the bucket's published parameters in
    `bucket.weight_difference`.
    """

    def __init__(self, session: Session, bucket: Any, topology: Topology, exact_ranges: list[tuple[int, int]]) -> None:
        self._session, self._bucket, self.topology = session, bucket, topology
        self._name = session.name_bucket(bucket)
        self.device = bucket.grad_data.device
        self.exact = ExactSlices(exact_ranges, bucket.grad_data.numel(), topology.size, self.device)
        config = session.config
        sends = config.quantized_gradients and not config.sends_no_gradients
        self.reduce_scatter = self._plan_reduce_scatter() if sends else None
        measures = session.telemetry.interval > 0 and config.quantized_gradients
        self._exact_reduce_scatter = self._plan_exact_reduce_scatter() if measures else None
        self.all_gather = self._plan_all_gather() if session.quantizes_weights(bucket, topology.size) else None
        plans = [self.reduce_scatter, self._exact_reduce_scatter, self.all_gather]
        for plan in plans:
            if plan is not None:
                session.scratch(self.device).reserve(plan.scratch_sizes)

    def _plan_reduce_scatter(self) -> QuantizedReduceScatter:
        config, size = self._session.config, self._bucket.grad_data.numel()
        if not self._session.quantizes_gradients(self._bucket, self.topology.size):
            return self._plan_exact_reduce_scatter()
        formats = (config.intra_format, config.inter_format)
        # With 32 bits all the way there is nothing to keep out of the messages.
        exact = None if formats[0].bits == formats[1].bits == 32 else self.exact
        chunks = config.gradient_alltoall_pipeline
        return QuantizedReduceScatter(size, self.topology, *formats, self.device, exact, chunks)

    def _plan_exact_reduce_scatter(self) -> QuantizedReduceScatter:
        size = self._bucket.grad_data.numel()
        return QuantizedReduceScatter(size, self.topology, EXACT_FORMAT, EXACT_FORMAT, self.device)

    def _plan_all_gather(self) -> QuantizedAllGather:
        config, model = self._session.config, self._bucket.param_data
        direct = config.quantize_weights_directly
        return QuantizedAllGather(
            model.numel(), self.topology, config.weight_format, model.dtype, self.device, self.exact, direct
        )

    @property
    def _difference(self) -> WeightDifference | None:
        return getattr(self._bucket, "weight_difference", None)

    @property
    def num_elements(self) -> int:
        """Elements of the bucket."""
        return self._bucket.grad_data.numel()

    @cached_property
    def gradient_bytes(self) -> LinkBytes:
        """What a step's reduce-scatter sends from this rank to others, megatron-core's own where that does it."""
        if self._session.config.sends_no_gradients:
            return LinkBytes()
        if self.reduce_scatter is not None:
            return self.reduce_scatter.link_bytes
        return exact_bytes(self.topology, self.num_elements, self._bucket.grad_data.element_size())

    @cached_property
    def parameter_bytes(self) -> LinkBytes:
        """The same of its all-gather."""
        if self.all_gather is not None:
            return self.all_gather.link_bytes
        return exact_bytes(self.topology, self.num_elements, self._bucket.param_data.element_size())

    def exact_bytes(self, gradient_width: int) -> LinkBytes:
        """What megatron-core would send in a step, with gradients of so many bytes an element."""
        sizes = (gradient_width, self._bucket.param_data.element_size())
        return sum((exact_bytes(self.topology, self.num_elements, size) for size in sizes), LinkBytes())

    def _own_shard(self, data: Tensor) -> Tensor:
        size = data.numel() // self.topology.size
        return data[self.topology.rank * size :][:size]

    def _rounding(self, step: int, first_hop: int = 0) -> Callable[[MessageFormat, int], StochasticRounding | None]:
        def name(message_format: MessageFormat, hop: int) -> StochasticRounding | None:
            source = self.topology.rank
            return rounding_of(self._session.config, message_format, step, self._name, first_hop + hop, source)

        return name

    def take_gradients(self, step: int) -> Tensor:
        """The bucket's gradients of this step. Where they stay there for the second sync, the bucket goes elsewhere."""
        turns = self._duo.turns if self._syncs_again(step) else None
        return turns.turn() if turns else self._bucket.grad_data

    @property
    def _duo(self) -> DuoBucket | None:
        return getattr(self._bucket, "duo", None)

    def _syncs_again(self, step: int) -> bool:
        return self._duo is not None and self._session.duo.policy.syncs(step)

    @torch.no_grad()
    def reduce_gradients(self, gradients: Tensor, step: int, scale: float) -> None:
        """Scale what `take_gradients` gave as megatron-core says, times `scale`, and sum it over the ranks.

        This rank's shard of the bucket's `grad_data` then has the sum; the rest of that means nothing.
        """
        factor = self._bucket.gradient_scaling_factor * scale
        if factor != 1.0:
            gradients *= factor
        if self._syncs_again(step):
            self._duo.keep(gradients)
        scratch = self._session.scratch(self.device)
        telemetry, shard = self._session.telemetry, self._own_shard(self._bucket.grad_data)
        exact = torch.empty_like(shard) if telemetry.measures(step) else None
        if exact is not None:
            self._exact_reduce_scatter.run(exact, gradients, scratch)
        self._reduce(shard, gradients, step)
        telemetry.count(step, self.gradient_bytes)
        if exact is not None:
            self._record(step, "gradient", shard, exact)

    def _reduce(self, shard: Tensor, gradients: Tensor, step: int) -> None:
        if self.reduce_scatter is None:
            own = self._own_shard(gradients)
            _estimate_alone(shard, own, gradients, self.topology.size, self._session.config.duo_zero_bit)
            return
        self.reduce_scatter.run(shard, gradients, self._session.scratch(self.device), self._rounding(step))

    def take_published(self) -> int | None:
        """The step whose parameters wait to be sent; None where there are none."""
        return self._difference.take() if self._difference else None

    @torch.no_grad()
    def gather_parameters(self, step: int) -> None:
        """Bring the model's parameters to what the optimizers of all ranks have published."""
        model = self._bucket.param_data
        shard = self._own_shard(model)
        if self.all_gather is None:
            all_gather(model, shard.clone(), self.topology.flat_group)
            self._session.telemetry.count(step, self.parameter_bytes)
            return
        telemetry, main = self._session.telemetry, self._difference.main
        before = shard.float() if telemetry.measures(step) else None
        self.all_gather.run(model, main, self._session.scratch(self.device), self._rounding(step, WEIGHT_HOP))
        telemetry.count(step, self.parameter_bytes)
        if before is not None:
            self._record(step, "weight", shard.float() - before, main - before)

    def _record(self, step: int, what: str, sent: Tensor, exact: Tensor) -> None:
        """Hand the quantized elements to telemetry; exact ones have no error to show."""
        places = self.exact.within_shard(self.topology.rank)
        pair = [values.float().index_fill(0, places, 0.0) for values in (sent, exact)]
        name = f"bucket{self._name}_{what}"
        self._session.telemetry.record(step, name, *pair, group=self.topology.flat_group)


def _estimate_alone(shard: Tensor, own: Tensor, gradients: Tensor, group_size: int, zero_bit: str) -> None:
    """At 0 bits: make of this rank's `own` part what the sum over the ranks would be, or zero (`skip`).

    A NaN or Inf anywhere in this rank's gradients makes its shard NaN: nobody else would get to see it.
    """
    low, high = gradients.aminmax()
    if zero_bit == "local":
        torch.mul(own, group_size, out=shard)
    else:
        shard.zero_()
    shard.add_((high - low) * 0)
