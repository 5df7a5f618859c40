"""The rows of a table of published times on uneven networks, read, predicted and written."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from tools.atomic_files import atomic_files
from tools.simulator.heterogeneous_constants import Constants
from tools.simulator.heterogeneous_runs import published_scenarios, read_run
from tools.simulator.heterogeneous_systems import SYSTEMS
from tools.simulator.heterogeneous_work import published_work

COLUMNS = ("id", "scenario", "model", "layers", "global_batch", "system", "seed", "seconds_per_iteration", "status")
RANDOM = {"megatron_p8_random", "dtfm_random", "dtfm_random_gpus", "dtfm_random_hosts"}


@dataclass(frozen=True)
class Row:
    """One published iteration time; ``published`` is None where the table has no figure."""

    id: str
    scenario: str
    model: str
    layers: str
    batch: int
    system: str
    seed: int | None
    published: float | None

    @property
    def is_random(self) -> bool:
        """Whether the seed changes the layout."""
        return self.system in RANDOM or (self.scenario, self.system) == ("case2", "megatron_p8")


def read_rows(path: Path) -> list[tuple[dict[str, str], Row]]:
    """Every row of the CSV file, as it stands and as read.

    Raises:
        ValueError: a column is missing, or a row names a scenario, system, model or number that is none.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(f"{path}: column '{missing[0]}' is missing; needed are {', '.join(COLUMNS)}")
        return [(line, _row(f"{path}, line {reader.line_num}", line)) for line in reader]


def _row(where: str, line: dict[str, str]) -> Row:
    for column, known in (("scenario", published_scenarios()), ("system", list(SYSTEMS))):
        if line[column] not in known:
            raise ValueError(f"{where}: {column} '{line[column]}' is unknown; known are {', '.join(known)}")
    try:
        published_work(line["model"], line["layers"], int(line["global_batch"]))
        seed = int(line["seed"]) if line["seed"] else None
        seconds = float(line["seconds_per_iteration"]) if line["seconds_per_iteration"] else None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    batch = int(line["global_batch"])
    row = Row(line["id"], line["scenario"], line["model"], line["layers"], batch, line["system"], seed, seconds)
    if row.is_random and seed is None:
        raise ValueError(f"{where}: system '{row.system}' ran in a random order, which takes a seed")
    return row


def predict(row: Row, constants: Constants) -> float:
    """Seconds of the row's iteration, simulated."""
    work = published_work(row.model, row.layers, row.batch)
    return SYSTEMS[row.system](read_run(row.scenario, work, row.seed, constants)).total


def write_rows(path: Path, lines: list[dict[str, str]]) -> None:
    """Write the CSV file whole or not at all."""
    with atomic_files(path) as [temporary], temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
