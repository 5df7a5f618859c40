"""Draw the loss curves of runs side by side and tell their main numbers, from files of ``--metrics-file``.

``python tools/plot_runs.py runs/a/metrics.jsonl runs/b/metrics.jsonl --output curves.png``
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Run as a file, Python looks for modules beside it; `tools` stands in the folder above.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from tools.atomic_files import atomic_files
from tools.command_line import ToolArgumentParser, positive_int, run_tool

# The palette of Okabe and Ito (2008), without yellow, which is hard to see on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vPX"
NUM_AVERAGED = 10  # iterations at each end of a run that its first and last loss are the mean of


class RunMetrics(NamedTuple):
    """One run: its iterations in order, and the values of each; a loss that was NaN or Inf is NaN.

    `sent_bytes`: what rank 0 sent in a step to ranks of its node and to other nodes, of the steps that were measured.
    """

    label: str
    iterations: list[int]
    lm_loss: list[float]
    validation: list[tuple[int, float]]
    step_ms: list[float]
    tokens_per_second: list[float]
    sent_bytes: list[tuple[int, int]]


def read_run(path: Path, label: str) -> RunMetrics:
    """Read a metrics file. Raises as :func:`read_records`."""
    records = read_records(path)
    return RunMetrics(
        label,
        [record["iteration"] for record in records],
        [_number(record["lm_loss"]) for record in records],
        [(r["iteration"], _number(r["validation_loss"])) for r in records if "validation_loss" in r],
        [record["step_ms"] for record in records],
        [record["tokens_per_second"] for record in records],
        [(r["bytes_intra_node"], r["bytes_inter_node"]) for r in records if "bytes_intra_node" in r],
    )


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file.

    Raises:
        ValueError: the file is empty, cut off in the middle of a line, or not a metrics file.
        OSError: it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text: give a file that --metrics-file has written") from error
    if not lines:
        raise ValueError(f"{path} is empty: the run has not finished an iteration")
    return [_record(line, path, number, len(lines)) for number, line in enumerate(lines, start=1)]


def _record(line: str, path: Path, number: int, num_lines: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        cut = "the file was cut off there; remove the line" if number == num_lines else "that is not JSON"
        raise ValueError(f"{path}, line {number}: {cut}, or resume the run, which repairs it") from error
    missing = {"iteration", "lm_loss", "step_ms", "tokens_per_second"} - set(record if isinstance(record, dict) else ())
    if missing:
        raise ValueError(f"{path}, line {number}: no {', '.join(sorted(missing))}; give a file of --metrics-file")
    return record


def _number(value: float | None) -> float:
    """JSON has no NaN: the trainer writes null."""
    return math.nan if value is None else value


def summarize(run: RunMetrics) -> dict[str, str]:
    """What the table tells of a run, formatted."""
    first, last = run.lm_loss[:NUM_AVERAGED], run.lm_loss[-NUM_AVERAGED:]
    validation = f"{run.validation[-1][1]:.4f} (iteration {run.validation[-1][0]})" if run.validation else "none"
    return {
        "iterations": f"{run.iterations[-1]:,}",
        f"loss, mean of first {len(first)}": f"{statistics.fmean(first):.4f}",
        f"loss, mean of last {len(last)}": f"{statistics.fmean(last):.4f}",
        "validation loss": validation,
        "ms per step, median": f"{statistics.median(run.step_ms):.1f}",
        "tokens/s, median": f"{statistics.median(run.tokens_per_second):,.0f}",
    } | (bytes_rows(*run.sent_bytes[-1]) if run.sent_bytes else {})


def bytes_rows(intra: int, inter: int) -> dict[str, str]:
    """The rows of the table that tell what a rank sends in a step."""
    sent = {"in its node": intra, "to other nodes": inter}
    return {f"MiB a rank sends per step {where}": f"{size / 2**20:.3f}" for where, size in sent.items()}


def markdown_table(columns: dict[str, dict[str, str]]) -> str:
    """A Markdown table, aligned for the terminal: one column a run, one row a number.

    Args:
        columns: label of a run -> name of a number -> its text.
    """
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    return markdown_rows(
        [["", *columns], *([name, *(column.get(name, "") for column in columns.values())] for name in names)]
    )


def markdown_rows(rows: list[list[str]]) -> str:
    """The same from rows of equal length; the first is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(_cells(row, widths)) + " |" for row in rows]
    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _cells(row: list[str], widths: list[int]) -> list[str]:
    return [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]


