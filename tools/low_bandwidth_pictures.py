"""The pictures of the low-bandwidth experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator, ScalarFormatter

from tools import plot_runs
from tools.low_bandwidth_numbers import cell_of, cells

COLORS, MARKERS = (*plot_runs.COLORS, "#888888"), plot_runs.MARKERS + "*"
# Parts of a step and their colours, in the order in which they are drawn.
PARTS = {"computation": COLORS[0], "exposed: gradients and parameters": COLORS[1], "optimizer and the rest": "#bbbbbb"}


def draw_step_times(steps: list[dict[str, Any]], path: Path) -> None:
    """Step time against link rate, a line a scheme, a field a shape; both axes logarithmic."""
    shapes = {cell.shape_words: cell for cell in sorted(cells(steps), key=lambda cell: cell.work)}
    columns = min(len(shapes), 2)
    num_rows = -(-len(shapes) // columns)
    size = (5.5 * columns, 4.0 * num_rows)
    figure, fields = plt.subplots(num_rows, columns, figsize=size, layout="constrained", squeeze=False)
    schemes = list(dict.fromkeys(row["scheme"] for row in steps))
    for field, shape in zip(fields.flat, shapes, strict=False):
        for index, scheme in enumerate(schemes):
            own = [r for r in steps if r["scheme"] == scheme and cell_of(r).shape_words == shape]
            own.sort(key=lambda row: row["link_mbit"])
            style = {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}
            field.plot([r["link_mbit"] for r in own], [r["step_ms"] for r in own], label=scheme, linewidth=1.4, **style)
        _dress(field, shape, sorted({row["link_mbit"] for row in steps}))
    for field in fields.flat[len(shapes) :]:
        field.set_axis_off()
    handles, labels = fields.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)


def _dress(field: Any, title: str, rates: list[float]) -> None:
    field.set(xscale="log", yscale="log", title=title, xlabel="link (Mbit/s)", ylabel="step (ms)")
    field.xaxis.set_major_locator(FixedLocator(rates))
    field.xaxis.set_minor_locator(NullLocator())
    field.xaxis.set_major_formatter(ScalarFormatter())
    field.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0, 7.0)))
    field.yaxis.set_major_formatter(ScalarFormatter())
    field.yaxis.set_minor_formatter(NullFormatter())
    field.grid(visible=True, alpha=0.3, which="both")
    field.spines[["top", "right"]].set_visible(False)


def draw_timeline(steps: list[dict[str, Any]], path: Path) -> None:
    """Where a step's time goes at the slowest rate: a bar a scheme; DUO's slow sync as a line below its bar."""
    slowest = min(row["link_mbit"] for row in steps)
    at_slowest = {key: rows for key, rows in cells(steps).items() if key.link_mbit == slowest}
    chosen = [min(at_slowest, key=lambda cell: cell.work), max(at_slowest, key=lambda cell: cell.work)]
    chosen = list(dict.fromkeys(chosen))
    figure, fields = plt.subplots(len(chosen), 1, figsize=(9, 4.2 * len(chosen)), layout="constrained", squeeze=False)
    for field, key in zip(fields.flat, chosen, strict=True):
        for height, (_name, row) in enumerate(at_slowest[key].items()):
            begin = 0.0
            rest = max(row["step_ms"] - row["compute_ms"] - row["exposed_ms"], 0.0)
            for (part, color), length in zip(PARTS.items(), (row["compute_ms"], row["exposed_ms"], rest), strict=True):
                field.barh(height, length, left=begin, color=color, height=0.5, label=part if height == 0 else None)
                begin += length
            if row.get("duo_slow_ms"):
                label = "DUO's slow sync, beside the computation"
                shown = label not in field.get_legend_handles_labels()[1]
                line = {"color": COLORS[3], "linewidth": 3, "label": label if shown else None}
                field.plot([0.0, row["duo_slow_ms"]], [height + 0.36] * 2, **line)
        field.set_yticks(range(len(at_slowest[key])), list(at_slowest[key]))
        field.invert_yaxis()
        field.set(title=f"One step at {key.words}", xlabel="ms")
        field.spines[["top", "right"]].set_visible(False)
    handles, labels = fields.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)
