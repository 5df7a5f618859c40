"""The distributed optimizer's side of DUO: whose state it is, and the two steps that use it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.utils import get_attr_wrapped_model, get_model_config
from torch import Tensor

from sdp4bit_patches.adamw import AdamWStep, second_moment_rule
from sdp4bit_patches.duo import DuoBucket, ModelParallelSum, Span
from sdp4bit_patches.gradient_turns import BucketTurns
from sdp4bit_patches.session import Session, is_shared_embedding


class ProvisionalStep:
    """Takes over the state of a distributed optimizer's DUO buckets, and steps them instead of the inner optimizer."""

    def __init__(self, optimizer: Any, session: Session) -> None:
        self._optimizer, self._session = optimizer, session
        self.buckets: list[DuoBucket] = []
        # A gradient of one, which megatron-core clips along with the others: so the factor is known to the bit.
        self.probe = torch.nn.Parameter(torch.zeros(1, device=torch.cuda.current_device()))
        self._unscale: tuple[float, ...] = ()
        self._summed, self._averaged = _summed_over_tensor_parallel_ranks(optimizer.model_chunks)

    def take_over(
        self, bucket: Any, group: Any, owned: list[tuple[Tensor, Any, Tensor]], turns: BucketTurns | None
    ) -> DuoBucket:
        """Move a bucket's main parameters and Adam's moments into flat tensors. owned: (main, range, model)."""
        duo = self._session.make_duo_bucket(bucket, group, turns)
        first = group.rank() * duo.main.numel()
        for main, place, model in owned:
            group_index, _ = self._optimizer.model_param_group_index_map[model]
            span = Span(place.start - first, place.end - first, group_index, main)
            own = duo.main[span.begin : span.end]
            own.copy_(main)
            main.data = own
            duo.add(span)
        duo.published.copy_(duo.main)
        self._add_sums(bucket, duo, [model for _, _, model in owned])
        self.buckets.append(duo)
        self._session.duo.add(duo, self._count, is_shared_embedding(bucket))
        self._adopt(duo)
        return duo

    def _add_sums(self, bucket: Any, duo: DuoBucket, models: list[Tensor]) -> None:
        """What megatron-core sums over model-parallel ranks after the data-parallel sync, the slow sync has to as well.

        All ranks of such a group hold the same elements of the bucket, so a sum is left out on all of them or on none.
        """
        for chosen, average in ((self._summed, False), (self._averaged, True)):
            spans = [span for span, model in zip(duo.spans, models, strict=True) if model in chosen]
            if spans:
                group = self._session.slow_group(parallel_state.get_tensor_model_parallel_group())
                duo.sums.append(ModelParallelSum(_index(spans, duo), group, average))
        if is_shared_embedding(bucket):
            embedding_group = parallel_state.get_embedding_group(check_initialized=False)
            if embedding_group is not None and embedding_group.size() > 1:
                group = self._session.slow_group(embedding_group)
                if duo.spans:
                    duo.sums.append(ModelParallelSum(_index(duo.spans, duo), group))

    def _adopt(self, duo: DuoBucket) -> None:
        """Let the inner optimizer's moments lie in the flat tensors, with what a loaded checkpoint put elsewhere."""
        inner = self._optimizer.optimizer
        for span in duo.spans:
            state = inner.state[span.parameter]
            if "step" not in state:
                state["step"] = torch.tensor(0.0, device="cpu")
            for name, flat in (("exp_avg", duo.exp_avg), ("exp_avg_sq", duo.exp_avg_sq)):
                own = flat[span.begin : span.end]
                if name in state and state[name].data_ptr() != own.data_ptr():
                    own.copy_(state[name])
                state[name] = own

    def note_loss_scale(self) -> None:
        """Before gradients are unscaled: remember by what, and set the probe."""
        scaler = self._optimizer.grad_scaler
        self._unscale = (scaler.inv_scale.item(),) if scaler else ()
        self.probe.grad = torch.ones_like(self.probe)

    def step(self, number: int) -> None:
        """Step `number` of all buckets: provisional where its gradient is synced exactly, at once elsewhere.

        It uses the gradients up.
        """
        syncs = self._session.duo.begin_step(number)
        clip = self.probe.grad.item()
        scales = self._unscale + ((clip,) if clip != 1.0 else ())
        for duo in self.buckets:
            self._adopt(duo)
            steps = self._steps(duo, scales)
            gradients = [span.parameter.grad for span in duo.spans]
            if syncs:
                rules = [second_moment_rule(self._session.config.duo_fast_second_moment, step) for step in steps]
                duo.step_provisionally(steps, gradients, rules)
            else:
                duo.step_at_once([replace(step, scales=()) for step in steps], gradients)
                self._count(duo)
            for span in duo.spans:
                span.parameter.grad = None

    def _steps(self, duo: DuoBucket, scales: tuple[float, ...]) -> list[AdamWStep]:
        """The numbers of each span's step; spans of one parameter group that have stepped alike share theirs."""
        inner, steps = self._optimizer.optimizer, {}
        keys = [(span.group_index, int(inner.state[span.parameter]["step"]) + 1) for span in duo.spans]
        for index, count in keys:
            if (index, count) not in steps:
                group = inner.param_groups[index]
                beta1, beta2 = group["betas"]
                numbers = (count, group["lr"], beta1, beta2, group["eps"], group["weight_decay"], scales)
                steps[index, count] = AdamWStep(*numbers)
        return [steps[key] for key in keys]

    def _count(self, duo: DuoBucket) -> None:
        for span in duo.spans:
            self._optimizer.optimizer.state[span.parameter]["step"] += 1


def _index(spans: list[Span], duo: DuoBucket) -> Tensor:
    return torch.cat([torch.arange(span.begin, span.end) for span in spans]).to(duo.channel)


def _summed_over_tensor_parallel_ranks(model_chunks: list[Any]) -> tuple[set[Tensor], set[Tensor]]:
    """Parameters whose gradients megatron-core's `finalize_model_grads` sums, and those it averages."""
    summed: set[Tensor] = set()
    averaged: set[Tensor] = set()
    if parallel_state.get_tensor_model_parallel_world_size() == 1:
        return summed, averaged
    for chunk in model_chunks:
        config = get_model_config(chunk)
        for name, parameter in get_attr_wrapped_model(chunk, "named_parameters")():
            is_norm_of_heads = config.qk_layernorm and ("q_layernorm" in name or "k_layernorm" in name)
            if getattr(parameter, "average_gradients_across_tp_domain", False):
                averaged.add(parameter)
            elif (config.sequence_parallel and getattr(parameter, "sequence_parallel", False)) or is_norm_of_heads:
                summed.add(parameter)
    return summed, averaged
