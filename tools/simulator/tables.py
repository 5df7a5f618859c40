"""`python -m tools.simulator tables`: predictions beside every row of a published table."""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from pathlib import Path

from tools.atomic_files import atomic_files
from tools.simulator import cpu_nodes, published, slow_sync_times
from tools.simulator.memory import fits, memory
from tools.simulator.step import Prediction, predict

PREDICTED = (
    "predicted_tflops_per_gpu", "step_seconds", "compute_seconds", "exposed_seconds", "slow_sync_seconds",
    "fully_hidden", "memory_gib", "feasible",
)  # fmt: skip
# What `feasible` says.
FITS, OUT_OF_MEMORY, NO_LAYOUT = "yes", "out_of_memory", "no_layout"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument(
        "--published",
        required=True,
        help="throughput.csv, duo_low_bandwidth_times.csv, cpu_1p3b.csv, or a file like it",
    )
    parser.add_argument("--out", required=True, help="the CSV file to write")


def run(args: argparse.Namespace) -> None:
    """Write the table with the predicted columns.

    Raises:
        ValueError: the columns are those of no known table, or a row makes no sense.
    """
    path = Path(args.published)
    columns, _ = published.read_csv(path)
    rows = _rows(path, set(columns))
    names = [*columns, *(name for name in rows[0] if name not in columns)]
    with atomic_files(Path(args.out)) as [temporary], temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    counts = Counter(row["feasible"] for row in rows)
    print(f"{len(rows)} rows: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    print(f"table: {args.out}")


def _rows(path: Path, columns: set[str]) -> list[dict[str, str]]:
    """The rows with their predictions, by the kind of table that the columns tell."""
    if columns >= published.COLUMNS:
        return [row.cells | throughput_cells(row) for row in published.read_published(path)]
    if columns >= slow_sync_times.COLUMNS:
        return [time.cells | cells(time.prediction) for time in slow_sync_times.read_times(path)]
    if columns >= cpu_nodes.COLUMNS:
        return [row.cells | cpu_cells(row) for row in cpu_nodes.read_cpu_nodes(path)]
    raise ValueError(f"{path}: its columns are those of none of throughput, duo_low_bandwidth_times and cpu_1p3b")


def throughput_cells(row: published.Row) -> dict[str, str]:
    """The predicted cells of a throughput row; without a layout they are empty."""
    if row.job is None:
        return dict.fromkeys(PREDICTED, "") | {"feasible": NO_LAYOUT}
    return cells(predict(row.job))


def cells(prediction: Prediction) -> dict[str, str]:
    """The predicted cells of a job."""
    needed = memory(prediction.job)
    slow = prediction.slow_sync_seconds
    values = {
        "predicted_tflops_per_gpu": f"{prediction.tflops_per_gpu:.2f}",
        "step_seconds": f"{prediction.step_seconds:.4f}",
        "compute_seconds": f"{prediction.compute_seconds:.4f}",
        "exposed_seconds": f"{prediction.exposed_seconds:.4f}",
        "slow_sync_seconds": "" if slow is None else f"{slow:.4f}",
        "fully_hidden": {None: "", True: "yes", False: "no"}[prediction.fully_hidden],
        "memory_gib": f"{needed.gib:.2f}",
    }
    return values | {"feasible": FITS if fits(prediction.job, needed) else OUT_OF_MEMORY}


def cpu_cells(row: cpu_nodes.CpuRow) -> dict[str, str]:
    """The same for CPU nodes, whose FLOP/s count recompute where the table does."""
    if row.prediction is None:
        return dict.fromkeys(PREDICTED, "") | {"feasible": NO_LAYOUT}
    return cells(row.prediction) | {"predicted_tflops_per_gpu": f"{row.predicted_tflops:.3f}"}
