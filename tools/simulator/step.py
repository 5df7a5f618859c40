"""The time of a step, by parts that add up to it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tools.simulator.constants import Constants, read_calibration
from tools.simulator.data_parallel import Phases, SlowSync, optimizer_seconds, phases, slow_sync
from tools.simulator.job import Job
from tools.simulator.stages import Stage, boundary_seconds, stages


@dataclass(frozen=True)
class Parts:
    """Seconds of a step on the busiest pipeline stage; they add up to the step."""

    matrices: float
    attention: float
    elementwise: float
    tensor: float
    context: float
    boundary: float
    bubble: float
    host: float
    skew: float
    exposed_reduce: float
    exposed_gather: float
    optimizer: float
    exposed_slow: float

    @property
    def seconds(self) -> float:
        """The step."""
        return sum(getattr(self, part.name) for part in dataclasses.fields(self))


@dataclass(frozen=True)
class Prediction:
    """What a step takes. `compute_seconds`: forward and backward of all micro-batches, the bubble included.

    `slow_sync_seconds`, `fully_hidden`: of DUO's second sync; None without one.
    """

    job: Job
    parts: Parts
    compute_seconds: float
    reduce_seconds: float
    gather_seconds: float
    slow_sync_seconds: float | None
    fully_hidden: bool | None

    @property
    def step_seconds(self) -> float:
        """Wall time of a step."""
        return self.parts.seconds

    @property
    def exposed_seconds(self) -> float:
        """Data-parallel traffic that compute does not hide, codecs and the second sync included."""
        parts = self.parts
        return parts.exposed_reduce + parts.exposed_gather + parts.exposed_slow

    @property
    def tflops_per_gpu(self) -> float:
        """Model TFLOP/s of one device."""
        return self.job.tflops_per_gpu(self.step_seconds)


def predict(job: Job, constants: Constants | None = None) -> Prediction:
    """Predict a step; the constants are those of calibration.toml and the cluster unless given."""
    if constants is None:
        constants = read_calibration().constants(job.cluster)
    every = stages(job, constants)
    busiest = max(every, key=lambda stage: stage.seconds)
    data = [phases(job, constants, stage) for stage in (every[0], every[-1])]
    slow = slow_sync(job, constants)
    bubble = _bubble_seconds(job, every, busiest)
    parts = Parts(
        **_pass_parts(job, busiest),
        boundary=_boundary(job, constants, slow),
        bubble=bubble,
        host=_host_seconds(job, constants, busiest),
        skew=_skew_seconds(job, constants),
        exposed_reduce=max(phase.exposed_reduce for phase in data),
        exposed_gather=max(phase.exposed_gather for phase in data),
        optimizer=optimizer_seconds(job),
        exposed_slow=0.0,
    )
    compute = job.accumulation * busiest.seconds + bubble
    hidden = None if slow is None else slow.seconds < compute
    if slow is not None:
        parts = dataclasses.replace(parts, exposed_slow=_exposed_slow(slow, parts, data[0]))
    reduce, gather = (max(getattr(phase, name) for phase in data) for name in ("reduce", "gather"))
    return Prediction(job, parts, compute, reduce, gather, slow.seconds if slow else None, hidden)


def _pass_parts(job: Job, stage: Stage) -> dict[str, float]:
    """What the busiest stage does for all micro-batches."""
    compute = stage.forward.compute.plus(stage.backward.compute).times(job.accumulation)
    return compute._asdict() | {
        "tensor": job.accumulation * (stage.forward.tensor + stage.backward.tensor),
        "context": job.accumulation * (stage.forward.context + stage.backward.context),
    }


def _bubble_seconds(job: Job, every: tuple[Stage, ...], busiest: Stage) -> float:
    """1F1B: one micro-batch through all stages, less the busiest one; over the chunks where stages are interleaved."""
    if job.pp == 1:
        return 0.0
    first, middle, last = every[0], every[min(1, len(every) - 1)], every[-1]
    through = first.seconds + (job.pp - 2) * middle.seconds + last.seconds
    return (through - busiest.seconds) / job.virtual_pp


def _boundary(job: Job, constants: Constants, slow: SlowSync | None) -> float:
    """Transfers between stages, both ways, for every micro-batch, chunk and once through the pipeline; slower by what
    DUO's second sync takes of the line."""
    if job.pp == 1:
        return 0.0
    send = boundary_seconds(job, constants)
    crossing = job.tp * job.cp * job.dp >= job.cluster.devices
    free = 1 - slow.line_share if slow and crossing else 1.0
    return 2 * send / free * (job.accumulation * job.virtual_pp + job.pp - 1)


def _host_seconds(job: Job, constants: Constants, stage: Stage) -> float:
    """What waits for the host: its work on a micro-batch, the copy of attention masks, and the loader that makes them
    where it is slower than the devices."""
    work = 0.0 if job.transformer_engine else constants.micro_batch_ms * 1e-3
    if not job.mask_in_loader:
        return job.accumulation * work
    scores = job.micro_batch * job.seq**2
    work += scores / (constants.mask_gb_per_s * 1e9)
    waiting = scores / (constants.mask_gscores_per_s * 1e9) - stage.seconds - 2 * boundary_seconds(job, constants)
    return job.accumulation * max(work, waiting)


def _skew_seconds(job: Job, constants: Constants) -> float:
    """Replicas wait for each other's mask loaders: CP x PP ranks of a replica make masks, each for itself."""
    if not job.mask_in_loader or job.dp == 1:
        return 0.0
    return constants.loader_skew_ms * 1e-3 * (job.cp * job.pp - 1)


def _exposed_slow(slow: SlowSync, parts: Parts, data: Phases) -> float:
    """What DUO's second sync adds to a step: its copies, and what it lasts beyond it.

    It starts when the parameters are gathered; the fast reduction and the optimizer follow it.
    """
    alone = data.gather + slow.seconds + data.reduce + parts.optimizer
    return slow.copy_seconds + max(0.0, alone - parts.seconds)
