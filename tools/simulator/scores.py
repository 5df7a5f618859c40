"""How far predictions lie from published figures: errors by table, leave-one-table-out, ranks and speed-ups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from tools.simulator.constants import Calibration
from tools.simulator.fitting import Observation, fit, log_ratios
from tools.simulator.published import Row


@dataclass(frozen=True)
class Scores:
    """Relative errors of predicted TFLOP/s, signed, by row."""

    rows: tuple[Row, ...]
    errors: np.ndarray

    def by_table(self) -> dict[str, float]:
        """Mean absolute error of each table."""
        tables = sorted({row.table for row in self.rows})
        return {table: float(np.mean(np.abs(self.of(table)))) for table in tables}

    def of(self, table: str) -> np.ndarray:
        """Errors of one table."""
        return np.array([error for row, error in zip(self.rows, self.errors, strict=True) if row.table == table])

    @property
    def mean(self) -> float:
        """Mean over tables of their mean errors."""
        return float(np.mean(list(self.by_table().values())))

    @property
    def worst(self) -> float:
        """The largest mean error of a table."""
        return max(self.by_table().values())

    @property
    def percentile_90(self) -> float:
        """Of the absolute errors of all rows."""
        return float(np.percentile(np.abs(self.errors), 90))

    def worst_rows(self, count: int) -> list[tuple[Row, float]]:
        """The rows with the largest errors."""
        order = np.argsort(-np.abs(self.errors))[:count]
        return [(self.rows[index], float(self.errors[index])) for index in order]


def scores(rows: Iterable[Row], calibration: Calibration) -> Scores:
    """Errors of the measured rows under one calibration."""
    measured = tuple(row for row in rows if row.measured and row.job)
    seen = [Observation(row.table, row.job, row.measured) for row in measured]
    return Scores(measured, np.exp(log_ratios(seen, calibration)) - 1)


def leave_one_table_out(rows: Sequence[Row], start: Calibration, tables: Iterable[str]) -> Scores:
    """Errors of every table under a calibration that is fitted without it. `tables`: their names, say through tqdm."""
    left = [leave_out(rows, start, {table}) for table in tables]
    return Scores(tuple(row for part in left for row in part.rows), np.concatenate([part.errors for part in left]))


def leave_out(rows: Sequence[Row], start: Calibration, tables: set[str]) -> Scores:
    """Errors of some tables under a calibration that is fitted without all of them."""
    calibration = fit([row for row in rows if row.table not in tables], start)
    return scores([row for row in rows if row.table in tables], calibration)


def rank_correlation(part: Scores, table: str) -> float:
    """Spearman's, between measured and predicted TFLOP/s of the rows whose table's name begins with `table`."""
    chosen = [
        (row.measured, error) for row, error in zip(part.rows, part.errors, strict=True) if row.table.startswith(table)
    ]
    measured, errors = np.array(chosen).T
    return float(spearmanr(measured, measured * (1 + errors)).statistic)


@dataclass(frozen=True)
class SpeedUp:
    """SDP4Bit over the baseline on one model and cluster."""

    name: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Relative, signed."""
        return self.predicted / self.measured - 1


def speed_ups(part: Scores) -> list[SpeedUp]:
    """Of every model and cluster of SDP4Bit's table where both rows are measured."""
    figures: dict[str, dict[str, tuple[float, float]]] = {}
    for row, error in zip(part.rows, part.errors, strict=True):
        if row.cells["table"] == "sdp4bit_speed":
            name = f"{row.cells['model']} on {row.cells['cluster']}"
            figures.setdefault(name, {})[row.cells["method"]] = (row.measured, row.measured * (1 + error))
    pairs = {name: (methods["sdp4bit"], methods["baseline"]) for name, methods in figures.items() if len(methods) == 2}
    return [SpeedUp(name, a[0] / b[0], a[1] / b[1]) for name, (a, b) in pairs.items()]
