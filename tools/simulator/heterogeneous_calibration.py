"""Fits the constants of the iteration times to the published ones, every column of the tables weighing the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, fields, replace

import numpy as np
from scipy.optimize import least_squares

from tools.simulator.heterogeneous_constants import Constants
from tools.simulator.heterogeneous_rows import Row, predict

# A factor on the starting value that no constant leaves.
RANGE = 4.0
# The clouds' times vary by 10 % from run to run, and their lines were measured once: they set their own device's rate.
NOISY = {"fluidstack2", "fluidstack3"}


def calibrate(rows: list[Row], start: Constants) -> Constants:
    """The constants with the least squared logarithmic error over the measured ``rows`` and their speed-ups.

    A speed-up is a row's time over that of DT-FM's schedule in the same setting.

    Raises:
        ValueError: no row has a published time.
    """
    measured = [row for row in rows if row.published is not None]
    if not measured:
        raise ValueError("no row has a published time to calibrate with")
    seconds = mean_seconds(measured)
    columns = Counter((row.scenario, row.system) for row in seconds)
    weights = np.array([columns[row.scenario, row.system] ** -0.5 for row in seconds])
    weights *= np.where([row.scenario in NOISY for row in seconds], 0.1, 1.0)
    names = [field.name for field in fields(Constants)]
    scale = np.array([asdict(start)[name] for name in names])

    rows = list(seconds)
    scheduled = np.array([scheduled_beside(rows, row) for row in rows])

    def errors(factors: np.ndarray) -> np.ndarray:
        constants = replace(start, **dict(zip(names, factors * scale, strict=True)))
        logs = np.log([predict(row, constants) / published for row, published in seconds.items()])
        return np.concatenate([weights * logs, weights * (logs - logs[scheduled])])

    found = least_squares(errors, np.ones(len(names)), bounds=(1 / RANGE, RANGE), diff_step=1e-4, max_nfev=40)
    return replace(start, **dict(zip(names, (found.x * scale).tolist(), strict=True)))


def mean_seconds(rows: list[Row]) -> dict[Row, float]:
    """One row for each that is predicted alike (seeds of a layout that is not random), with the mean of their times."""
    gathered: dict[Row, list[float]] = {}
    for row in rows:
        alike = replace(row, id="", published=None, seed=row.seed if row.is_random else None)
        gathered.setdefault(alike, []).append(row.published)
    return {row: float(np.mean(values)) for row, values in gathered.items()}


def scheduled_beside(rows: list[Row], row: Row) -> int:
    """The index in ``rows`` of DT-FM's scheduled row of the same setting; the row's own where there is none."""
    setting = (*_setting(row), "dtfm_scheduled")
    beside = [i for i, other in enumerate(rows) if (*_setting(other), other.system) == setting]
    return beside[0] if beside else rows.index(row)


def _setting(row: Row) -> tuple[str, str, str, int]:
    return row.scenario, row.model, row.layers, row.batch
