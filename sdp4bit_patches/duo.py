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
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sdp4bit_patches.adamw import AdamWState, AdamWStep, adamw, adamw_provisional
from sdp4bit_patches.collectives import LinkBytes
from sdp4bit_patches.exact_reduce_scatter import ExactReduceScatter
from sdp4bit_patches.gradient_turns import BucketTurns
from sdp4bit_patches.progress import Handle, Scratch, ThreadProgress
from sdp4bit_patches.slow_policy import SlowPolicy
from sdp4bit_patches.topology import Topology

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Span:
    """Elements [begin, end) of this rank's shard: one parameter's, in one of the optimizer's parameter groups."""

    begin: int
    end: int
    group_index: int
    parameter: Tensor

    def of(self, *shards: Tensor) -> list[Tensor]:
        """These elements of each of `shards`."""
        return [shard[self.begin : self.end] for shard in shards]


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
        device: torch.device,
        channel: torch.device,
        turns: BucketTurns | None = None,
    ) -> None:
        """device: of the gradients. channel: where the second sync runs, the CPU or the same device. turns: of the
        bucket, where the second sync reads gradients in their place."""
        self.topology, self.turns = topology, turns
        self.spans: list[Span] = []
        self.sums: list[ModelParallelSum] = []
        shard_size = num_elements // topology.size
        self.published, self.main, self.exp_avg, self.exp_avg_sq = torch.zeros(4, shard_size, device=device)
        self.channel = channel
        self._sum = torch.empty(shard_size, device=channel)
        self._reduce_scatter = ExactReduceScatter(num_elements, topology, channel, turns)
        self.scratch_sizes = self._reduce_scatter.scratch_sizes
        # |y - x| / lr of this rank's shard after a slow step that was to measure it, the latest: what one step's
        # compression error came to.
        self.distance = 0.0
        # Processor time of the latest slow sync and step, gloo's part of it included.
        self.busy_ms = 0.0
        self._states: list[AdamWState] = []
        self._steps: list[AdamWStep] | None = None
        self._handle: Handle | None = None

    def add(self, span: Span) -> None:
        """These elements of the shard step with numbers of their own."""
        self.spans.append(span)
        self._states.append(AdamWState(*span.of(self.main, self.exp_avg, self.exp_avg_sq, self.published)))

    @property
    def link_bytes(self) -> LinkBytes:
        """What an fp32 slow sync sends from this rank to others."""
        return self._reduce_scatter.link_bytes

    @property
    def num_bytes(self) -> int:
        """Memory beside megatron-core's: one more gradient of the bucket, its exact sum, and the published shard."""
        return 4 * (self._reduce_scatter.num_elements + self._sum.numel() + self.published.numel())

    def keep(self, gradients: Tensor) -> None:
        """Put this step's own gradients aside; `wait` has to have returned. Call it within a job of `progress`."""
        self._reduce_scatter.keep(gradients)

    def step_provisionally(self, steps: list[AdamWStep], gradients: list[Tensor], second_moments: list[str]) -> None:
        """The fast step: y from the compressed gradients of each span; remembers `steps` for the slow one."""
        adamw_provisional(self._states, gradients, steps, second_moments)
        self._steps = steps

    def step_at_once(self, steps: list[AdamWStep], gradients: list[Tensor]) -> None:
        """A step without a slow sync: the compressed gradient advances the state itself."""
        adamw(self._states, gradients, steps)
        self.published.copy_(self.main)

    @property
    def is_pending(self) -> bool:
        """Whether a gradient waits for its slow sync."""
        return self._steps is not None

    def launch(
        self,
        progress: ThreadProgress,
        scratch: Scratch,
        dtype: str,
        measures: bool,
        done: Callable[[DuoBucket], None],
    ) -> None:
        """Start the slow sync (in `dtype`) and step of the pending gradient, which `measures` the distance of y from x;
        `done(self)` is called when it is over."""
        steps, self._steps = self._steps, None

        def job() -> None:
            begun = processor_time_beside_training()
            self._reduce(scratch, dtype)
            self._step(steps)
            if measures:
                self._measure_distance(steps)
            self.busy_ms = (processor_time_beside_training() - begun) * 1e3
            done(self)

        self._handle = progress.start(job)

    @torch.no_grad()
    def _reduce(self, scratch: Scratch, dtype: str) -> None:
        self._reduce_scatter.run(self._sum, DTYPES[dtype], scratch)
        for part in self.sums:
            values = self._sum.index_select(0, part.index)
            dist.all_reduce(values, group=part.group)
            self._sum.index_copy_(0, part.index, values / part.group.size() if part.average else values)
        if not math.isfinite(self._sum.sum().item()):
            raise RuntimeError(
                "an exact gradient has a NaN or Inf where the compressed one had none: see the loss scale"
            )

    @torch.no_grad()
    def _step(self, steps: list[AdamWStep]) -> None:
        gradient = self._sum.to(self.main.device)
        adamw(self._states, [part for span in self.spans for part in span.of(gradient)], steps)

    def _measure_distance(self, steps: list[AdamWStep]) -> None:
        lr = max((step.lr for step in steps), default=0.0)
        self.distance = torch.dist(self.published, self.main).item() / lr if lr else 0.0

    def wait(self) -> float:
        """Return when no slow step of this bucket is under way; milliseconds that this took."""
        if self._handle is None:
            return 0.0
        handle, self._handle = self._handle, None
        handle.wait()
        return handle.exposed_ms


