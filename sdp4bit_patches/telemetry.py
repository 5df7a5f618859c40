"""What is watched while training: bytes by link, error by bucket, exposed milliseconds.

Bytes and waiting times are counted in every step, by additions on the host. Errors are measured in every
`interval`-th step only: there the exact result is computed as well, within the communication job, so that the training
thread waits for nothing more in the steps between.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sdp4bit_patches.progress import Handle


@dataclass
class _Sample:
    """What was gathered of one step."""

    intra_bytes: int = 0
    inter_bytes: int = 0
    exposed_ms: dict[str, float] = field(default_factory=dict)
    errors: dict[str, Tensor] = field(default_factory=dict)
    events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)

    def time(self, what: str, handle: Handle) -> None:
        """Wait for `handle`; on CUDA the stream waits and not the host, so events measure it."""
        if not torch.cuda.is_available():
            handle.wait()
            self._add(what, handle.exposed_ms)
            return
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        handle.wait()
        end.record()
        self.events.append((what, begin, end))

    def _add(self, what: str, milliseconds: float) -> None:
        self.exposed_ms[what] = self.exposed_ms.get(what, 0.0) + milliseconds

    def read_events(self) -> None:
        """Add up what events have measured; waits for the last of them."""
        for what, begin, end in self.events:
            end.synchronize()
            self._add(what, begin.elapsed_time(end))
        self.events.clear()


class Telemetry:
    """Collects samples by step; `take` gives those that are complete as flat metrics."""

    def __init__(self, interval: int) -> None:
        self.interval = interval
        # Steps by which the last message of a step is late: 1 where parameters are gathered in the next forward pass.
        self.lag = 0
        self._samples: dict[int, _Sample] = {}

    def measures(self, step: int) -> bool:
        """Whether errors of this step are to be measured."""
        return self.interval > 0 and step % self.interval == 0

    def count(self, step: int, link_bytes: Any) -> None:
        """Add what a message of `step` sends to other ranks."""
        if self.measures(step):
            sample = self._samples.setdefault(step, _Sample())
            sample.intra_bytes += link_bytes.intra
            sample.inter_bytes += link_bytes.inter

    def timed(self, step: int, what: str, handle: Handle) -> Handle:
        """`handle`, whose waiting time counts as exposed milliseconds of `what`."""
        if not self.measures(step):
            return handle

        return Handle(lambda: self._samples.setdefault(step, _Sample()).time(what, handle))

    def record(self, step: int, name: str, sent: Tensor, exact: Tensor, group: dist.ProcessGroup) -> None:
        """Record how far `sent` is from `exact` (this rank's shard of each), summed over the ranks of `group`."""
        error = sent.double() - exact.double()
        sums = torch.stack(
            [error.square().sum(), exact.double().square().sum(), error.sum(), exact.double().abs().sum()]
        )
        dist.all_reduce(sums, group=group)
        self._samples.setdefault(step, _Sample()).errors[name] = sums

    def take(self, step: int) -> dict[str, Any]:
        """The metrics of the newest sampled step that is complete at the end of `step`, once; empty between samples."""
        steps = [sampled for sampled in list(self._samples) if sampled <= step - self.lag]
        if not steps:
            return {}
        step = max(steps)
        sample = self._samples[step]
        for old in steps:
            del self._samples[old]
        sample.read_events()
        metrics: dict[str, Any] = {"compression_iteration": step}
        metrics |= {"bytes_intra_node": sample.intra_bytes, "bytes_inter_node": sample.inter_bytes}
        metrics |= {f"exposed_{what}_ms": value for what, value in sample.exposed_ms.items()}
        for name, sums in sample.errors.items():
            metrics |= {f"{name}_{key}": value for key, value in error_metrics(sums.tolist()).items()}
        return metrics


def error_metrics(sums: list[float]) -> dict[str, float]:
    """Relative error, SNR in dB and relative bias of [sum e^2, sum x^2, sum e, sum |x|].

    Relative error is |e| / |x| (2-norms), SNR is -20 log10 of it; bias is sum e / sum |x|, zero for unbiased rounding.
    """
    error_square, exact_square, error_sum, exact_sum = sums
    if exact_square == 0:
        # An error beside nothing at all has no relative size; beside NaN everything is NaN, here and below.
        figure, decibel = (math.nan, math.nan) if error_square else (0.0, math.inf)
        return {"relative_error": figure, "snr_db": decibel, "bias": figure}
    relative = math.sqrt(error_square / exact_square)
    decibel = -20 * math.log10(relative) if relative != 0 else math.inf
    return {"relative_error": relative, "snr_db": decibel, "bias": error_sum / exact_sum}
