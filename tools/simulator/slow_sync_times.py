"""DUO's published times on slow links: how long its second sync and a step's compute take."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tools.simulator.constants import read_calibration
from tools.simulator.job import Job
from tools.simulator.published import THROUGHPUT, Row, read_csv, read_published
from tools.simulator.step import Prediction, predict

TIMES = THROUGHPUT.with_name("duo_low_bandwidth_times.csv")
COLUMNS = {"link_gbps", "seq", "accumulation", "slow_gradient_sync_ms", "computation_ms", "fully_hidden"}


@dataclass(frozen=True)
class SlowSyncTime:
    """One row, and the run it was measured in."""

    cells: dict[str, str]
    job: Job

    @cached_property
    def prediction(self) -> Prediction:
        """What is predicted for the run."""
        return predict(self.job, read_calibration().constants(self.job.cluster))

    @property
    def measured_ms(self) -> float | None:
        """The second sync as published; None where the cell is empty."""
        text = self.cells["slow_gradient_sync_ms"]
        return float(text) if text else None

    @property
    def predicted_ms(self) -> float:
        """The second sync as predicted."""
        return 1e3 * self.prediction.slow_sync_seconds

    @property
    def error(self) -> float:
        """Relative, signed."""
        return self.predicted_ms / self.measured_ms - 1

    @property
    def hidden(self) -> bool:
        """Whether it is predicted to fit behind the compute of a step."""
        return bool(self.prediction.fully_hidden)

    @property
    def flag_right(self) -> bool:
        """Whether that is what was published."""
        return self.hidden == (self.cells["fully_hidden"] == "yes")


def read_times(path: Path = TIMES) -> list[SlowSyncTime]:
    """All rows; the runs are DUO's of the same sequence, accumulation and link in the table duo_low_bandwidth.

    Raises:
        ValueError: a column is missing, or a cell is no number.
    """
    columns, rows = read_csv(path)
    missing = sorted(COLUMNS - set(columns))
    if missing:
        raise ValueError(f"{path}: the column '{missing[0]}' is missing; needed are {', '.join(sorted(COLUMNS))}")
    like = next(row for row in read_published() if row.cells["table"] == "duo_low_bandwidth" and row.job)
    return [SlowSyncTime(cells, _job(path, cells, like)) for cells in rows]


def score_times(times: list[SlowSyncTime]) -> list[SlowSyncTime]:
    """Those that have a published figure."""
    return [time for time in times if time.measured_ms is not None]


def _job(path: Path, cells: dict[str, str], like: Row) -> Job:
    try:
        link, seq, accumulation = float(cells["link_gbps"]), int(cells["seq"]), int(cells["accumulation"])
    except ValueError as error:
        raise ValueError(f"{path}: link_gbps, seq and accumulation have to be numbers ({error})") from error
    if min(link, seq, accumulation) <= 0:
        raise ValueError(f"{path}: link_gbps, seq and accumulation have to be positive")
    return like.job.replace(cluster=like.job.cluster.with_link(link), seq=seq, accumulation=accumulation)
