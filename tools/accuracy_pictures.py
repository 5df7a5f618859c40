"""The pictures of an experiment: training losses, and the paired differences of the validation losses by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from tools.accuracy_statistics import Comparison, Outcome
from tools.experiment import Experiment
from tools.plot_runs import COLORS, MARKERS, smooth


def draw_curves(experiment: Experiment, outcomes: Sequence[Outcome], path: Path) -> None:
    """Left the training loss of every variant, right its difference from the reference in %; means over the seeds."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    curves = {v.name: _mean_curve([o for o in outcomes if o.variant == v.name]) for v in experiment.variants}
    reference = curves[experiment.reference]
    width, narrow = (len(reference) // share // 2 * 2 + 1 for share in (10, 40))
    for index, (name, curve) in enumerate(curves.items()):
        color, steps = COLORS[index % len(COLORS)], np.arange(1, len(curve) + 1)
        left.plot(steps, smooth(curve, narrow), color=color, linewidth=1.6, label=name)
        right.plot(steps, smooth(100 * (curve / reference - 1), width), color=color, linewidth=1.6)
    _dress(left, f"Training loss, mean over {narrow} steps", "step", "loss (nats per token)")
    title = f"Difference from {experiment.reference}, mean over {width} steps"
    _dress(right, title, "step", "difference of the training loss (%)")
    left.legend(frameon=False)
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)


def _mean_curve(outcomes: Sequence[Outcome]) -> np.ndarray:
    return np.mean([outcome.metrics.lm_loss for outcome in outcomes], axis=0)


def draw_differences(experiment: Experiment, comparisons: Sequence[Comparison], path: Path) -> None:
    """A row for each variant but the reference: a point for each seed, a line for the mean, a band for the demand."""
    rows = [comparison for comparison in comparisons if comparison.variant.name != experiment.reference]
    figure, axes = plt.subplots(figsize=(9, 1.4 + 0.7 * len(rows)), layout="constrained")
    axes.set_xlim(*_limits(rows))
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
    _dress(axes, title, f"difference from {experiment.reference} (%), above 0 is worse", None)
    figure.legend(frameon=False, loc="outside right upper")
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)


def _limits(rows: Sequence[Comparison]) -> tuple[float, float]:
    """Every point and the inner edge of every demand, with some room; NaN has no place."""
    values = [0.0, *(value for row in rows for value in row.differences if math.isfinite(value))]
    values += [edge for row in rows for edge in _demanded(row) if math.isfinite(edge)]
    room = 0.1 * (max(values) - min(values) or 1.0)
    return min(values) - room, max(values) + room


def _demanded(row: Comparison) -> tuple[float, float]:
    """The range that is demanded of the mean; infinite where it is open."""
    within = math.inf if row.variant.within is None else row.variant.within
    at_least = -math.inf if row.variant.at_least is None else row.variant.at_least
    return max(-within, at_least), within


def _draw_demand(axes: Axes, row: Comparison, height: int) -> None:
    begin, end = np.clip(_demanded(row), *axes.get_xlim())
    if row.verdict:
        axes.barh(height, end - begin, left=begin, height=0.8, color="#009E73", alpha=0.18)


def _dress(axes: Axes, title: str, x: str, y: str | None) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y or "")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
