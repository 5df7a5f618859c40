"""What to send: megatron-core's distributed optimizer whose main parameters are published instead of copied."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from sdp4bit_patches import refusals
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
        super().__init__(optimizer, config, *args, **kwargs)
        self._differences: list[WeightDifference] = []
        self._copied: list[tuple[Tensor, Tensor]] = []
        if self.is_stub_optimizer:
            return
        if self.session.config.compresses_weights:
            refusals.check_optimizer_config(config)
        mains = self._mains_by_bucket()
        for buffer_index, buffer in enumerate(self.buffers):
            for bucket in buffer.buckets:
                pairs = mains.get((buffer_index, bucket.bucket_id), [])
                self._take_over(bucket, buffer.data_parallel_world_size, buffer.data_parallel_group.rank(), pairs)
        for chunk in self.model_chunks:
            for bucket_group in chunk.bucket_groups + chunk.expert_parallel_bucket_groups:
                bucket_group.prepare()
        if self.session.on_ready:
            self.session.on_ready(self.model_chunks)
            self.session.on_ready = None

    def _mains_by_bucket(self) -> dict[tuple[int, int], list[tuple[Tensor, Any]]]:
        """Main parameters with their range in the bucket, of 16-bit parameters that this rank owns a part of."""
        mains: dict[tuple[int, int], list[tuple[Tensor, Any]]] = {}
        groups = zip(self.shard_fp32_from_float16_groups, self.model_float16_groups, strict=True)
        for main_group, model_group in groups:
            for main, model in zip(main_group, model_group, strict=True):
                buffer_index, _, bucket_id = self.model_param_gbuf_map[model]
                place = self._get_model_param_range_map(model)["gbuf_world_in_bucket"]
                mains.setdefault((buffer_index, bucket_id), []).append((main, place))
        return mains

    def _take_over(self, bucket: Any, group_size: int, rank: int, mains: list[tuple[Tensor, Any]]) -> None:
        """Move a compressed bucket's main parameters into one flat tensor; remember what to copy of another."""
        if not self.session.quantizes_weights(bucket, group_size):
            self._copied += [(bucket.param_data[place.start : place.end], main) for main, place in mains]
            return
        shard_size = bucket.param_data.numel() // group_size
        flat = torch.zeros(shard_size, dtype=torch.float32, device=bucket.param_data.device)
        for main, place in mains:
            own = flat[place.start - rank * shard_size : place.end - rank * shard_size]
            own.copy_(main)
            main.data = own
        bucket.weight_difference = WeightDifference(flat)
        self._differences.append(bucket.weight_difference)

    def _copy_main_params_to_model_params(self) -> None:
        """Publish the main parameters of compressed buckets; copy the others as megatron-core does.

        fp32 parameters are their own main parameters: for them there is nothing to do.
        """
        step = current_step(self.session)
        for difference in self._differences:
            difference.publish(step)
        for shard, main in self._copied:
            shard.copy_(main)

    def step_with_ready_grads(self) -> bool:
        """megatron-core's step, after which whoever watches is told."""
        succeeded = super().step_with_ready_grads()
        if self.session.on_step:
            self.session.on_step(current_step(self.session))
        self.session.num_steps += 1
        return succeeded