def processor_time_beside_training() -> float:
    """Seconds of the processor that all threads of this process but the main one, which trains, have taken: while a
    slow sync runs, its own and those of gloo."""
    training = time.pthread_getcpuclockid(threading.main_thread().ident)
    return time.process_time() - time.clock_gettime(training)


def ranks_per_core() -> float:
    """How many ranks of this host compute on one core, at least one: it has the slow syncs of all of them. 0 where they
    leave a core free for each to sync on."""
    ranks, cores = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), len(os.sched_getaffinity(0))
    if cores >= ranks * (torch.get_num_threads() + 1):
        return 0.0
    return max(ranks / cores, 1.0)


class StepClock:
    """When a step's slow sync was launched, when it was over, and when the next gradient arrived; what it took of a
    core that so many ranks compute on."""

    def __init__(self, ranks_per_core: float) -> None:
        self._ranks_per_core = ranks_per_core
        self.forget()

    def forget(self) -> None:
        """Count nothing of what has happened since the step began: the next step is the first of its kind."""
        self.exposed_ms = self._busy_ms = 0.0
        self._launched = self._done = self._arrived = self._step_begun = self._trained = 0.0

    def launched(self) -> None:
        """The slow sync begins now."""
        self._launched = self._done = time.perf_counter()
        self._arrived = 0.0

    def done(self, busy_ms: float) -> None:
        """A bucket's slow step is over, and took so much processor time; the last call of a step counts."""
        self._done = time.perf_counter()
        self._busy_ms += busy_ms

    def arrived(self) -> None:
        """A gradient wants a bucket's place; the first call of a step counts."""
        self._arrived = self._arrived or time.perf_counter()

    def end_step(self) -> dict[str, float]:
        """The milliseconds of the step that ends now, on the thread that trains; of a sync that was not launched in it,
        zeros. Busy is what the slow syncs of all ranks on a core take from what they compute there."""
        now, trained = time.perf_counter(), time.thread_time()
        step = now - self._step_begun if self._step_begun else 0.0
        # Of the time of this rank's core, what its ranks compute in; in the rest, a slow sync takes nothing from them.
        computing = min((trained - self._trained) / step * self._ranks_per_core, 1.0) if step else 0.0
        times = {
            "step_ms": step * 1e3,
            "exposed_ms": self.exposed_ms,
            "busy_ms": self._busy_ms * self._ranks_per_core * computing,
            "slow_ms": (self._done - self._launched) * 1e3,
            "window_ms": max(self._arrived - self._launched, 0.0) * 1e3 if self._launched else 0.0,
        }
        self._step_begun, self._trained, self.exposed_ms, self._busy_ms = now, trained, 0.0, 0.0
        self._launched = self._done = self._arrived = 0.0
        return times


class Duo:
    """All buckets of a rank: launched together when the provisional parameters have been gathered."""

    def __init__(self, channel: torch.device, policy: SlowPolicy, measures: Callable[[int], bool]) -> None:
        """channel: where the second sync runs. measures: whether a step's errors are to be measured."""
        self.policy, self._measures = policy, measures
        computes_on_cores = channel.type == "cpu" and not torch.cuda.is_available()
        self.clock = StepClock(ranks_per_core() if computes_on_cores else 0.0)
        self.latest: dict[str, float] = {}
        self._step = 0
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

    @property
    def num_bytes(self) -> int:
        """Memory of the second sync on this rank, its scratch included."""
        return sum(bucket.num_bytes for bucket in self.buckets) + self._scratch.num_bytes

    def begin_step(self, number: int) -> bool:
        """An optimizer step begins; whether its gradient is synced exactly. Several optimizers may ask."""
        if number != self._step:
            measured, self._step = self._measures(self._step), number
            times = self.clock.end_step()
            if times["step_ms"]:
                self.policy.watch.add(**times, synced=times["slow_ms"] > 0)
            self.latest = {f"duo_{name}": times[name] for name in ("exposed_ms", "slow_ms", "window_ms", "busy_ms")}
            if measured and times["slow_ms"]:
                self.latest["duo_distance_per_lr"] = math.hypot(*(bucket.distance for bucket in self.buckets))
        return self.policy.syncs(number)

    def published(self, bucket_groups: list[Any]) -> None:
        """The step's result is there; a slow sync begins when these bucket groups have gathered it."""
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
        pending = [bucket for bucket in self.buckets if bucket.is_pending]
        if pending:
            self.clock.launched()
        measures = self._measures(self._step)
        for bucket in pending:
            bucket.launch(self._progress, self._scratch, self.policy.level.dtype, measures, self._done)

    def _done(self, bucket: DuoBucket) -> None:
        self._advance[bucket](bucket)
        self.clock.done(bucket.busy_ms)

    def make_room(self, bucket: DuoBucket) -> None:
        """Before a bucket's next gradient is kept: finish its slow step. What that takes is exposed."""
        if any(other.is_pending for other in self.buckets):
            self.launch()
        self.clock.arrived()
        self.clock.exposed_ms += bucket.wait()

    def pause(self) -> None:
        """Training stops for a while: wait for what is under way, and let the policy count nothing of this step."""
        for bucket in self.buckets:
            bucket.wait()
        self.clock.forget()

    def flush(self) -> None:
        """Finish every slow step that is due: x is then the state after all gradients so far."""
        self.launch()
        for bucket in self.buckets:
            bucket.wait()
