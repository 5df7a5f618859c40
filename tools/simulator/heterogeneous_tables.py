"""Published and predicted times side by side, as Markdown tables: one for every network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def markdown_tables(lines: Iterable[dict[str, str]]) -> str:
    """Tables of the output's rows: a line for every setting, `published / predicted` seconds for every system.

    Both are means over the seeds. A dash stands for a time that was not published; new systems have none.
    """
    networks: dict[str, dict[str, dict[str, list[dict[str, str]]]]] = {}
    for line in lines:
        model = f"L{line['layers']}" if line["model"] == "gpt-xl" else line["model"]
        setting = f"{model} B{line['global_batch']}"
        network = networks.setdefault(line["scenario"], {})
        network.setdefault(setting, {}).setdefault(line["system"], []).append(line)
    return "\n".join(_table(name, settings) for name, settings in networks.items())


def _table(name: str, settings: dict[str, dict[str, list[dict[str, str]]]]) -> str:
    systems = list(dict.fromkeys(system for row in settings.values() for system in row))
    head = ["setting", *(system.replace("_", " ") for system in systems)]
    rows = [[setting, *(_cell(row.get(system, [])) for system in systems)] for setting, row in settings.items()]
    return "\n".join([f"### {name}\n", _line(head), _line(["---"] + ["---:"] * len(systems)), *map(_line, rows), ""])


def _cell(lines: Sequence[dict[str, str]]) -> str:
    if not lines:
        return ""
    predicted = np.mean([float(line["predicted_seconds"]) for line in lines])
    if lines[0]["status"] == "predicted":
        return f"{predicted:.1f}"
    published = [float(line["seconds_per_iteration"]) for line in lines if line["seconds_per_iteration"]]
    return f"{np.mean(published):.1f} / {predicted:.1f}" if published else f"– / {predicted:.1f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
