"""Step time against the bandwidth of a network card, by scheme, in one layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from tools.atomic_files import atomic_files
from tools.simulator.job import Job
from tools.simulator.planning import BreakEven, curve

# The palette of Okabe and Ito (2008), without yellow.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES = ("solid", (0, (6, 2)), (0, (1, 1.2)), "dashdot")
NUM_RATES = 60
SPAN = 100  # the picture reaches this factor below and above the cluster's own rate


def draw_plan(job: Job, schemes: Sequence[str], even: Sequence[BreakEven], path: Path) -> None:
    """Write the picture; dashed: the cluster's own bandwidth, points: where a scheme and the baseline take as long."""
    own = job.cluster.nic_gbps
    rates = np.geomspace(own / SPAN, own * SPAN, NUM_RATES)
    figure, axes = plt.subplots(figsize=(9, 5.2), layout="constrained")
    points = {point.scheme: point.gbps for point in even}
    for index, scheme in enumerate(schemes):
        color = COLORS[index % len(COLORS)]
        style = LINES[index % len(LINES)]
        axes.plot(
            rates, np.array(curve(job, scheme, rates)) * 1e3, color=color, linewidth=2, linestyle=style, label=scheme
        )
        gbps = points.get(scheme)
        if gbps is not None and rates[0] <= gbps <= rates[-1]:
            axes.plot(
                gbps, curve(job, scheme, [gbps])[0] * 1e3, "o", color=color, markersize=8, markerfacecolor="white"
            )
    axes.axvline(own, color="#555555", linewidth=1, linestyle="--")
    axes.annotate(f" {own:g} Gb/s", (own, 0.97), xycoords=("data", "axes fraction"), va="top", fontsize=9)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"Gb/s of a network card ({job.cluster.nics} a node)")
    axes.set_ylabel("ms a step")
    layout = f"TP {job.tp}, CP {job.cp}, PP {job.pp}, DP {job.dp}, micro-batch {job.micro_batch} x {job.accumulation}"
    axes.set_title(f"{job.model.name} on {job.gpus} x {job.cluster.device.name}, {layout}", loc="left", fontsize=10)
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with atomic_files(path) as [temporary]:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)
