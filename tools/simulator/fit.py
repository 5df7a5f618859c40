"""`python -m tools.simulator fit`: make calibration.toml again from measured rows, or anchor a cluster on own runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.atomic_files import atomic_files
from tools.cluster_files import FOLDER
from tools.simulator.anchor import anchor, read_run, with_calibration
from tools.simulator.constants import FIELDS, FILE, Calibration, read_calibration
from tools.simulator.fitting import KEYS, fit
from tools.simulator.machine import load_cluster
from tools.simulator.published import THROUGHPUT, read_published
from tools.simulator.scores import scores
from tools.simulator.step import predict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("--published", default=str(THROUGHPUT), help="a table like configs/published/throughput.csv")
    parser.add_argument("--out", help="the file to write: calibration.toml of the simulator, or a new cluster file")
    words = "METRICS-FILE RUN|key=value ..."
    text = "own runs, each a quoted word: its metrics file and its configuration; needs --cluster and --out"
    parser.add_argument("--anchor", nargs="+", metavar=f'"{words}"', help=text)
    parser.add_argument("--cluster", help="the cluster that the own runs ran on")


def run(args: argparse.Namespace) -> None:
    """Fit and write.

    Raises:
        ValueError: too few measured rows or runs.
    """
    if args.anchor:
        return _anchor(args)
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


def _anchor(args: argparse.Namespace) -> None:
    """Write a cluster file whose constants give the steps of own runs."""
    if not (args.cluster and args.out):
        raise ValueError("--anchor needs --cluster, where the runs ran, and --out, the cluster file to write")
    cluster = load_cluster(args.cluster)
    runs = [read_run(text, args.cluster) for text in args.anchor]
    start = read_calibration().constants(cluster)
    made = anchor(runs, start)
    source = Path(args.cluster) if args.cluster.endswith(".toml") else FOLDER / f"{args.cluster}.toml"
    with atomic_files(Path(args.out)) as [temporary]:
        temporary.write_text(with_calibration(source.read_text(), made, start))
    for run in runs:
        before, after = (prediction.step_seconds for prediction in (predict(run.job, start), made.predict(run.job)))
        measured = run.step_seconds * 1e3
        print(f"measured {measured:,.1f} ms, predicted {before * 1e3:,.1f} ms before and {after * 1e3:,.1f} ms after")
    print(f"cluster: {args.out}")


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
