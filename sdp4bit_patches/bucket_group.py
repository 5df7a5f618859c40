"""When to send: megatron-core's bucket group whose gradients and parameters travel quantized."""

from __future__ import annotations

from typing import Any

from megatron.core import parallel_state
from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBucketGroup

from sdp4bit_patches import refusals
from sdp4bit_patches.bucket_messages import BucketMessages
from sdp4bit_patches.exact_slices import offset_in, travels_exactly
from sdp4bit_patches.progress import Handle
from sdp4bit_patches.session import Session
from sdp4bit_patches.training_step import current_step


class QuantizedBucketGroup(_ParamAndGradBucketGroup):
    """A bucket group that sends quantized messages for the buckets that `session` compresses.

    A group none of whose buckets is compressed behaves as megatron-core's own. In one where some are, the others take
    the same way in 32-bit messages. `session` is set by the class that `seams` makes.
    """

    session: Session

    def __init__(self, buckets: list, ddp_config: Any, collective_group: Any, collective_group_size: int) -> None:
        super().__init__(buckets, ddp_config, collective_group, collective_group_size)
        refusals.check_ddp_config(self.session.config, ddp_config)
        self.messages: list[BucketMessages] | None = None

    @property
    def uses_duo(self) -> bool:
        """Whether a bucket has a second sync: its own optimizer makes it, of which experts have another."""
        return any(hasattr(bucket, "duo") for bucket in self.buckets)

    def prepare(self) -> None:
        """Plan the messages of all buckets; the optimizer calls it when all exist, in one order on all ranks.

        megatron-core makes a second set of bucket groups that are never used: so this is not done in `__init__`.
        """
        if self.messages is not None:
            return
        group = self.intra_distributed_optimizer_instance_group
        size = self.intra_distributed_optimizer_instance_size
        session = self.session
        self._quantizes_gradients = any(session.quantizes_gradients(bucket, size) for bucket in self.buckets)
        self._quantizes_weights = any(session.quantizes_weights(bucket, size) for bucket in self.buckets)
        self.messages = []
        if self._quantizes_gradients or self._quantizes_weights:
            topology = session.topology(group)
            session.telemetry.lag = int(self._quantizes_weights and self.ddp_config.overlap_param_gather)
            self.messages = [
                BucketMessages(session, bucket, topology, _exact_ranges(session, bucket)) for bucket in self.buckets
            ]

    def start_grad_sync(self, force_all_reduce: bool | None = False) -> None:
        """Start the quantized reduce-scatter; see megatron-core's method for when."""
        step = current_step(self.session)
        if not self._reduces_quantized(step, force_all_reduce):
            for messages in self.messages:
                self.session.telemetry.count(step, messages.gradient_bytes)
            return super().start_grad_sync(force_all_reduce=force_all_reduce)
        if self.is_first_batch and self.grad_reduce_handle is not None:
            return
        assert self.grad_reduce_handle is None, "a gradient sync of this bucket group is outstanding"
        self._check_grads_as_configured()
        for bucket in self.buckets:
            if hasattr(bucket, "duo"):
                self.session.duo.make_room(bucket.duo)
        average = self.ddp_config.average_in_collective
        scale = 1.0 / self.intra_distributed_optimizer_instance_size if average else 1.0
        gradients = [messages.take_gradients(step) for messages in self.messages]

        def job() -> None:
            for messages, taken in zip(self.messages, gradients, strict=True):
                messages.reduce_gradients(taken, step, scale)

        handle = self._start(step, "gradients", job)
        if self.ddp_config.overlap_grad_reduce:
            self.grad_reduce_handle = handle
        else:
            handle.wait()

    def _reduces_quantized(self, step: int, force_all_reduce: bool | None) -> bool:
        self.prepare()
        if not self._quantizes_gradients:
            return False
        config = self.session.config
        if force_all_reduce:
            refusals.check_fallback(config, "megatron-core asked for an all-reduce of the gradients, which is exact")
            return False
        # Iterations count from 0, steps from 1.
        return max(step - 1, 0) >= config.gradients_quantization_start_iteration

    def _check_grads_as_configured(self) -> None:
        config = self.ddp_config
        if config.check_for_nan_in_grad or config.check_for_large_grads:
            self.check_grads(config.check_for_nan_in_grad, config.check_for_large_grads)

    def start_param_sync(self, force_sync: bool = False) -> None:
        """Start the quantized all-gather of what the optimizer has published; nothing where it has nothing new."""
        self.prepare()
        if self._quantizes_weights:
            self._start_quantized_param_sync(force_sync)
        else:
            for messages in self.messages if self.param_gather_handle is None else ():
                self.session.telemetry.count(current_step(self.session), messages.parameter_bytes)
            super().start_param_sync(force_sync=force_sync)
        if self.param_gather_handle is None:
            self._tell_duo()

    def finish_param_sync(self, skip_next_bucket_dispatch: bool = False) -> None:
        """megatron-core's; then the second gradient sync may begin."""
        super().finish_param_sync(skip_next_bucket_dispatch=skip_next_bucket_dispatch)
        self._tell_duo()

    def _tell_duo(self) -> None:
        if self.uses_duo:
            self.session.duo.gathered(self)

    def _start_quantized_param_sync(self, force_sync: bool) -> None:
        if self.param_gather_handle is not None:
            assert force_sync, "a parameter sync of this bucket group is outstanding"
            self.param_gather_handle.wait()
            self.param_gather_handle = None
            return
        self.param_gather_dispatched = True
        steps = [messages.take_published() for messages in self.messages]
        if all(step is None for step in steps):
            return
        step = max(step for step in steps if step is not None)

        def job() -> None:
            for messages in self.messages:
                messages.gather_parameters(step)

        handle = self._start(step, "parameters", job)
        if self.ddp_config.overlap_param_gather and not force_sync:
            self.param_gather_handle = handle
        else:
            handle.wait()

    def _start(self, step: int, what: str, job: Any) -> Handle:
        progress = self.session.progress(self.buckets[0].grad_data.device)
        return self.session.telemetry.timed(step, what, progress.start(job))


def _exact_ranges(session: Session, bucket: Any) -> list[tuple[int, int]]:
    """Where in the bucket the parameters lie that travel exactly."""
    tensor_parallel_size = parallel_state.get_tensor_model_parallel_world_size()
    everything = session.config.quantize_all_parameters
    chosen = [p for p in bucket.params_list if travels_exactly(p, tensor_parallel_size, everything)]
    begins = [offset_in(bucket.grad_data, p.main_grad) for p in chosen]
    return [(begin, begin + p.numel()) for begin, p in zip(begins, chosen, strict=True)]