def smooth(values: Sequence[float], width: int) -> np.ndarray:
    """The mean of each value and its neighbours within ``width``, fewer at the ends; NaN is left out of the means."""
    values = np.asarray(values, dtype=float)
    counted = np.isfinite(values)
    window = np.ones(width)
    sums = np.convolve(np.where(counted, values, 0.0), window, mode="full")
    counts = np.convolve(counted.astype(float), window, mode="full")
    middle = slice((width - 1) // 2, (width - 1) // 2 + len(values))
    with np.errstate(invalid="ignore"):
        return sums[middle] / counts[middle]


def plot(runs: list[RunMetrics], path: Path, width: int) -> None:
    """Write the picture: every iteration's loss pale, its smoothed curve on top, validation as points."""
    figure, axes = plt.subplots(figsize=(9, 5.2), layout="constrained")
    for index, run in enumerate(runs):
        _draw(axes, run, index, width)
    axes.set_xlabel("iteration")
    axes.set_ylabel("loss (nats per token)")
    over = f"mean over {width} iterations" if width > 1 else "every iteration"
    points = "; points: validation" if any(run.validation for run in runs) else ""
    axes.set_title(f"Training loss, {over}{points}", loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)
    axes.legend(frameon=False)
    with atomic_files(path) as [temporary]:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)


def _draw(axes: Axes, run: RunMetrics, index: int, width: int) -> None:
    color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
    points = {"color": color, "marker": marker, "markerfacecolor": "white", "markersize": 6}
    # Dashed on top of the first, so that curves which coincide can both be seen.
    style = {"linewidth": 1.8, "linestyle": (0, (5, 2)) if index else "solid"}
    axes.plot(run.iterations, smooth(run.lm_loss, width), color=color, **style)
    if width > 1:
        axes.plot(run.iterations, run.lm_loss, color=color, alpha=0.3, linewidth=0.8, zorder=1)
    if run.validation:
        axes.plot(*zip(*run.validation, strict=True), linestyle="none", zorder=3, **points)
    axes.plot([], [], **style, label=run.label, **(points if run.validation else {"color": color}))


def plot_runs(args: Namespace) -> None:
    """Write the picture and print the table.

    Raises:
        ValueError: a metrics file is damaged, labels and files differ in number, or there are too many runs.
        OSError: a file cannot be read or written.
    """
    labels = args.labels or [Path(path).resolve().parent.name for path in args.metrics]
    if len(labels) != len(args.metrics):
        raise ValueError(f"--labels names {len(labels)} runs, but there are {len(args.metrics)} metrics files")
    if len(set(labels)) < len(labels):
        raise ValueError(f"two runs are called {', '.join(labels)}: tell them apart with --labels")
    if len(labels) > len(COLORS):
        raise ValueError(f"{len(labels)} metrics files: more than {len(COLORS)} curves can't be told apart, give fewer")
    runs = [read_run(Path(path), label) for path, label in zip(args.metrics, labels, strict=True)]
    plot(runs, Path(args.output), args.smooth or smoothing_width(runs))
    print(markdown_table({run.label: summarize(run) for run in runs}))
    print(f"\ncurves: {args.output}")


def smoothing_width(runs: list[RunMetrics]) -> int:
    """A fortieth of the longest run, odd, so that curves stay comparable."""
    return max(len(run.iterations) for run in runs) // 40 // 2 * 2 + 1


def parse_arguments() -> Namespace:
    """The command line."""
    parser = ToolArgumentParser(__doc__.splitlines()[0])
    parser.add_argument("metrics", nargs="+", help="files that --metrics-file has written")
    parser.add_argument("--output", required=True, help="the PNG to write")
    parser.add_argument("--labels", nargs="+", help="a name for each file; the name of its folder if not given")
    parser.add_argument(
        "--smooth", type=positive_int, help="iterations that a curve is the mean over; 1/40 of the run by default"
    )
    return parser.parse_args()


if __name__ == "__main__":
    run_tool(lambda: plot_runs(parse_arguments()))
