"""Puts results into documents, between the markers ``<!-- tools.report NAME -->`` and ``<!-- end of tools.report -->``.

NAME is ``summary``, a line for each table, or a table: its rows that were measured. Both come from the CSV files that
reports have written, so that anyone can tell a document that is not up to date.
"""

from __future__ import annotations

import re
import statistics
from pathlib import Path

from tools.plot_runs import markdown_rows
from tools.sweep.cells import Cell, read_rows

_BLOCK = re.compile(r"(<!-- tools\.report (\S+) -->\n).*?(<!-- end of tools\.report -->)", re.DOTALL)


def filled(text: str, results: Path) -> str:
    """``text`` with every block made anew from the CSV files in ``results``.

    Raises:
        ValueError: it has no block, or one names a table without results.
    """
    if not _BLOCK.search(text):
        raise ValueError("it has no line <!-- tools.report NAME --> with <!-- end of tools.report --> below it")
    return _BLOCK.sub(lambda match: f"{match[1]}{_block(match[2], results)}\n{match[3]}", text)


def _block(name: str, results: Path) -> str:
    if name == "summary":
        return markdown_rows([_SUMMARY_HEAD, *(_summary(path) for path in sorted(results.glob("*.csv")))])
    path = results / f"{name}.csv"
    if not path.exists():
        raise ValueError(f"there are no results of '{name}' in {results}; write them with `--output {results}`")
    rows = [row for row in read_rows(path) if row["measured_on"]]
    return _measured_table(rows) if rows else "Nothing of it has been run where this page was written."


_SUMMARY_HEAD = ["table", "runs", "published", "measured", "scaled down", "predicted", "median error", "largest error"]


def _summary(path: Path) -> list[str]:
    """How many figures of a table there are of each kind, and how far predictions are from what was published."""
    rows = read_rows(path)
    measured = [row for row in rows if row["measured_on"] and _is_number(row["measured"])]
    errors = [abs(float(row[_OVER]) - 1) for row in rows if _is_number(row[_OVER])]
    return [
        f"`{path.stem}`",
        str(len({row["run"] for row in rows})),
        str(sum(_is_number(row["published"]) for row in rows)),
        str(sum(row["scaled_down"] == "no" for row in measured)),
        str(sum(row["scaled_down"] == "yes" for row in measured)),
        str(sum(_is_number(row["predicted"]) for row in rows)),
        f"{statistics.median(errors):.1%}" if errors else "–",
        f"{max(errors):.1%}" if errors else "–",
    ]


_OVER = "predicted_over_published"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _measured_table(rows: list[Cell]) -> str:
    """Runs as lines, quantities as columns; below it the machine."""
    names = list(rows[0])[2 : list(rows[0]).index("quantity")]
    naming = [name for name in names if len({row[name] for row in rows}) > 1] or names[:1]
    quantities = list(dict.fromkeys(row["quantity"] for row in rows))
    runs: dict[str, dict[str, str]] = {}
    for row in rows:
        cells = runs.setdefault(row["run"], {"run": row["run"]} | {name: row[name] for name in naming})
        deviation = f" ± {float(row['measured_deviation']):.2g}" if row["measured_deviation"] else ""
        number = f"{float(row['measured']):.4g}" if _is_number(row["measured"]) else row["measured"]
        cells[row["quantity"]] = number + deviation
    head = ["run", *naming, *quantities]
    table = markdown_rows([head, *([cells.get(name, "–") for name in head] for cells in runs.values())])
    machines = dict.fromkeys(row["measured_on"] for row in rows)
    notes = [f"* Measured on {machine}." for machine in machines]
    if any(row["scaled_down"] == "yes" for row in rows):
        notes.append("* Scaled down: the other columns say which published row a run stands for.")
    return "\n".join([table, "", *notes])
