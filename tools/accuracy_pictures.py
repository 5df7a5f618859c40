"""The pictures of an experiment: training losses, and the paired differences of the validation losses by seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from tools.accuracy_statistics import Comparison, Outcome
from tools.experiment import Experiment
from tools.plot_runs import COLORS, MARKERS, smooth

# Of a scale of differences, in %.
TICKS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


def draw_curves(experiment: Experiment, outcomes: Sequence[Outcome], path: Path) -> None:
    """Left the training loss of every variant, right its difference from the reference in %; means over the seeds."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    differences: list[float] = []
    curves = {v.name: _mean_curve([o for o in outcomes if o.variant == v.name]) for v in experiment.variants}
    reference = curves[experiment.reference]
    width, narrow = (len(reference) // share // 2 * 2 + 1 for share in (10, 40))
    for index, (name, curve) in enumerate(curves.items()):
        style = {
            "color": COLORS[index % len(COLORS)],
            "linestyle": "-" if index < len(COLORS) else "--",
            "linewidth": 1.6,
        }
        steps = np.arange(1, len(curve) + 1)
        left.plot(steps, smooth(curve, narrow), label=name, **style)
        difference = smooth(100 * (curve / reference - 1), width)
        right.plot(steps, difference, **style)
        differences += difference.tolist()
    _dress(left, f"Training loss, mean over {narrow} steps", "step", "loss (nats per token)")
    title = f"Difference from {experiment.reference}, mean over {width} steps"
    _dress(right, title, "step", "difference (%); logarithmic beyond 1")
    _stretch(right.yaxis, _limits(differences))
    left.legend(frameon=False)
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)


def _mean_curve(outcomes: Sequence[Outcome]) -> np.ndarray:
    return np.mean([outcome.metrics.lm_loss for outcome in outcomes], axis=0)


def draw_differences(experiment: Experiment, comparisons: Sequence[Comparison], path: Path) -> None:
    """A row for each variant but the reference: a point for each seed, a line for the mean, a band for the demand."""
    rows = [comparison for comparison in comparisons if comparison.variant.name != experiment.reference]
    figure, axes = plt.subplots(figsize=(9, 1.4 + 0.7 * len(rows)), layout="constrained")
    _stretch(axes.xaxis, _limits(value for row in rows for value in (*row.differences, *_demanded(row))))
    for height, row in enumerate(rows):
        _draw_demand(axes, row, height)
        axes.plot([row.mean] * 2, [height - 0.3, height + 0.3], color="black", linewidth=2)
        for index, difference in enumerate(row.differences):
            style = {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}
            label = f"seed {experiment.seeds[index]}" if height == 0 else None
            axes.plot(difference, height, linestyle="none", markerfacecolor="white", label=label, **style)
    axes.axvline(0, color="gray", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row.variant.name for row in rows])
    axes.invert_yaxis()
    title = "Difference of the validation loss; line: mean, green: what is demanded of it"
    _dress(axes, title, f"difference from {experiment.reference} (%), above 0 is worse; logarithmic beyond 1", None)
    figure.legend(frameon=False, loc="outside right upper")
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)


def _limits(values: Iterable[float]) -> tuple[float, float]:
    """Around 0 and all values, with some room; those that are infinite or NaN have no place."""
    shown = [0.0, *(value for value in values if math.isfinite(value))]
    return min(shown) * 1.2 - 0.05, max(shown) * 1.2 + 0.05


def _demanded(row: Comparison) -> tuple[float, float]:
    """The range that is demanded of the mean; infinite where it is open."""
    within = math.inf if row.variant.within is None else row.variant.within
    at_least = -math.inf if row.variant.at_least is None else row.variant.at_least
    return max(-within, at_least), within


def _draw_demand(axes: Axes, row: Comparison, height: int) -> None:
    begin, end = np.clip(_demanded(row), *axes.get_xlim())
    if row.verdict:
        axes.barh(height, end - begin, left=begin, height=0.8, color="#009E73", alpha=0.18)


def _stretch(axis: Axis, limits: tuple[float, float]) -> None:
    """Linear up to 1 %, where the demands on the method lie, and logarithmic beyond, where the controls do."""
    set_scale = axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale
    set_scale("symlog", linthresh=1.0, linscale=1.5)
    axis.set_major_locator(FixedLocator([-tick for tick in TICKS] + [0.0, *TICKS]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    (axis.axes.set_xlim if axis.axis_name == "x" else axis.axes.set_ylim)(*limits)


def _dress(axes: Axes, title: str, x: str, y: str | None) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y or "")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
