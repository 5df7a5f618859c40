"""Own runs re-anchor a cluster: constants close to the present ones under which those runs take what they took."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from tools.simulator.constants import FIELDS, Constants
from tools.simulator.job import Job
from tools.simulator.run_config import job_of, read_keys
from tools.simulator.step import Prediction, predict

# Steps at a run's begin that are slower than all others.
WARM_UP = 3
# A step counts in units of this relative error; keeping a constant counts in units of its range, this often.
RELATIVE_ERROR, KEEP_WEIGHT = 0.03, 0.5
# A host's rate is a guess within this factor; moving it that far counts as moving a constant through its range.
RATE_RANGE = 30.0


@dataclass(frozen=True)
class MeasuredRun:
    """A training and what its steps took, the median."""

    job: Job
    step_seconds: float


def read_run(text: str, cluster: str) -> MeasuredRun:
    """A measured run from `METRICS-FILE RUN|key=value ...`: its metrics file, then its configuration.

    Raises:
        ValueError: it has no metrics file or too few steps, or the configuration makes no sense.
    """
    words = text.split()
    if len(words) < 2:
        raise ValueError(f"--anchor {text!r}: give a metrics file and the run's configuration, in one quoted word")
    keys = read_keys([*words[1:], f"cluster={cluster}"])
    return MeasuredRun(job_of(keys), median_step_seconds(Path(words[0])))


def median_step_seconds(path: Path) -> float:
    """The median step of a file of --metrics-file, after the first steps.

    Raises:
        ValueError: it is no such file, or the run is too short.
    """
    try:
        steps = [json.loads(line)["step_ms"] for line in path.read_text().splitlines()]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a file of --metrics-file ({error})") from error
    if len(steps) <= WARM_UP:
        raise ValueError(f"{path} has {len(steps)} steps: the first {WARM_UP} do not count, train some more")
    return statistics.median(steps[WARM_UP:]) / 1e3


@dataclass(frozen=True)
class Anchored:
    """What own runs make of a cluster: the constants, and the rates of its hosts where those are not known."""

    constants: Constants
    rates: dict[str, float]

    def predict(self, job: Job) -> Prediction:
        """The prediction of a job on that cluster."""
        return predict(dataclasses.replace(job, cluster=job.cluster.with_rates(self.rates)), self.constants)


def anchor(runs: Sequence[MeasuredRun], start: Constants) -> Anchored:
    """Constants (and host rates) near `start` (and the cluster's) that give the runs' steps. What no run depends on
    stays as it is.

    Raises:
        ValueError: with one run, a machine and its network cannot be told apart.
    """
    if len(runs) < 2:
        raise ValueError("one run cannot tell a machine from its network: anchor on two that differ in their traffic")
    low = np.array([field.metadata["low"] for field in FIELDS.values()], dtype=float)
    span = np.array([field.metadata["high"] for field in FIELDS.values()]) - low
    begin = (np.array([getattr(start, name) for name in FIELDS]) - low) / span
    guessed = runs[0].job.cluster.host_rates
    measured = np.log([run.step_seconds for run in runs])

    def anchored(position: np.ndarray) -> Anchored:
        values = np.clip(low + position[: len(low)] * span, low, low + span).tolist()
        factors = RATE_RANGE ** position[len(low) :]
        rates = {name: float(rate * factor) for (name, rate), factor in zip(guessed.items(), factors, strict=True)}
        return Anchored(Constants(**dict(zip(FIELDS, values, strict=True))), rates)

    def residuals(position: np.ndarray) -> np.ndarray:
        here = anchored(position)
        predicted = np.log([here.predict(run.job).step_seconds for run in runs])
        return np.concatenate([(predicted - measured) / RELATIVE_ERROR, KEEP_WEIGHT * (position - origin)])

    origin = np.concatenate([begin, np.zeros(len(guessed))])
    bounds = np.concatenate([np.zeros(len(low)), -np.ones(len(guessed))]), np.ones(len(origin))
    inside = np.clip(origin, bounds[0] + 1e-3, bounds[1] - 1e-3)
    return anchored(least_squares(residuals, inside, bounds=bounds, diff_step=1e-3, x_scale=0.1).x)


def with_calibration(cluster_text: str, made: Anchored, start: Constants) -> str:
    """A cluster file with the rates of its hosts, and a [calibration] table of every constant that has moved; an older
    such table goes."""
    kept = re.sub(r"(?ms)^\[calibration\].*?(?=^\[|\Z)", "", cluster_text).rstrip() + "\n"
    for key, rate in made.rates.items():
        kept = re.sub(rf"(?m)^{key} = [^ #\n]+", f"{key} = {rate:.4g}", kept)
    lines = ["", "# Anchored on own runs by `python -m tools.simulator fit --anchor`.", "[calibration]"]
    for name, field in FIELDS.items():
        value, before = getattr(made.constants, name), getattr(start, name)
        if abs(value - before) > 1e-3 * (field.metadata["high"] - field.metadata["low"]):
            lines.append(f"{name} = {value:.4g}  # {field.metadata['unit']}")
    return kept + "\n".join(lines) + "\n"
