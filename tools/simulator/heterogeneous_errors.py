"""Predicted against published iteration times: errors of the seconds, and of the speed-ups over DT-FM's schedule."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tools.simulator.heterogeneous_calibration import mean_seconds, scheduled_beside
from tools.simulator.heterogeneous_rows import Row

CASES_WITH_SHARED_CARDS = ("case1", "case2")
Errors = dict[str, dict[str, list[float]]]  # place -> system -> relative errors, not negative


def errors_by_column(rows: list[Row], predicted: list[float]) -> str:
    """Mean absolute error of every system, by kind of network and by network, where something was published.

    A speed-up is a system's time over that of DT-FM's schedule in the same setting, both means over repeats.
    """
    seconds, speed_ups = _of_seconds(rows, predicted), _of_speed_ups(rows, predicted)
    lines = ["mean absolute error of the predicted seconds, and rows; of the speed-ups, their worst, and settings"]
    for place, systems in sorted(seconds.items()):
        lines += [f"  {place}"]
        for name, errors in sorted(systems.items()):
            ratios = speed_ups.get(place, {}).get(name, [])
            row = f"    {name:22}{100 * np.mean(errors):6.1f} %{len(errors):5}"
            row += f"{100 * np.mean(ratios):9.1f} %{100 * max(ratios):7.1f} %{len(ratios):5}" if ratios else ""
            lines.append(row)
    return "\n".join(lines)


def _of_seconds(rows: list[Row], predicted: list[float]) -> Errors:
    errors: Errors = {}
    for row, seconds in zip(rows, predicted, strict=True):
        if row.published is not None:
            _add(errors, row, abs(seconds / row.published - 1))
    return errors


def _of_speed_ups(rows: list[Row], predicted: list[float]) -> Errors:
    published = mean_seconds([row for row in rows if row.published is not None])
    known = {(row.scenario, *_column(row)): seconds for row, seconds in zip(rows, predicted, strict=True)}
    alike, errors = list(published), Errors()
    for row in alike:
        beside = alike[scheduled_beside(alike, row)]
        if beside != row:
            ours = known[row.scenario, *_column(row)] / known[beside.scenario, *_column(beside)]
            _add(errors, row, abs(ours / (published[row] / published[beside]) - 1))
    return errors


def _column(row: Row) -> tuple:
    """What decides a row's prediction, but for the network."""
    return row.model, row.layers, row.batch, row.system, row.seed if row.is_random else None


def _add(errors: Errors, row: Row, error: float) -> None:
    for place in _places(row.scenario):
        errors.setdefault(place, {}).setdefault(row.system, []).append(error)


def _places(scenario: str) -> Iterator[str]:
    yield scenario
    if scenario.startswith("fluidstack"):
        yield "both clouds"
    else:
        yield "cases 1 and 2" if scenario in CASES_WITH_SHARED_CARDS else "cases 3 to 5"
