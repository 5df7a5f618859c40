"""Draw how far DUO's published weights are from the exact ones, step by step: |y - x| / lr, from metrics files.

``python tools/plot_duo_distance.py runs/a/metrics.jsonl --output distance.png`` also prints whether it grows. Divided
by the learning rate, the distance is one step's compression error in units of Adam's update; were errors added up, it
would grow with the number of steps.
"""

from __future__ import annotations

import json
import statistics
import sys
from argparse import Namespace
from pathlib import Path

# Run as a file, Python looks for modules beside it; `tools` stands in the folder above.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from matplotlib import pyplot as plt

from tools.atomic_files import atomic_files
from tools.command_line import ToolArgumentParser, run_tool
from tools.plot_runs import COLORS, markdown_rows, smooth

METRIC = "duo_distance_per_lr"


def read_distances(path: Path) -> list[float]:
    """|y - x| / lr after every slow step, of a run with --log-compression-interval 1.

    Raises:
        ValueError: the file is cut off, or not of a run with DUO.
    """
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: not a whole metrics file ({error}); give one that --metrics-file has written"
        ) from error
    distances = [record[METRIC] for record in records if METRIC in record]
    if len(distances) < 10:
        remedy = "give a run of 10 or more with a duo preset and --log-compression-interval 1"
        raise ValueError(f"{path} has {METRIC} of {len(distances)} steps: {remedy}")
    return distances


def table(runs: dict[str, list[float]]) -> str:
    """A row for each run: the mean over its second tenth and over its last, and their ratio."""
    head = ["run", "steps", "mean of the second tenth", "mean of the last tenth", "last / second"]
    return markdown_rows([head, *(_row(*run) for run in runs.items())])


def _row(label: str, distances: list[float]) -> list[str]:
    tenth = len(distances) // 10
    early, late = statistics.fmean(distances[tenth : 2 * tenth]), statistics.fmean(distances[-tenth:])
    return [label, f"{len(distances):,}", f"{early:.2f}", f"{late:.2f}", f"{late / early:.2f}"]


def draw(runs: dict[str, list[float]], path: Path) -> None:
    """A line for each run, every step pale and the mean over 1 % of the steps on top."""
    figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
    for color, (label, distances) in zip(COLORS, runs.items(), strict=False):
        steps = range(1, len(distances) + 1)
        axes.plot(steps, distances, color=color, alpha=0.25, linewidth=0.6)
        axes.plot(steps, smooth(distances, len(distances) // 200 * 2 + 1), color=color, linewidth=1.6, label=label)
    axes.set_title("Distance of the published from the exact weights", loc="left", fontsize=11)
    axes.set_xlabel("step")
    axes.set_ylabel("|y − x| / learning rate")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)


def plot(options: Namespace) -> None:
    """All of it."""
    labels = options.labels or options.metrics
    if len(labels) != len(options.metrics):
        raise ValueError(f"{len(labels)} --labels for {len(options.metrics)} files: give one for each")
    runs = {label: read_distances(Path(path)) for label, path in zip(labels, options.metrics, strict=True)}
    print(table(runs))
    with atomic_files(Path(options.output)) as [picture]:
        draw(runs, picture)


def parse_arguments() -> Namespace:
    """The command line."""
    parser = ToolArgumentParser(__doc__.splitlines()[0])
    parser.add_argument("metrics", nargs="+", help="files of --metrics-file")
    parser.add_argument("--labels", nargs="+", help="names of the runs; their files by default")
    parser.add_argument("--output", required=True, help="the picture to write")
    return parser.parse_args()


if __name__ == "__main__":
    run_tool(lambda: plot(parse_arguments()))
