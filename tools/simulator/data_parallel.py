"""Data-parallel phases of a step: gradient reduction, parameter gather, optimizer, and DUO's second sync."""

from __future__ import annotations

from dataclasses import dataclass

from tools.simulator.constants import Constants
from tools.simulator.job import Job, place
from tools.simulator.network import exchange_seconds, gather_seconds, line_rate, ring_seconds
from tools.simulator.stages import Stage
from tools.simulator.traffic import Traffic, data_traffic

# The first bucket of gradients is complete only after a part of the backward pass, the last one at its end: this
# share of a reduction is exposed however long the backward pass is.
LAST_BUCKET = 0.05


@dataclass(frozen=True)
class Phases:
    """Seconds of one stage's reduction and gather, codecs included, and what is left of them after overlap."""

    reduce: float
    gather: float
    exposed_reduce: float
    exposed_gather: float


def phases(job: Job, constants: Constants, stage: Stage) -> Phases:
    """The data-parallel phases of `stage`.

    Megatron reduces bucket by bucket behind the last micro-batch's backward pass on the first stage; later stages have
    a single bucket, but end their backward pass earlier, by as many passes as stages precede them. A gather hides
    behind the first micro-batch's forward pass, and behind the stages before it.
    """
    codec = job.cluster.device.codec_bytes_per_s
    traffic = data_traffic(job, stage.index)
    backward = stage.backward.seconds * max(stage.index, 1) if job.overlap_grad_reduce else None
    forward = stage.forward.seconds * (stage.index + 1) if job.overlap_param_gather else None
    rate = constants.bucket_efficiency if job.cluster.network == "rdma" else 1.0
    reduce = _behind(
        _reduce_seconds(job, constants, traffic), traffic.reduce_codec / codec, backward, rate, LAST_BUCKET
    )
    gather = _behind(_gather_seconds(job, constants, traffic), traffic.gather_codec / codec, forward, rate, 0.0)
    return Phases(reduce[0], gather[0], reduce[1], gather[1])


def _reduce_seconds(job: Job, constants: Constants, traffic: Traffic) -> float:
    """The collectives of a reduction in one piece. Gloo has no reduce-scatter: torch makes an all-reduce of it."""
    cluster, group = job.cluster, place(job.data_ranks, job.tp, job.cluster.devices)
    times = 2 if cluster.collectives == "gloo" else 1
    seconds = times * ring_seconds(traffic.ring, group, cluster, constants)
    seconds += exchange_seconds(traffic.intra, group.local, False, cluster, constants)
    return seconds + exchange_seconds(traffic.inter, group.nodes, True, cluster, constants)


def _gather_seconds(job: Job, constants: Constants, traffic: Traffic) -> float:
    """The parameter gather in one piece."""
    group = place(job.data_ranks, job.tp, job.cluster.devices)
    collective = gather_seconds if job.comm.compresses_weights else ring_seconds
    return collective(traffic.gather, group, job.cluster, constants)


def _behind(network: float, codec: float, window: float | None, rate: float, least: float) -> tuple[float, float]:
    """Seconds of a phase, and what of them is exposed behind `window` seconds of compute (None: no overlap).

    Bucket by bucket, collectives reach `rate` of what they do in one piece; the share `least` is exposed in any case,
    and no more than the phase would take in one piece.
    """
    whole = network + codec
    if window is None:
        return whole, whole
    seconds = network / rate + codec
    return seconds, min(max(seconds - window, least * seconds), whole)


def optimizer_seconds(job: Job) -> float:
    """The optimizer and what surrounds it, as memory traffic of the largest stage.

    Of every gradient: zeroing writes 4 bytes, scaling reads and writes 4. Of the shard: the norm reads 4, Adam reads
    16 and writes 12, the cast reads 4 and writes a model parameter.
    """
    parameters = max(job.model.stage_parameters(job.tp, job.pp, stage) for stage in {0, job.pp - 1})
    shard = parameters / (job.data_ranks if job.distributed_optimizer else 1)
    device = job.cluster.device
    return (12 * parameters + (36 + device.parameter_bytes) * shard) / device.bytes_per_s


@dataclass(frozen=True)
class SlowSync:
    """DUO's second sync: its seconds, what share of the node's line it takes, and the device's copies for it."""

    seconds: float
    line_share: float
    copy_seconds: float


def slow_sync(job: Job, constants: Constants) -> SlowSync | None:
    """The exact gradients of the previous step, reduced over gloo from host memory; None without DUO.

    The host sends a message, then sums what has arrived: both times add up. Every rank's host process works for
    itself, the line is the node's; where all collectives are gloo's, the nodes sum in shared memory first, and one
    part in (ranks of a node) is left to send. The device copies each bucket once before it leaves.
    """
    if not job.comm.fast_slow_grad_reduce or job.data_ranks == 1:
        return None
    group = place(job.data_ranks, job.tp, job.cluster.devices)
    parameters = job.model.stage_parameters(job.tp, job.pp, 0)
    element = 4 if job.comm.duo_slow_dtype == "fp32" else 2
    sent = element * parameters * (group.size - 1) / group.size
    leaving, rate = sent * job.cluster.devices / group.local, job.cluster.node_bytes_per_s
    if job.cluster.collectives == "gloo":
        leaving = element * parameters * (group.nodes - 1) / group.nodes * job.cluster.devices / group.local
        rate = line_rate(job.cluster, constants)
    line = leaving / rate if group.nodes > 1 else 0.0
    seconds = line + sent / (constants.host_reduce_gb_per_s * 1e9)
    return SlowSync(seconds, line / seconds, 8 * parameters / job.cluster.device.bytes_per_s)
