"""Rows of a published throughput table as jobs."""

from __future__ import annotations

import csv
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sdp4bit_patches.config import PRESETS, CommConfig
from tools.cluster_files import check_keys
from tools.simulator.job import Job
from tools.simulator.machine import load_cluster
from tools.simulator.model_shape import read_model

THROUGHPUT = Path(__file__).resolve().parents[2] / "configs" / "published" / "throughput.csv"
RUNS = Path(__file__).with_name("published_runs.toml")

SIZES = ("gpus", "tp", "cp", "pp", "micro_batch", "seq")
COLUMNS = {"id", "table", "model", "cluster", *SIZES, "dp", "accumulation", "link_gbps", "method"}
MEASURED = "measured_tflops_per_gpu"
_FLAGS = {
    "transformer-engine", "async-tensor-parallel", "flash-attention", "sequence-parallel", "recompute",
    "overlap-grad-reduce", "overlap-param-gather", "mask-in-loader",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One row: the cells as they stand in the file, and the job, or why there is none."""

    cells: dict[str, str]
    job: Job | None
    reason: str = ""
    in_fit: bool = True

    @property
    def name(self) -> str:
        """Its id."""
        return self.cells["id"]

    @property
    def table(self) -> str:
        """The table it is scored in: SDP4Bit's table has one part per machine."""
        table = self.cells["table"]
        return f"{table}/{self.cells['cluster']}" if table == "sdp4bit_speed" else table

    @property
    def measured(self) -> float | None:
        """TFLOP/s per GPU, of rows that have them.

        Raises:
            ValueError: the cell is no positive number.
        """
        if not self.cells.get(MEASURED) or self.cells.get("status", "measured") != "measured":
            return None
        try:
            return _number(self.cells, MEASURED)
        except ValueError as error:
            raise ValueError(f"row {self.name}: {error}") from error


@cache
def _settings() -> dict[str, dict[str, Any]]:
    settings = tomllib.loads(RUNS.read_text())
    for table, keys in settings.items():
        known = _FLAGS | {"quantize-all-parameters", "global-batch", "left-out-of-fit"}
        check_keys(f"{RUNS}, [{table}]", keys, known)
    return settings


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Column names and rows.

    Raises:
        ValueError: the file is empty, not text, or a row has another number of cells than the head.
        OSError: it cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file: {error}") from error
    if not columns or not rows:
        raise ValueError(f"{path} has no rows: give a CSV file with a head line")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ValueError(f"{path}, line {number}: {len(columns)} cells are needed, as in the head line")
    return list(columns), rows


def read_published(path: Path = THROUGHPUT) -> list[Row]:
    """All rows of a throughput table, the columns of configs/published/throughput.csv.

    Raises:
        ValueError: a column is missing, or a cell makes no sense; the row's id is named.
    """
    columns, rows = read_csv(path)
    missing = sorted(COLUMNS - set(columns))
    if missing:
        raise ValueError(f"{path}: the column '{missing[0]}' is missing; needed are {', '.join(sorted(COLUMNS))}")
    _note_unknown_tables(path, rows)
    return [_row(path, cells) for cells in rows]


def _note_unknown_tables(path: Path, rows: list[dict[str, str]]) -> None:
    for table in sorted({cells["table"] for cells in rows} - set(_settings())):
        text = "its runs are taken to overlap data-parallel traffic, with Transformer Engine and no recompute"
        print(f"{path}: the table '{table}' is not in {RUNS.name}: {text}", file=sys.stderr)


def _row(path: Path, cells: dict[str, str]) -> Row:
    try:
        settings = dict(_settings().get(cells["table"], _settings()["default"]))
        in_fit = cells["id"] not in settings.pop("left-out-of-fit", ())
        replica = _size(cells, "tp") * _size(cells, "cp") * _size(cells, "pp")
        if _size(cells, "gpus") < replica:
            return Row(cells, None, f"a replica needs {replica} GPUs", in_fit)
        return Row(cells, _job(cells, settings, replica), "", in_fit)
    except ValueError as error:
        raise ValueError(f"{path}, row {cells['id'] or '(without id)'}: {error}") from error


def _job(cells: dict[str, str], settings: dict[str, Any], replica: int) -> Job:
    gpus, micro_batch = _size(cells, "gpus"), _size(cells, "micro_batch")
    if gpus % replica:
        raise ValueError(f"gpus = {gpus} is no multiple of tp x cp x pp = {replica}")
    dp = gpus // replica
    batch = settings.pop("global-batch", None)
    if cells["accumulation"]:
        accumulation = _size(cells, "accumulation")
    elif batch:
        accumulation = max(1, batch // (dp * micro_batch))
    else:
        raise ValueError("accumulation is empty, and no global batch is known for the table: fill it in")
    if cells["method"] not in PRESETS:
        raise ValueError(f"method = {cells['method']!r}: use one of {', '.join(PRESETS)}")
    every = settings.pop("quantize-all-parameters", False)
    cluster = load_cluster(cells["cluster"])
    if cells["link_gbps"]:
        cluster = cluster.with_link(_number(cells, "link_gbps"))
    flags = {key.replace("-", "_"): value for key, value in settings.items()}
    comm = CommConfig(**PRESETS[cells["method"]], quantize_all_parameters=every)
    sizes = {name: _size(cells, name) for name in ("tp", "cp", "pp", "micro_batch", "seq")}
    return Job(read_model(cells["model"]), cluster, comm, dp=dp, accumulation=accumulation, **sizes, **flags)


def _size(cells: dict[str, str], name: str) -> int:
    try:
        value = int(cells[name])
    except ValueError:
        value = 0
    if value < 1:
        raise ValueError(f"{name} = {cells[name]!r}: give a positive integer")
    return value


def _number(cells: dict[str, str], name: str) -> float:
    try:
        value = float(cells[name])
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} = {cells[name]!r}: give a positive number")
    return value
