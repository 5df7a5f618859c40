"""One line of a report: a quantity of a run as published, as measured here, as predicted, and the ratios."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tools.report.measured import Measurement, measure
from tools.report.predicted import predictions
from tools.sweep.cells import Cell
from tools.sweep.runs import Run
from tools.sweep.sweep_file import Result

_TRUTH = {"true": "yes", "false": "no", "yes": "yes", "no": "no"}
_STATUS = {"withheld": "withheld", "not_reported": "not reported", "measured": "not reported", "": "not reported"}


@dataclass(frozen=True)
class Figure:
    """A number with its deviation (0: none is known), or a `word`: a value that is one, or why there is no number."""

    number: float | None = None
    deviation: float = 0.0
    word: str = ""

    def text(self, digits: int) -> str:
        """As the table shows it: so many significant digits; the deviation with as many decimals."""
        if self.number is None:
            return self.word
        shown = _significant(self.number, digits)
        if not self.deviation:
            return shown
        return f"{shown} ± {self.deviation:.1e}" if "e" in shown else f"{shown} ± {self.deviation:.{_decimals(shown)}f}"


def _decimals(shown: str) -> int:
    return len(shown.partition(".")[2])


def _significant(number: float, digits: int) -> str:
    if 0 < abs(number) < 1e-3:
        return f"{number:.{digits - 1}e}"
    if 0 < abs(number) < 1:
        return f"{number:.{digits}g}"
    return f"{number:,.{max(digits - len(str(int(abs(number)))), 0)}f}"


@dataclass(frozen=True)
class Row:
    """One quantity of one run."""

    run: Run
    result: Result
    published: Figure
    measured: Figure
    predicted: Figure
    hardware: str
    is_scaled: bool

    @property
    def ratios(self) -> tuple[str, str]:
        """Measured and predicted, each over published."""
        measured = "scaled down" if self.is_scaled and self.measured.number is not None else self._over(self.measured)
        return measured, self._over(self.predicted)

    def _over(self, figure: Figure) -> str:
        if figure.number is None or not self.published.number:
            return "–"
        return f"{figure.number / self.published.number:.3f}"


def report_rows(runs: list[Run], runs_folder: Path, given: Path | None) -> tuple[list[Row], list[str]]:
    """The lines of a table's report, and the problems that the user has to mend.

    Raises:
        ValueError: the simulator fails, or its file is damaged.
    """
    predicted, silence = predictions(runs, given)
    rows, problems = [], []
    for run in runs:
        measurement = measure(run, runs_folder)
        problems += [measurement.problem] if measurement.problem else []
        for result in run.sweep.results:
            if run.has(result):
                rows.append(_row(run, result, measurement, predicted.get(run.id, {}), silence))
    scales = {row.is_scaled for row in rows if row.hardware}
    if len(scales) > 1:
        problems.append(f"{runs_folder} mixes runs at the published scale with scaled-down ones; keep them apart")
    return rows, problems


def _row(run: Run, result: Result, measurement: Measurement, predicted: Cell, silence: str) -> Row:
    measured = _measured(run, result, measurement)
    hardware = measurement.hardware if measured.number is not None or not measurement.gap else ""
    return Row(
        run, result, _published(run, result), measured, _predicted(run, result, predicted, silence), hardware,
        measurement.is_scaled,
    )  # fmt: skip


def _published(run: Run, result: Result) -> Figure:
    text = run.cell.get(result.published, "")
    if not text:
        return Figure(word="no figure published" if run.sweep.grids else _STATUS[run.cell.get("status", "")])
    try:
        return Figure(float(text) * result.times, float(run.cell.get(result.deviation) or 0) * result.times)
    except ValueError:
        return Figure(word=text)


def _measured(run: Run, result: Result, measurement: Measurement) -> Figure:
    if measurement.gap:
        return Figure(word="cannot run" if run.obstacle else measurement.gap)
    if result.measured not in measurement.figures:
        return Figure(word="not in its metrics")
    value, deviation = measurement.figures[result.measured]
    return Figure(word=value) if isinstance(value, str) else Figure(value * result.times, deviation * result.times)


def _predicted(run: Run, result: Result, predicted: Cell, silence: str) -> Figure:
    if silence or not result.predicted:
        return Figure(word=silence or "not predicted")
    text = predicted.get(result.predicted, "")
    if text.lower() in _TRUTH:
        return Figure(word=_TRUTH[text.lower()])
    try:
        return Figure(float(text) * result.predicted_times)
    except ValueError:
        infeasible = predicted.get("feasible", "yes").replace("_", " ").replace("yes", "")
        return Figure(word="cannot run" if run.obstacle else text or infeasible or "not predicted")
