"""One micro-batch in one pipeline stage: its compute, and what tensor, context and pipeline parallelism send."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from tools.simulator.compute import Pass, head_passes, layer_passes
from tools.simulator.constants import Constants
from tools.simulator.job import Job, place
from tools.simulator.network import ring_seconds, send_seconds

# Collectives of a layer and pass. In the backward pass two of the four hide behind products, unless Megatron's
# asynchronous tensor-parallel communication is off.
COLLECTIVES, ASYNCHRONOUS = 4, 2


@dataclass(frozen=True)
class Direction:
    """Seconds of one micro-batch in one stage, forward or backward."""

    compute: Pass
    tensor: float
    context: float

    @property
    def seconds(self) -> float:
        """All of it: nothing of one part hides behind another, beyond what the parts themselves say."""
        return self.compute.seconds + self.tensor + self.context


@dataclass(frozen=True)
class Stage:
    """One pipeline stage."""

    index: int
    forward: Direction
    backward: Direction

    @property
    def seconds(self) -> float:
        """Forward and backward of one micro-batch."""
        return self.forward.seconds + self.backward.seconds


@lru_cache(maxsize=4096)
def stages(job: Job, constants: Constants) -> tuple[Stage, ...]:
    """The first stage, the second where it is another one, and the last, which has the output layer."""
    layers = job.model.num_layers // job.pp
    forward, backward = layer_passes(job, constants)
    collective = tensor_seconds(job, constants)
    exposed = COLLECTIVES - (ASYNCHRONOUS if job.async_tensor_parallel else 0)
    again = COLLECTIVES if job.recompute == "full" else 0
    context = [
        context_seconds(job, constants, done.attention, tensors) for done, tensors in ((forward, 2), (backward, 4))
    ]
    body = (
        Direction(forward.times(layers), layers * COLLECTIVES * collective, layers * context[0]),
        Direction(backward.times(layers), layers * (exposed + again) * collective, layers * context[1]),
    )
    head = tuple(
        Direction(part.compute.plus(extra), part.tensor, part.context)
        for part, extra in zip(body, head_passes(job, constants), strict=True)
    )
    indices = sorted({0, min(1, job.pp - 1), job.pp - 1})
    return tuple(Stage(index, *(head if index == job.pp - 1 else body)) for index in indices)


def tensor_seconds(job: Job, constants: Constants) -> float:
    """One all-gather or reduce-scatter of a micro-batch's activations; an all-reduce counts as two."""
    if job.tp == 1:
        return 0.0
    num_bytes = job.tokens * job.model.hidden * job.cluster.device.parameter_bytes
    group = place(job.tp, 1, job.cluster.devices)
    return ring_seconds(num_bytes, group, job.cluster, constants) + constants.tensor_step_us * 1e-6


def context_seconds(job: Job, constants: Constants, attention: float, tensors: int) -> float:
    """What a layer's ring does not hide: `tensors` of keys' size are passed on during a block of attention."""
    if job.cp == 1:
        return 0.0
    group = place(job.cp, job.tp, job.cluster.devices)
    width = job.model.query_groups * job.model.channels / job.tp * job.cluster.device.parameter_bytes
    senders = job.cluster.devices / group.local
    send = send_seconds(tensors * job.tokens * width, senders, group.nodes > 1, job.cluster, constants)
    return (job.cp - 1) * max(0.0, send - attention / job.cp)


def boundary_seconds(job: Job, constants: Constants) -> float:
    """Sending one micro-batch's activations, or their gradients, to the neighbouring stage."""
    if job.pp == 1:
        return 0.0
    crossing = job.tp * job.cp * job.dp >= job.cluster.devices
    num_bytes = job.tokens * job.model.hidden * job.cluster.device.parameter_bytes / job.tp
    return send_seconds(num_bytes, job.cluster.devices, crossing, job.cluster, constants)
