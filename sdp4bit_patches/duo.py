"""DUO: the second, exact sync of every gradient, and the step that uses it.

The state that training keeps (main parameters x, Adam's moments, the step count) is advanced by exact gradients only.

1. fast, at once: the compressed gradient gives provisional parameters y, which the model goes on with.
2. slow, during the next iteration, once y has been gathered: the same gradient, kept aside, is reduced exactly on a
   thread and on groups of its own, and advances x bucket by bucket.
3. A bucket's next gradient waits until its slow step is done: the only place where the slow sync can cost time.

y - x is one step's compression error and never accumulates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sdp4bit_patches.adamw import AdamWStep, adamw, adamw_provisional
from sdp4bit_patches.collectives import EXACT_FORMAT, PlainReduceScatter, QuantizedReduceScatter
from sdp4bit_patches.gradient_cache import GradientCache
from sdp4bit_patches.progress import Handle, Scratch, ThreadProgress
from sdp4bit_patches.topology import Topology


@dataclass(frozen=True)
class Span:
    """Elements [begin, end) of this rank's shard: one parameter's, in one of the optimizer's parameter groups."""

    begin: int
    end: int
    group_index: int
    parameter: Tensor


@dataclass(frozen=True)
class ModelParallelSum:
    """Elements of this rank's shard whose gradients are summed over tensor- or pipeline-parallel ranks as well."""

    index: Tensor
    group: dist.ProcessGroup
    average: bool = False


class DuoBucket:
    """One bucket's cached gradient, exact sum, and state on this rank; all of it flat fp32 tensors.

    `published` is y, `main` x; `exp_avg` and `exp_avg_sq` are Adam's. The optimizer's own tensors are views of these.
    """

    def __init__(
        self,
        num_elements: int,
        topology: Topology,
        cache_dtype: torch.dtype,
        device: torch.device,
        channel: torch.device,
    ) -> None:
        """device: of the gradients. channel: where the second sync runs, the CPU or the same device."""
        self.topology = topology
        self.spans: list[Span] = []
        self.sums: list[ModelParallelSum] = []
        shard_size = num_elements // topology.size
        self.published, self.main, self.exp_avg, self.exp_avg_sq = torch.zeros(4, shard_size, device=device)
        self.channel = channel
        self._cache = GradientCache(num_elements, cache_dtype, channel)
        self._sum = torch.empty(shard_size, device=channel)
        if cache_dtype == torch.float32:
            self._plan = QuantizedReduceScatter(num_elements, topology, EXACT_FORMAT, EXACT_FORMAT, channel)
        else:
            self._plan = PlainReduceScatter(num_elements, topology, cache_dtype)
        self.scratch_sizes = self._plan.scratch_sizes
        self._steps: list[AdamWStep] | None = None
        self._handle: Handle | None = None

    def keep(self, gradients: Tensor) -> None:
        """Put this step's own gradients aside; `wait` has to have returned. Call it within a job of `progress`."""
        self._cache.keep(gradients)

    def step_provisionally(self, steps: list[AdamWStep], gradients: list[Tensor], second_moment: str) -> None:
        """The fast step: y from the compressed gradients of each span; remembers `steps` for the slow one."""
        for span, step, gradient in zip(self.spans, steps, gradients, strict=True):
            places = slice(span.begin, span.end)
            state = (self.main[places], self.exp_avg[places], self.exp_avg_sq[places])
            adamw_provisional(self.published[places], *state, gradient, step, second_moment)
        self._steps = steps

    @property
    def is_pending(self) -> bool:
        """Whether a gradient waits for its slow sync."""
        return self._steps is not None

    def launch(self, progress: ThreadProgress, scratch: Scratch, advance: Callable[[DuoBucket], None]) -> None:
        """Start the slow sync and step of the pending gradient; `advance(self)` counts the step."""
        steps, self._steps = self._steps, None

        def job() -> None:
            self._reduce(scratch)
            self._step(steps)
            advance(self)

        self._handle = progress.start(job)

    @torch.no_grad()
    def _reduce(self, scratch: Scratch) -> None:
        self._plan.run(self._sum, self._cache.kept(), scratch)
        for part in self.sums:
            values = self._sum.index_select(0, part.index)
            dist.all_reduce(values, group=part.group)
            self._sum.index_copy_(0, part.index, values / part.group.size() if part.average else values)
        if not math.isfinite(self._sum.abs().sum().item()):
            raise RuntimeError(
                "an exact gradient has a NaN or Inf where the compressed one had none: see the loss scale"
            )

    @torch.no_grad()
    def _step(self, steps: list[AdamWStep]) -> None:
        gradient = self._sum.to(self.main.device)
        for span, step in zip(self.spans, steps, strict=True):
            places = slice(span.begin, span.end)
            state = (self.main[places], self.exp_avg[places], self.exp_avg_sq[places])
            adamw(*state, gradient[places], step)

    def wait(self) -> float:
        """Return when no slow step of this bucket is under way; milliseconds that this took."""
        if self._handle is None:
            return 0.0
        begun = time.perf_counter()
        self._handle.wait()
        self._handle = None
        return (time.perf_counter() - begun) * 1e3


class Duo:
    """All buckets of a rank: launched together when the provisional parameters have been gathered."""

    def __init__(self, channel: torch.device) -> None:
        self.exposed_ms = 0.0
        self._ordinary: list[DuoBucket] = []
        self._shared: list[DuoBucket] = []
        self._progress = ThreadProgress()
        self._scratch = Scratch(channel)
        self._advance: dict[DuoBucket, Callable[[DuoBucket], None]] = {}
        self._to_gather: set[Any] = set()

    @property
    def buckets(self) -> list[DuoBucket]:
        """In the order of their slow syncs: what pipeline stages share comes last, so that no stage waits in a ring."""
        return self._ordinary + self._shared

    def add(self, bucket: DuoBucket, advance: Callable[[DuoBucket], None], is_shared: bool) -> None:
        """Register a bucket; `is_shared` between pipeline stages. `advance(bucket)` counts a slow step."""
        self._scratch.reserve(bucket.scratch_sizes)
        self._advance[bucket] = advance
        (self._shared if is_shared else self._ordinary).append(bucket)

    def published(self, bucket_groups: list[Any]) -> None:
        """The provisional step is done; the slow sync begins when these bucket groups have gathered its result."""
        self._to_gather |= set(bucket_groups)

    def gathered(self, bucket_group: Any) -> None:
        """A bucket group has its parameters."""
        if self._to_gather:
            self._to_gather.discard(bucket_group)
            if not self._to_gather:
                self.launch()

    def launch(self) -> None:
        """Start the slow sync of every pending gradient."""
        self._to_gather.clear()
        for bucket in self.buckets:
            if bucket.is_pending:
                bucket.launch(self._progress, self._scratch, self._advance[bucket])

    def make_room(self, bucket: DuoBucket) -> None:
        """Before a bucket's next gradient is kept: finish its slow step. What that takes is exposed."""
        if any(other.is_pending for other in self.buckets):
            self.launch()
        self.exposed_ms += bucket.wait()

    def flush(self) -> None:
        """Finish every slow step that is due: x is then the state after all gradients so far."""
        self.launch()
        for bucket in self.buckets:
            bucket.wait()
