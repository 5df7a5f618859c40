"""All layouts of a model on a cluster: what each takes, which fit, and where compression pays."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sdp4bit_patches.config import PRESETS, CommConfig
from tools.simulator.job import Job
from tools.simulator.machine import Cluster
from tools.simulator.memory import Memory, fits, memory
from tools.simulator.model_shape import ModelShape
from tools.simulator.step import Prediction, predict

MICRO_BATCHES = (1, 2, 4, 8, 16)
# Line rates of a network card between which a break-even is looked for, Gb/s.
SLOWEST_GBPS, FASTEST_GBPS = 0.1, 6400.0


@dataclass(frozen=True)
class Candidate:
    """One layout and scheme; `reason` says why it cannot run, and is empty where it can."""

    prediction: Prediction
    memory: Memory
    reason: str

    @property
    def job(self) -> Job:
        """The training."""
        return self.prediction.job

    @property
    def scheme(self) -> str:
        """The preset's name."""
        return scheme_name(self.job.comm)


def scheme_name(comm: CommConfig) -> str:
    """The preset that `comm` is."""
    return next(name for name, knobs in PRESETS.items() if CommConfig(**knobs) == comm)


@dataclass(frozen=True)
class Request:
    """What is to be trained on what."""

    model: ModelShape
    cluster: Cluster
    gpus: int
    global_batch: int
    seq: int
    schemes: tuple[str, ...]


def candidates(request: Request) -> tuple[list[Candidate], dict[str, int]]:
    """Every layout and scheme, fastest first, those that cannot run last; and how many layouts cannot exist, by reason.

    Activations are recomputed in full where they do not fit otherwise.
    """
    found: list[Candidate] = []
    refused: dict[str, int] = {}
    for tp, cp, pp, micro in layouts(request):
        try:
            jobs = [_job(request, tp, cp, pp, micro, scheme) for scheme in request.schemes]
        except ValueError as error:
            reason = str(error)
            refused[reason] = refused.get(reason, 0) + 1
            continue
        found += [_candidate(job) for job in jobs]
    found.sort(key=lambda candidate: (bool(candidate.reason), candidate.prediction.step_seconds))
    return found, refused


def layouts(request: Request) -> Iterator[tuple[int, int, int, int]]:
    """(TP, CP, PP, micro-batch) to try: TP within a node, CP in powers of two, PP in divisors of the layers."""
    tensor = [size for size in range(1, request.cluster.devices + 1) if request.cluster.devices % size == 0]
    context = [size for size in (1, 2, 4, 8, 16) if size <= request.gpus]
    pipeline = [
        size
        for size in range(1, min(request.model.num_layers, request.gpus) + 1)
        if request.model.num_layers % size == 0
    ]
    for tp, cp, pp, micro in itertools.product(tensor, context, pipeline, MICRO_BATCHES):
        if request.gpus % (tp * cp * pp) == 0:
            yield tp, cp, pp, micro


def _job(request: Request, tp: int, cp: int, pp: int, micro: int, scheme: str) -> Job:
    dp = request.gpus // (tp * cp * pp)
    if request.global_batch % (dp * micro):
        raise ValueError(f"the global batch of {request.global_batch} is no multiple of replicas x micro-batch")
    return Job(
        request.model, request.cluster, CommConfig(**PRESETS[scheme]), tp=tp, cp=cp, pp=pp, dp=dp, micro_batch=micro,
        accumulation=request.global_batch // (dp * micro), seq=request.seq, sequence_parallel=tp > 1,
        overlap_grad_reduce=True, overlap_param_gather=True,
        transformer_engine=request.cluster.device.family != "cpu",
    )  # fmt: skip


def _candidate(job: Job) -> Candidate:
    needed = memory(job)
    if not fits(job, needed):
        job = job.replace(recompute="full")
        needed = memory(job)
    reason = ""
    if not fits(job, needed):
        parts = {
            "parameters": needed.parameters + needed.gradients + needed.optimizer,
            "activations": needed.activations,
        }
        largest = max(parts, key=parts.__getitem__)
        reason = f"{needed.gib:.1f} GiB of {job.cluster.device.memory_gib:g}, most of it {largest}"
    return Candidate(predict(job), needed, reason)


@dataclass(frozen=True)
class BreakEven:
    """Up to which line rate of a network card a scheme is faster than the baseline in the same layout.

    `gbps` is None where that is so at no rate or at every rate that was looked at; `saving`: the share of the
    baseline's step that the scheme saves at the cluster's own rate.
    """

    scheme: str
    gbps: float | None
    saving: float

    @property
    def pays(self) -> bool:
        """Whether the scheme is faster on this cluster."""
        return self.saving > 0


def break_even(job: Job, scheme: str) -> BreakEven:
    """Halve the logarithm of the rate until both take the same time; a scheme gains where links are slow."""

    def gain(gbps: float) -> float:
        here = job.replace(cluster=job.cluster.with_link(gbps))
        return step_seconds(here, "baseline") - step_seconds(here, scheme)

    saving = gain(job.cluster.nic_gbps) / step_seconds(job, "baseline")
    low, high = SLOWEST_GBPS, FASTEST_GBPS
    if gain(high) > 0 or gain(low) <= 0:
        return BreakEven(scheme, None, saving)
    while high / low > 1.01:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if gain(middle) > 0 else (low, middle)
    return BreakEven(scheme, (low * high) ** 0.5, saving)


def step_seconds(job: Job, scheme: str) -> float:
    """The step of the same training under a preset."""
    return predict(job.replace(comm=CommConfig(**PRESETS[scheme]))).step_seconds


def hiding_accumulation(job: Job) -> int | None:
    """The least accumulation from which DUO's second sync is hidden; None where its ranks have nothing to sync."""
    prediction = predict(job)
    if prediction.slow_sync_seconds is None:
        return None
    high = 1
    while not _hides(job, high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _hides(job, middle) else (middle, high)
    return high


def _hides(job: Job, accumulation: int) -> bool:
    return bool(predict(job.replace(accumulation=accumulation)).fully_hidden)


def curve(job: Job, scheme: str, rates: Sequence[float]) -> list[float]:
    """Step seconds at each line rate of a network card."""
    return [step_seconds(job.replace(cluster=job.cluster.with_link(rate)), scheme) for rate in rates]
