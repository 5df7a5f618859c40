"""Predicted against published TFLOP/s, one picture a table."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from tools.atomic_files import atomic_files
from tools.simulator.scores import Scores

# The palette of Okabe and Ito (2008).
IN_SAMPLE, LEFT_OUT = "#0072B2", "#D55E00"
BAND = 0.1  # shaded: within this relative error


def draw_tables(here: Scores, left: Scores | None, folder: Path) -> list[Path]:
    """Write `folder`/simulator_TABLE.png for every table; their paths."""
    return [_draw_table(table, here, left, folder) for table in here.by_table()]


def _draw_table(table: str, here: Scores, left: Scores | None, folder: Path) -> Path:
    figure, axes = plt.subplots(figsize=(5.6, 5.2), layout="constrained")
    measured = np.array([row.measured for row in here.rows if row.table == table])
    _band(axes, measured)
    if left:
        _points(axes, measured, left.of(table), "left out of the fit", LEFT_OUT, "^")
    _points(axes, measured, here.of(table), "in-sample", IN_SAMPLE, "o")
    axes.set_xlabel("published TFLOP/s per GPU")
    axes.set_ylabel("predicted TFLOP/s per GPU")
    axes.set_title(f"{table} ({len(measured)} rows; band: ±{BAND:.0%})", loc="left", fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    path = folder / f"simulator_{table.replace('/', '_')}.png"
    with atomic_files(path) as [temporary]:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return path


def _band(axes: Axes, measured: np.ndarray) -> None:
    ends = np.array([0.92 * measured.min(), 1.08 * measured.max()])
    axes.fill_between(ends, ends * (1 - BAND), ends * (1 + BAND), color="#999999", alpha=0.18, linewidth=0)
    axes.plot(ends, ends, color="#555555", linewidth=1)


def _points(axes: Axes, measured: np.ndarray, errors: np.ndarray, name: str, color: str, marker: str) -> None:
    label = f"{name}: mean error {np.mean(np.abs(errors)):.1%}"
    style = {"linestyle": "none", "marker": marker, "markersize": 6, "markerfacecolor": "none", "color": color}
    axes.plot(measured, measured * (1 + errors), label=label, **style)
