"""The low-bandwidth experiment as tables and as a page with pictures."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tools.atomic_files import atomic_files
from tools.emulator.network import congestion_control
from tools.low_bandwidth_grid import Grid
from tools.low_bandwidth_numbers import CUT_OFF, JUDGED, Cell, Verdict, cells, is_hidden, loss, ratio, ratio_words
from tools.low_bandwidth_pictures import draw_step_times, draw_timeline
from tools.plot_runs import markdown_rows

ROOT = Path(__file__).resolve().parent.parent
MB = 1e6


def collectives_table(rows: list[dict[str, Any]]) -> str:
    """Times of the collectives by link rate, and by how much ours is faster."""
    head = ["Mbit/s", "collective", "ms", "ours is faster by"]
    return markdown_rows([head, *([f"{r['link_mbit']:g}", r["name"], f"{r['ms']:.1f}", _faster(r)] for r in rows)])


def _faster(row: dict[str, Any]) -> str:
    return "" if row["name"].startswith("quantized") else f"{row['ratio']:.2f}x"


def steps_table(steps: list[dict[str, Any]]) -> str:
    """The columns of the published table, and ours."""
    head = "Mbit/s|sequence|accumulation|device ms|scheme|tokens/s|step ms|of SDP4Bit's|computation ms|slow sync ms"
    head += "|fully hidden|from compute ms|exposed ms|processors ms|MB a step per link|wire.py, MB|loss|simulator, ms"
    return markdown_rows([head.split("|"), *(line for key, rows in cells(steps).items() for line in _cell(key, rows))])


def _cell(key: Cell, rows: dict[str, dict[str, Any]]) -> Iterable[list[str]]:
    for name, row in rows.items():
        sync = ["", "", ""]
        if row.get("duo_slow_ms"):
            sync = [f"{row['duo_slow_ms']:.0f}", "yes" if is_hidden(row) else "no", f"{row['duo_busy_ms']:.0f}"]
        label = f"{name} ({row['slow_level']})" if name.endswith("adaptive") else name
        cell = [*(f"{value:g}" for value in key), label, f"{row['tokens_per_s']:,.0f}", f"{row['step_ms']:.0f}"]
        pair = (row, rows["sdp4bit"])
        times = ratio_words(pair) if name in JUDGED else f"{ratio(pair):.3f}"
        cell += [times, f"{row['compute_ms']:.0f}", *sync, f"{row['exposed_ms']:.0f}", f"{row['processor_ms']:.0f}"]
        cell += [f"{row['node_bytes'] / MB:.2f}", _megabytes(row["predicted_bytes"])]
        yield [*cell, f"{loss(row, rows):.4f}", _simulated(row)]


def _simulated(row: dict[str, Any]) -> str:
    if row.get("simulated_ms") is None:
        return ""
    return f"{row['simulated_ms']:.0f}{' *' if row['is_anchor'] else ''}"


def _megabytes(num_bytes: float | None) -> str:
    return "" if num_bytes is None else f"{num_bytes / MB:.2f}"


def verdicts_table(verdicts: list[Verdict]) -> str:
    """What was demanded beside what was measured."""
    head = ["", "demanded", "measured", ""]
    return markdown_rows([head, *([v.what, v.demanded, v.measured, _outcome(v)] for v in verdicts)])


def _outcome(verdict: Verdict) -> str:
    if verdict.holds:
        return ""
    return f"**missed**: {verdict.measured_besides}" if verdict.measured_besides else "**missed**"


def write_report(
    grid: Grid,
    absent: list[str],
    collectives: list[dict[str, Any]],
    steps: list[dict[str, Any]],
    verdicts: list[Verdict],
    output: Path,
) -> None:
    """Write the page `output` and its pictures OUTPUT_steps.png and OUTPUT_timeline.png."""
    pictures = [output.with_name(f"{output.stem}_{name}.png") for name in ("steps", "timeline")]
    with atomic_files(*pictures, output) as [step_times, timeline, page]:
        draw_step_times(steps, step_times)
        draw_timeline(steps, timeline)
        sections = _sections(grid, absent, collectives, steps, verdicts, pictures)
        page.write_text("\n\n".join(sections) + "\n")


def _sections(
    grid: Grid,
    absent: list[str],
    collectives: list[Any],
    steps: list[Any],
    verdicts: list[Verdict],
    pictures: list[Path],
) -> list[str]:
    nodes = f"{grid.nodes} nodes x {grid.ranks_per_node} ranks"
    flags = markdown_rows([["scheme", "flags"], *([s.name, f"`{' '.join(s.flags)}`"] for s in grid.schemes)])
    turns = {grid.rounds_of(shape, scheme) for shape in grid.shapes for scheme in grid.schemes_of(shape)}
    versions = f"torch {version('torch')}, megatron-core {version('megatron-core')}, {platform.machine()}"
    return [
        f"# {grid.title}",
        f"`scripts/reproduce/low_bandwidth.sh` wrote this page on {time.strftime('%-d %B %Y')}\n({versions}, "
        f"{os.cpu_count()} cores, TCP by {congestion_control()}); a shape that has been measured is not measured "
        "again, so some may be older.",
        f"{nodes}, each node a network namespace of one machine, with its share of the cores, whose link is shaped by "
        f"the kernel (`python -m tools.emulator`). The run is `{grid.config}`; schemes take turns, {min(turns)} to "
        f"{max(turns)} blocks of {grid.steps_per_block} counted steps at each rate. A step is as long as on its "
        f"slowest rank; `of SDP4Bit's` is the geometric mean over neighbouring steps, {CUT_OFF:.0%} at either end left "
        "out. In brackets beside it: between which values nine of ten such means lie when the blocks are drawn anew.",
        *([f"Not measured in this run: {', '.join(absent)}."] if absent else []),
        "## What is demanded, and what came out",
        verdicts_table(verdicts),
        "## Collectives by themselves",
        f"{collectives[0]['mebibytes']} MiB of fp32 a rank; codec included; a ratio is the median over rounds.",
        collectives_table(collectives),
        "## Training steps",
        f"![Step time against link rate, a line a scheme]({pictures[0].name})",
        f"![Where the time of one step goes]({pictures[1].name})",
        "Slow sync, computation and fully hidden (computation exceeds the slow sync) are the published columns. "
        "From compute is the processor time that slow syncs take from what ranks compute on the same core, as DUO "
        "reports it (`duo_busy_ms` of the metrics; what the kernel does when packets arrive is not in it). "
        "Exposed is what a rank waits for gradients and parameters, waiting for slower ranks included. Processors is "
        "for how long all cores together worked in a step, the kernel included. MB are what a "
        "node sends in a step by the kernel's count without packet headers, beside what `wire.py` says (nothing where "
        "gloo's own collectives take part). The loss is the mean of the last common steps."
        " The simulator's column is its prediction for `configs/clusters/emulated_2x2.toml`, anchored on the few rows "
        "that have a star; it does not know the adaptive policy.",
        "Ranks share the cores of this machine, so what the second sync needs of a processor lengthens a step even "
        "where it is hidden; DUO says so in the log, and its adaptive policy syncs less often. Where `device ms` is "
        "not 0, every step waits so long in its forward passes, as a host waits for a GPU: that is compute which "
        "leaves the cores free.",
        steps_table(steps),
        flags,
    ]
