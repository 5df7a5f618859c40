"""A published table beside what was measured and predicted: ``python -m tools.report TABLE --runs DIR``.

Prints it as Markdown; ``--output DIR`` writes TABLE.md, TABLE.csv and TABLE.png. TABLE may be ``all``: each from its
folder in runs/, or from TABLE_local there. ``--fill README.md`` puts the results of docs/results into documents. Exit
code 2 where a run's folder is unusable: the report is complete but for it.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from tools.atomic_files import atomic_files
from tools.command_line import ToolArgumentParser, run_tool
from tools.report.fill import filled
from tools.report.pictures import draw
from tools.report.rows import Row, report_rows
from tools.report.tables import markdown, write_csv
from tools.sweep.runs import runs
from tools.sweep.sweep_file import ROOT, read_sweep, sweep_names

RESULTS = ROOT / "docs" / "results"


def report(options: Namespace) -> None:
    """Print the report of a table, and write it where that is asked for.

    Raises:
        ValueError: the table is unknown, its runs contradictory, or the folder is none.
    """
    if options.runs and not options.runs.is_dir():
        raise ValueError(f"--runs {options.runs} is no folder: nothing has been run there")
    if options.table == "all" and not options.output:
        raise ValueError("all tables at once are too much to print: say where to write them with --output")
    problems = []
    for name in sweep_names() if options.table == "all" else [options.table]:
        rows, found = report_rows(runs(read_sweep(name)), _folder(name, options), options.predictions)
        text = markdown(rows, found)
        problems += found
        print(f"{name}: {len(rows)} figures in {options.output}" if options.table == "all" else text)
        if options.output:
            write(rows, text, options.output, name)
    if problems:
        sys.stderr.write("".join(f"tools.report: error: {problem}\n" for problem in problems))
        sys.exit(2)


def _folder(name: str, options: Namespace) -> Path:
    """The folder of a table's runs; of all tables, that of its runs at the published scale if there is one."""
    if options.runs and options.table != "all":
        return options.runs
    parent = options.runs or ROOT / "runs"
    scaled_down = parent / f"{name}_local"
    return scaled_down if options.table == "all" and not (parent / name).is_dir() else parent / name


def write(rows: list[Row], text: str, output: Path, name: str) -> None:
    """Write NAME.md, NAME.csv and, if there is a number to draw, NAME.png."""
    with atomic_files(*(output / f"{name}.{kind}" for kind in ("png", "md", "csv"))) as [picture, page, table]:
        if not draw(rows, picture):
            picture.touch()
        page.write_text(text)
        write_csv(table, rows)
    if (output / f"{name}.png").stat().st_size == 0:
        (output / f"{name}.png").unlink()


def fill(options: Namespace) -> None:
    """Put results into documents."""
    for document in options.fill:
        try:
            text = filled(document.read_text(), options.output or RESULTS)
        except ValueError as error:
            raise ValueError(f"{document}: {error}") from error
        with atomic_files(document) as [temporary]:
            temporary.write_text(text)


def main() -> None:
    """The command line."""
    parser = ToolArgumentParser(__doc__.splitlines()[0])
    parser.add_argument("table", nargs="?", help="a file of configs/sweeps, or all")
    parser.add_argument("--runs", type=Path, help="folder with a folder for each run; runs/TABLE if not given")
    parser.add_argument("--output", type=Path, help="folder for TABLE.md, TABLE.csv and TABLE.png")
    parser.add_argument("--predictions", type=Path, help="a CSV of tools.simulator, instead of asking it now")
    parser.add_argument("--fill", type=Path, nargs="+", help="documents to put the results of docs/results into")
    options = parser.parse_args(sys.argv[1:])
    if bool(options.table) == bool(options.fill):
        parser.error(f"say one table, or --fill with documents; the tables are: {', '.join(sweep_names())}")
    (fill if options.fill else report)(options)


if __name__ == "__main__":
    run_tool(main)
