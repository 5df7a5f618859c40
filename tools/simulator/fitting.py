"""Least squares: constants within their ranges that bring predictions close to what was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from tools.simulator.constants import FIELDS, Calibration
from tools.simulator.job import Job
from tools.simulator.published import Row
from tools.simulator.slow_sync_times import read_times
from tools.simulator.step import predict

# Constants with a value per family of devices; all others hold everywhere.
FAMILIES = ("ampere", "hopper")
BY_FAMILY = ("sustained_clock", "loader_skew_ms")
# The table that published times belong to, and their columns: what is predicted for them, and their
# weight (the second sync shows in other figures only where it is not hidden).
SLOW_LINKS = "duo_low_bandwidth"
TIMES = {"computation_ms": ("compute_seconds", 1.0), "slow_gradient_sync_ms": ("slow_sync_seconds", 3.0)}
# What is fitted: all but gloo's own constant, on which no published row depends.
_FITTED = [name for name in FIELDS if name != "gloo_host_ms_per_mb"]
KEYS = [(table, name) for name in _FITTED for table in (FAMILIES if name in BY_FAMILY else ("common",))]
# A residual counts in units of this relative error; the defaults, and families' agreement with each other, in units
# of a constant's range with these weights. They decide where rows say nothing.
RELATIVE_ERROR, DEFAULT_WEIGHT, FAMILY_WEIGHT = 0.05, 0.25, 1.0


@dataclass(frozen=True)
class Observation:
    """A measured figure. `quantity`: the attribute of a prediction that it stands beside; `weight`: in how many rows'
    place it counts."""

    table: str
    job: Job
    measured: float
    quantity: str = "tflops_per_gpu"
    weight: float = 1.0


def observations(rows: Iterable[Row]) -> list[Observation]:
    """What is fitted: TFLOP/s of the measured rows and, where their table is among the rows, the published times of
    DUO's runs on slow links, which tell kernels, the host's work and the second sync from each other."""
    found = [Observation(row.table, row.job, row.measured) for row in rows if row.measured and row.job and row.in_fit]
    if any(observation.table == SLOW_LINKS for observation in found):
        for time in read_times():
            for cell, (quantity, weight) in TIMES.items():
                found.append(Observation(SLOW_LINKS, time.job, float(time.cells[cell]) / 1e3, quantity, weight))
    return found


def fit(rows: Iterable[Row], start: Calibration | None = None) -> Calibration:
    """The calibration that fits `rows`; every table weighs the same, however many rows it has.

    Raises:
        ValueError: there are no more measured rows than constants.
    """
    used = observations(rows)
    if len(used) <= len(KEYS):
        raise ValueError(f"{len(used)} measured rows for {len(KEYS)} constants: a fit needs more rows than constants")
    low, span = _ranges()
    defaults = (np.array([FIELDS[name].default for _, name in KEYS]) - low) / span
    begin = defaults if start is None else (_values(start) - low) / span
    tables = Counter(observation.table for observation in used)
    weights = np.array([(seen.weight * len(used) / len(tables) / tables[seen.table]) ** 0.5 for seen in used])

    def residuals(position: np.ndarray) -> np.ndarray:
        errors = log_ratios(used, calibration_of(low + position * span)) * weights / RELATIVE_ERROR
        return np.concatenate([errors, DEFAULT_WEIGHT * (position - defaults), FAMILY_WEIGHT * _family_gaps(position)])

    begin = np.clip(begin, 1e-3, 1 - 1e-3)
    solution = least_squares(residuals, begin, bounds=(0, 1), diff_step=1e-3, max_nfev=60, x_scale=0.1, ftol=1e-5)
    return calibration_of(low + solution.x * span)


def log_ratios(used: Sequence[Observation], calibration: Calibration) -> np.ndarray:
    """Logarithm of predicted over measured, of each observation."""
    constants = {observation.job.cluster: None for observation in used}
    constants = {cluster: calibration.constants(cluster) for cluster in constants}
    predicted = [getattr(predict(seen.job, constants[seen.job.cluster]), seen.quantity) for seen in used]
    return np.log(np.array(predicted) / np.array([seen.measured for seen in used]))


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
