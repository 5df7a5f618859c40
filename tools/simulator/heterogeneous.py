"""Iteration times of published systems on uneven networks, and of this project's trainer on the same networks."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from tools.atomic_files import atomic_files
from tools.simulator.heterogeneous_calibration import calibrate
from tools.simulator.heterogeneous_constants import Constants
from tools.simulator.heterogeneous_errors import errors_by_column
from tools.simulator.heterogeneous_ours import NEW_SYSTEMS, settings_of
from tools.simulator.heterogeneous_rows import Row, predict, read_rows, write_rows
from tools.simulator.heterogeneous_tables import markdown_tables

TABLES_HEAD = """# Iteration times on uneven networks, published / predicted

Seconds, means over the seeds; a dash: not published, or withheld. `megatron sdp4bit` and `ours` were never published.
Written by `python -m tools.simulator heterogeneous --markdown`.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `heterogeneous`."""
    parser.add_argument("--published", type=Path, required=True, help="CSV of published times")
    parser.add_argument("--out", type=Path, help="the same rows with predicted_seconds, and rows of the new systems")
    parser.add_argument("--markdown", type=Path, help="published beside predicted seconds as tables, to this file")
    parser.add_argument("--calibrate", action="store_true", help="fit the constants to the file's times, print them")
    parser.add_argument("--no-new-systems", action="store_true", help="published rows only")


def run(args: argparse.Namespace) -> None:
    """Predict every row, print the errors by column, and write them.

    Raises:
        ValueError: a file that is no such table.
    """
    rows = read_rows(args.published)
    if not rows:
        raise ValueError(f"{args.published} has no rows; take configs/published/heterogeneous.csv")
    constants = Constants()
    if args.calibrate:
        constants = calibrate([row for _, row in rows], constants)
        print("\n".join(f"{name} = {value:.4g}" for name, value in asdict(constants).items()))
    predicted = [predict(row, constants) for _, row in tqdm(rows, desc="rows", leave=False, disable=None)]
    print(errors_by_column([row for _, row in rows], predicted))
    if args.out or args.markdown:
        pairs = zip(rows, predicted, strict=True)
        lines = [line | {"predicted_seconds": f"{seconds:.2f}"} for (line, _), seconds in pairs]
        if not args.no_new_systems:
            lines += _new_rows([row for _, row in rows], constants, list(lines[0]))
        _write(args, lines)


def _write(args: argparse.Namespace, lines: list[dict[str, str]]) -> None:
    if args.out:
        write_rows(args.out, lines)
    if args.markdown:
        with atomic_files(args.markdown) as [temporary]:
            temporary.write_text(f"{TABLES_HEAD}\n{markdown_tables(lines)}")


def _new_rows(rows: Iterable[Row], constants: Constants, columns: list[str]) -> list[dict[str, str]]:
    """A row of every new system for every network, model and batch of the table."""
    lines = []
    for setting in tqdm(settings_of(rows), desc="new systems", unit="setting", leave=False, disable=None):
        for name, system in NEW_SYSTEMS.items():
            plan = system(setting, constants)
            stages, replicas, tensor = plan.layout.shape
            note = f"PP {stages} DP {replicas} TP {tensor}, micro-batch {plan.micro_batch}, {plan.scheme.name}"
            known = {
                "id": "-".join([setting.scenario, setting.model, setting.layers, str(setting.batch), name]),
                "scenario": setting.scenario,
                "model": setting.model,
                "layers": setting.layers,
                "global_batch": str(setting.batch),
                "system": name,
                "status": "predicted",
                "note": note,
                "predicted_seconds": f"{plan.seconds:.2f}",
            }
            lines.append({column: known.get(column, "") for column in columns})
    return lines
