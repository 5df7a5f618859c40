"""`python -m tools.simulator fit`: make calibration.toml again from measured rows, or anchor a cluster on own runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.atomic_files import atomic_files
from tools.simulator.constants import FIELDS, FILE, Calibration
from tools.simulator.fitting import KEYS, fit
from tools.simulator.published import THROUGHPUT, read_published
from tools.simulator.scores import scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("--published", default=str(THROUGHPUT), help="a table like configs/published/throughput.csv")
    parser.add_argument("--out", help="the file to write: calibration.toml of the simulator, or a cluster file")


def run(args: argparse.Namespace) -> None:
    """Fit and write.

    Raises:
        ValueError: too few measured rows, or constants that end outside their range.
    """
    rows = read_published(Path(args.published))
    calibration = fit(rows)
    out = Path(args.out or FILE)
    with atomic_files(out) as [temporary]:
        temporary.write_text(calibration_text(calibration))
    here = scores(rows, calibration)
    print(f"{len(KEYS)} constants from {len(here.rows)} rows: mean error {here.mean:.1%}, worst table {here.worst:.1%}")
    for line in at_bounds(calibration):
        print(line)
    print(f"calibration: {out}")


def calibration_text(calibration: Calibration) -> str:
    """The file: every constant with its meaning, unit and range."""
    lines = ["# Fitted constants. Made by `python -m tools.simulator fit`; their ranges are enforced when read."]
    for table, values in calibration.tables.items():
        lines += ["", f"[{table}]"]
        for name, value in values.items():
            meta = FIELDS[name].metadata
            lines.append(f"# {meta['help']} ({meta['unit']}, {meta['low']:g} to {meta['high']:g})")
            lines.append(f"{name} = {value:.4g}")
    return "\n".join(lines) + "\n"


def at_bounds(calibration: Calibration) -> list[str]:
    """A line for every constant that ends within a hundredth of its range from a bound: the rows ask for more."""
    lines = []
    for table, values in calibration.tables.items():
        for name, value in values.items():
            low, high = FIELDS[name].metadata["low"], FIELDS[name].metadata["high"]
            if min(value - low, high - value) < 0.01 * (high - low):
                lines.append(f"note: {name} of [{table}] is at a bound of its range: {value:.4g}")
    return lines
