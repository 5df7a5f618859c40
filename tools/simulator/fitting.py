"""Least squares: constants within their ranges that bring predictions close to measured rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.optimize import least_squares

from tools.simulator.constants import FIELDS, Calibration
from tools.simulator.published import Row
from tools.simulator.step import predict

# Constants with a value per family of devices; all others hold everywhere.
FAMILIES = ("ampere", "hopper")
BY_FAMILY = ("sustained_clock", "loader_skew_ms")
KEYS = [(table, name) for name in FIELDS for table in (FAMILIES if name in BY_FAMILY else ("common",))]
# A residual counts in units of this relative error; the defaults, and families' agreement with each other, in units
# of a constant's range with these weights. They decide where rows say nothing.
RELATIVE_ERROR, DEFAULT_WEIGHT, FAMILY_WEIGHT = 0.05, 0.25, 1.0


def fit(rows: Sequence[Row], start: Calibration | None = None) -> Calibration:
    """The calibration that fits `rows`; every table weighs the same, however many rows it has.

    Raises:
        ValueError: there are no more measured rows than constants.
    """
    used = [row for row in rows if row.measured and row.job and row.in_fit]
    if len(used) <= len(KEYS):
        raise ValueError(f"{len(used)} measured rows for {len(KEYS)} constants: a fit needs more rows than constants")
    low, span = _ranges()
    defaults = (np.array([FIELDS[name].default for _, name in KEYS]) - low) / span
    begin = defaults if start is None else (_values(start) - low) / span
    tables = Counter(row.table for row in used)
    weights = np.array([(len(used) / len(tables) / tables[row.table]) ** 0.5 for row in used])

    def residuals(position: np.ndarray) -> np.ndarray:
        errors = log_ratios(used, calibration_of(low + position * span)) * weights / RELATIVE_ERROR
        return np.concatenate([errors, DEFAULT_WEIGHT * (position - defaults), FAMILY_WEIGHT * _family_gaps(position)])

    begin = np.clip(begin, 1e-3, 1 - 1e-3)
    solution = least_squares(residuals, begin, bounds=(0, 1), diff_step=1e-3, max_nfev=60, x_scale=0.1, ftol=1e-5)
    return calibration_of(low + solution.x * span)


def log_ratios(rows: Sequence[Row], calibration: Calibration) -> np.ndarray:
    """Logarithm of predicted over measured TFLOP/s of each row."""
    constants = {}
    ratios = np.empty(len(rows))
    for index, row in enumerate(rows):
        cluster = row.job.cluster
        if cluster not in constants:
            constants[cluster] = calibration.constants(cluster)
        ratios[index] = np.log(predict(row.job, constants[cluster]).tflops_per_gpu / row.measured)
    return ratios


def calibration_of(values: np.ndarray) -> Calibration:
    """The tables of a vector of values in the order of KEYS."""
    tables: dict[str, dict[str, float]] = {"common": {}, **{family: {} for family in FAMILIES}}
    for (table, name), value in zip(KEYS, values, strict=True):
        low, high = FIELDS[name].metadata["low"], FIELDS[name].metadata["high"]
        tables[table][name] = float(min(max(value, low), high))
    return Calibration(tables)


def _values(calibration: Calibration) -> np.ndarray:
    return np.array([calibration.tables[table][name] for table, name in KEYS])


def _ranges() -> tuple[np.ndarray, np.ndarray]:
    low = np.array([FIELDS[name].metadata["low"] for _, name in KEYS], dtype=float)
    high = np.array([FIELDS[name].metadata["high"] for _, name in KEYS], dtype=float)
    return low, high - low


def _family_gaps(position: np.ndarray) -> np.ndarray:
    """How far the values of the families lie apart, for every constant that has several."""
    places = {name: [i for i, key in enumerate(KEYS) if key[1] == name] for name in BY_FAMILY}
    return np.concatenate([np.diff(position[places[name]]) for name in BY_FAMILY])
