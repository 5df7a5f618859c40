"""The simulator's prediction beside each row of the low-bandwidth experiment, anchored on a few of these rows."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from tools.low_bandwidth_grid import Grid
from tools.simulator.anchor import MeasuredRun, anchor
from tools.simulator.constants import read_calibration
from tools.simulator.job import Job
from tools.simulator.machine import load_cluster
from tools.simulator.run_config import job_of, read_keys

Row = dict[str, Any]
CLUSTER = "emulated_2x2"
# Less than a minute of steps: these schemes on the fastest link with least to compute, and on the slowest with most.
ANCHOR_SCHEMES = ("baseline", "sdp4bit", "duo4bit")


def with_predictions(grid: Grid, rows: list[Row]) -> list[Row]:
    """`rows`, each with the simulator's `simulated_ms` and whether it `is_anchor`.

    The adaptive policy is a scheme that the simulator does not know: None.

    Raises:
        ValueError: there are fewer than two rows to anchor on.
    """
    first, last = (min(rows, key=_place)), (max(rows, key=_place))
    places = {_place(first), _place(last)}
    rows = [row | {"is_anchor": row["scheme"] in ANCHOR_SCHEMES and _place(row) in places} for row in rows]
    runs = [MeasuredRun(_job(grid, row), row["step_ms"] / 1e3) for row in rows if row["is_anchor"]]
    anchored = anchor(runs, read_calibration().constants(load_cluster(CLUSTER)))
    return [row | {"simulated_ms": _milliseconds(anchored, grid, row)} for row in rows]


def _place(row: Row) -> tuple[float, int]:
    """Fast links and little to compute come first."""
    return -row["link_mbit"], row["seq_length"] * row["accumulation"]


def _milliseconds(anchored: Any, grid: Grid, row: Row) -> float | None:
    if row["scheme"].endswith("adaptive"):
        return None
    return anchored.predict(_job(grid, row)).step_seconds * 1e3


def _job(grid: Grid, row: Row) -> Job:
    """The job of a row: its scheme, link rate, sequence and accumulation."""
    [scheme] = [scheme for scheme in grid.schemes if scheme.name == row["scheme"]]
    batch = grid.world_size * row["accumulation"]
    sizes = [f"seq-length={row['seq_length']}", f"global-batch-size={batch}", f"gpus={grid.world_size}"]
    link = [f"cluster={CLUSTER}", f"link-gbps={row['link_mbit'] / 1000:g}"]
    words = [Path(grid.config).stem, *link, *sizes, *_assignments(scheme.flags)]
    with contextlib.redirect_stderr(io.StringIO()):  # which of the run's keys have no effect on a prediction
        return job_of(read_keys(words))


def _assignments(flags: tuple[str, ...]) -> list[str]:
    """`--a --b 3` as the simulator reads it: `a=true`, `b=3`."""
    words: list[str] = []
    for flag in flags:
        if flag.startswith("--"):
            words.append(f"{flag.removeprefix('--')}=true")
        else:
            words[-1] = f"{words[-1].removesuffix('true')}{flag}"
    return words
