"""The rows of a sweep's table: those of a published file, or every combination of its grids. Standard library only."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

from tools.sweep.sweep_file import CONFIGS, Sweep

Cell = dict[str, str]


def cells(sweep: Sweep, configs: Path = CONFIGS) -> dict[str, Cell]:
    """Identifier -> the row's columns, as text.

    Raises:
        ValueError: a published file is absent or damaged, or lacks a column that the sweep names.
    """
    if sweep.published:
        return _published(sweep, configs / "published")
    rows = [combination for grid in sweep.grids for combination in _combinations(sweep, grid)]
    return {f"{sweep.name}-{number:03d}": row for number, row in enumerate(rows, start=1)}


def _combinations(sweep: Sweep, grid: dict[str, list[Any]]) -> list[Cell]:
    names = [*grid, *sweep.shared]
    values = [*grid.values(), *([value] for value in sweep.shared.values())]
    return [dict(zip(names, map(str, chosen), strict=True)) for chosen in itertools.product(*values)]


def _published(sweep: Sweep, folder: Path) -> dict[str, Cell]:
    path = folder / sweep.published
    rows = [row for row in read_rows(path) if matches(row, sweep.where, path)]
    if not rows:
        raise ValueError(f"{sweep.path}: no row of {path} is as `where` says")
    if sweep.join:
        other = folder / sweep.join["file"]
        _join(rows, read_rows(other), sweep.join, other)
    return {row.get("id") or f"{sweep.name}-{number:03d}": row for number, row in enumerate(rows, start=1)}


def _join(rows: list[Cell], others: list[Cell], join: dict[str, Any], path: Path) -> None:
    """Add the columns of ``others`` to the rows that agree in the columns ``on``."""
    known = {tuple(row[column] for column in join["on"]): row for row in others}
    further = [column for column in others[0] if column not in join["on"]]
    for row in rows:
        found = known.get(tuple(row[column] for column in join["on"]), {}) if matches(row, join["where"], path) else {}
        row |= {column: found.get(column, "") for column in further}


def read_rows(path: Path) -> list[Cell]:
    """The rows of a CSV file with a head.

    Raises:
        ValueError: it is absent, or a row has another number of cells than the head: the file was cut off.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ValueError(f"{path}, line {number}: another number of cells than the head has; mend the file")
    return rows


def matches(row: Cell, wanted: dict[str, Any], where: Any) -> bool:
    """Whether each column that ``wanted`` names has its value, or one of its values."""
    for column, values in wanted.items():
        if column not in row:
            raise ValueError(f"{where}: there is no column '{column}'; there are: {', '.join(row)}")
        if row[column] not in (values if isinstance(values, list) else [values]):
            return False
    return True
