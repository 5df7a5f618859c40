"""The picture of a report: published, measured and predicted figures side by side, one panel for each quantity."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from tools.plot_runs import COLORS, MARKERS
from tools.report.rows import Row
from tools.report.tables import naming_columns
from tools.sweep.cells import Cell

_KINDS = ("published", "measured", "predicted")
_UNSAID = {"dp", "seed"}
_UNITS = {
    "layers": "{} layers", "gpus": "{} GPUs", "nodes": "{} nodes", "node_clock_ghz": "{} GHz", "tp": "TP {}",
    "cp": "CP {}", "pp": "PP {}", "micro_batch": "micro {}", "accumulation": "acc {}", "global_batch": "batch {}",
    "activation_recompute": "recompute: {}", "seq": "seq {}", "link_gbps": "{} Gb/s", "group_size": "group {}",
}  # fmt: skip
_MOST_LABELLED = 48  # rows that can be told by name; more are drawn in the order of what was published


def draw(rows: list[Row], path: Path) -> bool:
    """Write the picture; False, and none, where the table has no number at all."""
    rows = [row for row in rows if any(_number(row, kind) is not None for kind in _KINDS)]
    if not rows:
        return False
    quantities = list(dict.fromkeys(row.result.name for row in rows))
    labels = {row.run.id: _label(row.run.cell, naming_columns(rows)) for row in rows}
    labelled = len(labels) <= _MOST_LABELLED
    size = (max(9.0, 3.0 * len(quantities) + 3.0), 1.6 + 0.25 * len(labels) if labelled else 5.0)
    figure, axes = plt.subplots(1, len(quantities), figsize=size, sharey=labelled, squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], quantities, strict=True):
        chosen = [row for row in rows if row.result.name == name]
        _draw_labelled(axis, chosen, labels) if labelled else _draw_ordered(axis, chosen)
    handles = {
        label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(rows[0].run.sweep.title, x=0.01, ha="left", fontsize=11)
    figure.savefig(path, dpi=130, format="png")
    plt.close(figure)
    return True


def _label(cell: Cell, naming: list[str]) -> str:
    """What tells a run from the others, such as `gpt-13b sdp4bit 64 GPUs TP 4 PP 2`."""
    given = [(name, cell[name]) for name in naming if name not in _UNSAID and cell.get(name)]
    return "  ".join(_UNITS.get(name, "{}").format(value) for name, value in given)


def _draw_labelled(axis: Axes, rows: list[Row], labels: dict[str, str]) -> None:
    places = {name: place for place, name in enumerate(labels)}
    for index, kind in enumerate(_KINDS):
        points = [(getattr(row, kind), places[row.run.id]) for row in rows if _number(row, kind) is not None]
        if points:
            axis.errorbar(
                [figure.number for figure, _ in points],
                [place for _, place in points],
                xerr=[figure.deviation for figure, _ in points],
                **_style(index, kind),
            )
    axis.set_yticks(range(len(labels)), labels.values(), fontsize=8)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    if rows[0].result.from_zero:
        axis.set_xlim(0, axis.get_xlim()[1] + 0.03 * axis.get_xlim()[1])
    axis.xaxis.set_major_locator(MaxNLocator(4))
    _finish(axis, "x")
    axis.set_xlabel(rows[0].result.name)


def _number(row: Row, kind: str) -> float | None:
    """What is drawn of a row; scaled-down runs are of another order than what they would stand beside."""
    return None if kind == "measured" and row.is_scaled else getattr(row, kind).number


def _draw_ordered(axis: Axes, rows: list[Row]) -> None:
    rows = sorted(rows, key=lambda row: (row.published.number is None, row.published.number or 0.0))
    for index, kind in enumerate(_KINDS):
        points = [(place, _number(row, kind)) for place, row in enumerate(rows)]
        points = [(place, number) for place, number in points if number is not None]
        if points:
            style = _style(index, kind) | {"markersize": 3.5}
            axis.errorbar(*zip(*points, strict=True), **style)
    published = any(row.published.number is not None for row in rows)
    order = "their published figure; last those without one" if published else "the table"
    axis.set_xlabel(f"runs, in the order of {order}")
    axis.set_ylabel(rows[0].result.name)
    numbers = [row.published.number for row in rows if row.published.number]
    if numbers and max(numbers) > 10 * min(numbers):
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
    _finish(axis, "y")


def _style(index: int, label: str) -> dict:
    return {
        "linestyle": "none", "color": COLORS[index], "marker": MARKERS[index], "markersize": 6, "capsize": 2,
        "markerfacecolor": "white" if index else COLORS[index], "label": label,
    }  # fmt: skip


def _finish(axis: Axes, grid: str) -> None:
    axis.grid(axis=grid, alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
