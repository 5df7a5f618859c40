"""A report as Markdown and as CSV."""

from __future__ import annotations

import string
from pathlib import Path

from tools.plot_runs import markdown_rows
from tools.report.predicted import write_rows
from tools.report.rows import Row

# Columns of published files that name a row, in the order in which they are shown; those that vary are.
_NAMING = """
scenario model layers method system seed cluster gpus nodes node_clock_ghz tp cp pp dp micro_batch accumulation
global_batch activation_recompute seq link_gbps group_size
""".split()


def markdown(rows: list[Row], problems: list[str]) -> str:
    """The whole report: title, table, what each figure was measured on, and what was wrong."""
    sweep = rows[0].run.sweep
    letters = _letters(rows)
    lines = [f"# {sweep.title}", "", markdown_table(rows, letters), ""]
    lines += [f"* {letter}: {hardware}." for hardware, letter in letters.items()]
    lines += [f"* not used: {problem}" for problem in problems]
    lines += [f"* {note}: {_listed(names)}." for note, names in _notes(rows).items()]
    lines += _scaled_note(rows)
    return "\n".join(lines).rstrip() + "\n"


def _notes(rows: list[Row]) -> dict[str, list[str]]:
    """What the source, the sweep and its layout say about single runs -> those runs."""
    found: dict[str, list[str]] = {}
    for run in {row.run.id: row.run for row in rows}.values():
        obstacle = run.obstacle and f"cannot run, since {run.obstacle}"
        for note in filter(None, (run.cell.get("note", ""), run.note, obstacle)):
            found.setdefault(note, []).append(run.id)
    return found


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 5 else ""
    return ", ".join(names[: 4 if more else 5]) + more


def _scaled_note(rows: list[Row]) -> list[str]:
    local = rows[0].run.sweep.local
    if local is None or not any(row.is_scaled for row in rows):
        return []
    return [f"* Scaled down to {local.model} on {local.ranks} ranks: not to be held against published figures."]


def _letters(rows: list[Row]) -> dict[str, str]:
    """What figures were measured on -> the letter that stands for it."""
    found = list(dict.fromkeys(row.hardware for row in rows if row.hardware))
    names = [*string.ascii_uppercase, *(f"{a}{b}" for a in string.ascii_uppercase for b in string.ascii_uppercase)]
    return dict(zip(found, names, strict=False))


def naming_columns(rows: list[Row]) -> list[str]:
    """The columns in which the rows differ, and the model."""
    cells = [row.run.cell for row in rows]
    varying = [name for name in _NAMING if len({cell.get(name, "") for cell in cells}) > 1]
    return ["model", *varying] if "model" in cells[0] and "model" not in varying else varying


def markdown_table(rows: list[Row], letters: dict[str, str]) -> str:
    """One line for each quantity of each run."""
    naming = naming_columns(rows)
    several = len({row.result.name for row in rows}) > 1
    head = ["run", *naming, *(["quantity"] if several else [])]
    unit = "" if several else f", {rows[0].result.name}"
    head += [f"published{unit}", "measured here", "on", "predicted", "measured / published", "predicted / published"]
    return markdown_rows([head, *(_cells(row, naming, several, letters) for row in rows)])


def _cells(row: Row, naming: list[str], several: bool, letters: dict[str, str]) -> list[str]:
    digits = row.result.digits
    names = [row.run.id, *(row.run.cell.get(name, "") for name in naming), *([row.result.name] if several else [])]
    figures = [row.published.text(digits), row.measured.text(digits), letters.get(row.hardware, "–")]
    return [*names, *figures, row.predicted.text(digits), *row.ratios]


def write_csv(path: Path, rows: list[Row]) -> None:
    """One line for each quantity of each run; a figure's word stands where it has no number."""
    write_rows(path, [_csv_row(row, naming_columns(rows)) for row in rows])


def _csv_row(row: Row, naming: list[str]) -> dict[str, str]:
    cells = {"table": row.run.sweep.name, "run": row.run.id}
    cells |= {name: row.run.cell.get(name, "") for name in naming} | {"quantity": row.result.name}
    for name, figure in (("published", row.published), ("measured", row.measured), ("predicted", row.predicted)):
        cells[name] = figure.word if figure.number is None else f"{figure.number:.6g}"
        cells[f"{name}_deviation"] = f"{figure.deviation:.3g}" if figure.deviation else ""
    cells["measured_over_published"], cells["predicted_over_published"] = row.ratios
    return cells | {"measured_on": row.hardware, "scaled_down": "yes" if row.is_scaled else "no"}
