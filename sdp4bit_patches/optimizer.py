"""What to send: megatron-core's distributed optimizer whose main parameters are published instead of copied."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from sdp4bit_patches import refusals
from sdp4bit_patches.gradient_turns import BucketTurns
from sdp4bit_patches.provisional_step import ProvisionalStep
from sdp4bit_patches.session import Session
from sdp4bit_patches.training_step import current_step
from sdp4bit_patches.weight_difference import WeightDifference


class QuantizedDistributedOptimizer(DistributedOptimizer):
    """A distributed optimizer that leaves the model's parameters to the quantized all-gather.

    megatron-core copies each main parameter over the model's shard before it is gathered, and so destroys what the
    difference is taken from. Here the main parameters of a compressed bucket are moved into one flat tensor, which the
    codec holds against the model's shard; the copy is left out. `session` is set by the class that `seams` makes.
    """

    session: Session

    def __init__(self, optimizer: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        self._differences: list[WeightDifference] = []
        self._copied: list[tuple[Tensor, Tensor]] = []
        self._provisional: ProvisionalStep | None = None
        self._hides_probe = False
        super().__init__(optimizer, config, *args, **kwargs)
        if self.is_stub_optimizer:
            return
        if self.session.config.compresses_weights:
            refusals.check_optimizer_config(config)
        self._provisional = self._make_provisional_step(config)
        owned = self._owned_by_bucket()
        for buffer_index, buffer in enumerate(self.buffers):
            turns = self.session.make_turns(buffer) if self._provisional else None
            for bucket in buffer.buckets:
                own = owned.get((buffer_index, bucket.bucket_id), [])
                of_bucket = turns.buckets[bucket.bucket_id] if turns else None
                self._take_over(bucket, buffer.data_parallel_group, own, of_bucket)
        for chunk in self.model_chunks:
            for bucket_group in _bucket_groups(chunk):
                bucket_group.prepare()
        if self.session.on_ready:
            self.session.on_ready(self.model_chunks)
            self.session.on_ready = None

    def _make_provisional_step(self, config: Any) -> ProvisionalStep | None:
        if not self.session.config.fast_slow_grad_reduce:
            return None
        refusals.check_duo(self.optimizer, config, self.model_chunks)
        return ProvisionalStep(self, self.session)

    def _owned_by_bucket(self) -> dict[tuple[int, int], list[tuple[Tensor, Any, Tensor]]]:
        """(main, range in the bucket, model) of the 16-bit parameters that this rank owns a part of."""
        owned: dict[tuple[int, int], list[tuple[Tensor, Any, Tensor]]] = {}
        groups = zip(self.shard_fp32_from_float16_groups, self.model_float16_groups, strict=True)
        for main_group, model_group in groups:
            for main, model in zip(main_group, model_group, strict=True):
                buffer_index, _, bucket_id = self.model_param_gbuf_map[model]
                place = self._get_model_param_range_map(model)["gbuf_world_in_bucket"]
                owned.setdefault((buffer_index, bucket_id), []).append((main, place, model))
        return owned

    def _take_over(
        self, bucket: Any, group: Any, owned: list[tuple[Tensor, Any, Tensor]], turns: BucketTurns | None
    ) -> None:
        """Lay out what the bucket publishes: flat where it is compressed, as megatron-core has it elsewhere."""
        duo = self._provisional is not None and self.session.uses_duo(bucket, group.size())
        if duo:
            bucket.duo = self._provisional.take_over(bucket, group, owned, turns)
        published = bucket.duo.published if duo else None
        if self.session.quantizes_weights(bucket, group.size()):
            bucket.weight_difference = WeightDifference(published if duo else _flatten(bucket, group, owned))
            self._differences.append(bucket.weight_difference)
        elif duo:
            first = group.rank() * published.numel()
            self._copied.append((bucket.param_data[first : first + published.numel()], published))
        else:
            self._copied += [(bucket.param_data[place.start : place.end], main) for main, place, _ in owned]

    def _copy_main_params_to_model_params(self) -> None:
        """Publish the main parameters of compressed buckets; copy the others as megatron-core does.

        fp32 parameters are their own main parameters: for them there is nothing to do.
        """
        step = current_step(self.session)
        for difference in self._differences:
            difference.publish(step)
        for shard, main in self._copied:
            shard.copy_(main)

    def get_parameters(self) -> list[Tensor]:
        """megatron-core's list, and DUO's probe where gradients are clipped."""
        parameters = super().get_parameters()
        shown = self._provisional is not None and not self._hides_probe
        return [*parameters, self._provisional.probe] if shown else parameters

    def get_main_grads_for_grad_norm(self) -> list[Tensor]:
        """megatron-core's list: DUO's probe is no part of the norm."""
        self._hides_probe = True
        try:
            return super().get_main_grads_for_grad_norm()
        finally:
            self._hides_probe = False

    def prepare_grads(self) -> bool:
        """megatron-core's preparation, before which DUO notes the loss scale."""
        if self._provisional is not None:
            self._provisional.note_loss_scale()
        return super().prepare_grads()

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """megatron-core's, of the state after all gradients."""
        self._flush()
        return super().sharded_state_dict(*args, **kwargs)

    def state_dict(self) -> Any:
        """megatron-core's, of the state after all gradients."""
        self._flush()
        return super().state_dict()

    def save_parameter_state(self, filename: str) -> None:
        """megatron-core's, of the state after all gradients."""
        self._flush()
        super().save_parameter_state(filename)

    def _flush(self) -> None:
        if self._provisional is not None and self.session.duo is not None:
            self.session.duo.flush()

    def step_with_ready_grads(self) -> bool:
        """megatron-core's step, after which whoever watches is told. DUO's buckets take their provisional step."""
        step = current_step(self.session)
        if self._provisional is not None and self.session.duo is not None:
            self._provisional.step(step)
            groups = [group for chunk in self.model_chunks for group in _bucket_groups(chunk) if group.uses_duo]
            self.session.duo.published(groups)
            self.session.decide_slow_policy(step)
        succeeded = super().step_with_ready_grads()
        if self.session.on_step:
            self.session.on_step(current_step(self.session))
        self.session.num_steps += 1
        return succeeded


def _bucket_groups(chunk: Any) -> list[Any]:
    return chunk.bucket_groups + chunk.expert_parallel_bucket_groups


def _flatten(bucket: Any, group: Any, owned: list[tuple[Tensor, Any, Tensor]]) -> Tensor:
    """Move a bucket's main parameters into one flat tensor, of which they become views."""
    shard_size = bucket.param_data.numel() // group.size()
    flat = torch.zeros(shard_size, dtype=torch.float32, device=bucket.param_data.device)
    for main, place, _ in owned:
        own = flat[place.start - group.rank() * shard_size : place.end - group.rank() * shard_size]
        own.copy_(main)
        main.data = own
    return flat
