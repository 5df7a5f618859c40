"""The timeline of a predicted step: one row for each kind of work, to scale."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tools.atomic_files import atomic_files
from tools.simulator.step import Prediction

# The palette of Okabe and Ito (2008).
COLORS = {
    "compute": "#0072B2",
    "tensor parallel": "#56B4E9",
    "context parallel": "#009E73",
    "pipeline": "#CC79A7",
    "host": "#999999",
    "data parallel": "#E69F00",
    "exposed": "#D55E00",
    "slow sync": "#7F3C8D",
}


class Bar(NamedTuple):
    """A stretch of work: its row, when it starts, how long it lasts."""

    row: str
    start: float
    seconds: float


def bars(prediction: Prediction) -> list[Bar]:
    """What happens when, on the busiest stage. Kinds of work that alternate within micro-batches are drawn in one
    block each, one behind the other, since single micro-batches could not be told apart."""
    parts = prediction.parts
    result, now = [], parts.exposed_gather
    compute = parts.matrices + parts.attention + parts.elementwise
    blocks = (
        ("compute", compute),
        ("tensor parallel", parts.tensor),
        ("context parallel", parts.context),
        ("pipeline", parts.boundary + parts.bubble),
        ("host", parts.host + parts.skew),
    )
    for row, seconds in blocks:
        result.append(Bar(row, now, seconds))
        now += seconds
    hidden = prediction.reduce_seconds - parts.exposed_reduce
    result += [Bar("data parallel", 0.0, prediction.gather_seconds)]
    result += [Bar("data parallel", now - hidden, prediction.reduce_seconds)]
    result += [Bar("exposed", 0.0, parts.exposed_gather), Bar("exposed", now, parts.exposed_reduce)]
    result += [Bar("compute", now + parts.exposed_reduce, parts.optimizer)]
    if prediction.slow_sync_seconds:
        result.append(Bar("slow sync", prediction.gather_seconds, prediction.slow_sync_seconds))
        result.append(Bar("exposed", prediction.step_seconds - parts.exposed_slow, parts.exposed_slow))
    return [bar for bar in result if bar.seconds > 0]


def draw_timeline(prediction: Prediction, path: Path) -> None:
    """Write the picture."""
    drawn = bars(prediction)
    rows = [row for row in COLORS if any(bar.row == row for bar in drawn)]
    figure, axes = plt.subplots(figsize=(10, 1.4 + 0.5 * len(rows)), layout="constrained")
    for bar in drawn:
        axes.barh(rows.index(bar.row), bar.seconds, left=bar.start, color=COLORS[bar.row], height=0.62)
    for index, row in enumerate(rows):
        total = sum(bar.seconds for bar in drawn if bar.row == row)
        axes.text(1.01, index, _seconds_text(total), transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.axvline(prediction.step_seconds, color="black", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_xlim(0, prediction.step_seconds * 1.02)
    axes.set_xlabel("seconds of a step (dashed: its end)")
    axes.set_title(_title(prediction), loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    with atomic_files(path) as [temporary]:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)


def _title(prediction: Prediction) -> str:
    job = prediction.job
    layout = f"TP {job.tp}, CP {job.cp}, PP {job.pp}, DP {job.dp}, micro-batch {job.micro_batch} x {job.accumulation}"
    speed = f"{_seconds_text(prediction.step_seconds)} a step, {prediction.tflops_per_gpu:.1f} TFLOP/s per GPU"
    return f"{job.gpus} x {job.cluster.device.name}, {layout}: {speed}"


def _seconds_text(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"
