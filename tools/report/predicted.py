"""What the simulator says of a table's rows, through its command; or in words why it says nothing."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.sweep.cells import Cell, read_rows
from tools.sweep.runs import Run
from tools.sweep.sweep_file import ROOT


def predictions(runs: list[Run], given: Path | None) -> tuple[dict[str, Cell], str]:
    """Run -> the simulator's columns, and in words why there are none.

    Args:
        runs: the rows of one table.
        given: a CSV that the simulator has written before; it is asked now if None.

    Raises:
        ValueError: the simulator fails, or ``given`` is damaged.
    """
    simulator = runs[0].sweep.simulator
    if given is not None:
        return {row["id"]: row for row in read_rows(given)}, ""
    if not simulator:
        return {}, "not predicted"
    if importlib.util.find_spec("tools.simulator") is None:
        return {}, "the simulator is not installed"
    with tempfile.TemporaryDirectory() as folder:
        rows, out = Path(folder) / "published.csv", Path(folder) / "predicted.csv"
        write_rows(rows, [_row(run) for run in runs if not run.obstacle])
        words = [sys.executable, "-m", "tools.simulator", simulator, "--published", str(rows), "--out", str(out)]
        ran = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
        if f"invalid choice: '{simulator}'" in ran.stderr:
            return {}, "the simulator does not predict this table"
        if ran.returncode:
            raise ValueError(f"the simulator failed with exit code {ran.returncode}: {ran.stderr.strip()[-500:]}")
        return {row["id"]: row for row in read_rows(out)}, ""


def _row(run: Run) -> Cell:
    """The run's row with the columns of configs/published/throughput.csv, also where it comes from a grid."""
    derived = {"id": run.id, "table": run.sweep.name, "cluster": run.cluster, "gpus": str(run.num_ranks)}
    derived |= {"link_gbps": "", "measured_tflops_per_gpu": "", "std": "", "status": "not_reported"}
    if "tp" in run.cell:
        product = int(run.cell["tp"]) * int(run.cell["cp"]) * int(run.cell["pp"])
        batch = run.flags["global-batch-size"]
        data_parallel = run.num_ranks // product
        derived |= {
            "dp": str(data_parallel),
            "accumulation": str(batch // (data_parallel * int(run.cell["micro_batch"]))),
        }
    return derived | {column: value for column, value in run.cell.items() if value}


def write_rows(path: Path, rows: list[Cell]) -> None:
    """Write rows as CSV, with every column that one of them has."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
