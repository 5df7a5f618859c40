"""Measure training and collectives on slow links, on an emulated cluster of this machine (root and NET_ADMIN).

``python tools/low_bandwidth.py --output docs/low_bandwidth.md`` writes that page and its pictures; ``--quick`` is the
version for CI, a minute and a half. A shape that has finished is not measured again: stop it at any time, and start it
again. Exit code 1 when a number that is demanded is missed; with --quick, which is too short for times, only
by counted bytes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

# Run as a file, Python looks for modules beside it; the trainer stands in the folder above.
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.command_line import ToolArgumentParser, run_tool
from tools.emulator.launch import Job
from tools.emulator.network import EmulatedNetwork
from tools.low_bandwidth_grid import Grid, Shape, read_grid
from tools.low_bandwidth_numbers import Verdict, judge
from tools.low_bandwidth_prediction import with_predictions
from tools.low_bandwidth_report import collectives_table, steps_table, verdicts_table, write_report
from tools.scenario_files import uniform_scenario

DEFAULT = ROOT / "configs/experiments/low_bandwidth.toml"
COLLECTIVES = "collectives"


class Part:
    """A piece of the experiment that is measured in one go: a shape of the training run, or the collectives."""

    def __init__(self, grid: Grid, name: str, words: list[str], folder: Path) -> None:
        self.grid, self.name, self._words = grid, name, words
        self.path = folder / f"{name}.json"

    def measure(self) -> None:
        """Run it on a network of its own.

        Raises:
            ChildProcessError: a rank has failed.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        grid = self.grid
        network = uniform_scenario(grid.nodes, grid.ranks_per_node, grid.link_mbit[0] * 1e6)
        with EmulatedNetwork(network) as emulated, tempfile.TemporaryDirectory() as folder:
            job = Job(emulated, [*self._words, str(self.path.resolve())], Path(folder))
            if job.run(lambda line: print(line, file=sys.stderr, flush=True)):
                raise ChildProcessError(f"{self.name} failed; the ends of its logs:\n{job.tails()}")

    def rows(self) -> list[dict[str, Any]]:
        """What was measured."""
        return json.loads(self.path.read_text())


def parts(grid: Grid, path: Path, folder: Path, quick: bool) -> list[Part]:
    """The collectives, then the shapes in their order."""
    further = ["--quick"] if quick else []

    def shape(index: int, shape: Shape) -> Part:
        words = ["tools/low_bandwidth_rank.py", *further, str(path), str(index)]
        return Part(grid, shape.name, words, folder)

    collectives = Part(grid, COLLECTIVES, ["tools/low_bandwidth_collectives.py", *further, str(path)], folder)
    return [collectives, *(shape(index, one) for index, one in enumerate(grid.shapes))]


def measure(all_parts: list[Part]) -> None:
    """Measure what is not there yet."""
    for number, part in enumerate(all_parts, start=1):
        state = "stands" if part.path.exists() else "is measured"
        print(f"part {number} of {len(all_parts)}, {part.name}: {state}", file=sys.stderr, flush=True)
        if not part.path.exists():
            part.measure()


def _named(all_parts: list[Part], name: str) -> Part:
    for part in all_parts:
        if part.name == name:
            return part
    raise ValueError(f"--part {name}: the parts are {', '.join(part.name for part in all_parts)}")


def low_bandwidth(options: Namespace) -> None:
    """All of it."""
    path, output = Path(options.experiment).resolve(), options.output and Path(options.output).resolve()
    os.chdir(ROOT)
    grid = read_grid(path)
    grid = grid.quick() if options.quick else grid
    folder = Path(options.runs or f"runs/{path.stem}{'_quick' if options.quick else ''}")
    everything = parts(grid, path, folder, options.quick)
    if options.part:
        measure([_named(everything, options.part)])
        return
    if not options.no_measure:
        measure(everything)
    absent = [part.name for part in everything if not part.path.exists()]
    if everything[0].name in absent or len(absent) == len(everything) - 1:
        raise ValueError(f"--no-measure: {folder} has not the collectives and a shape: measure them first")
    collectives, steps = (
        everything[0].rows(),
        [row for part in everything[1:] if part.path.exists() for row in part.rows()],
    )
    if not options.quick:
        steps = with_predictions(grid, steps)
    verdicts: list[Verdict] = judge(collectives, steps)
    print(collectives_table(collectives), steps_table(steps), verdicts_table(verdicts), sep="\n\n")
    if output:
        write_report(grid, absent, collectives, steps, verdicts, output)
    missed = [verdict.what for verdict in verdicts if not verdict.holds and not (options.quick and verdict.is_timed)]
    if missed:
        sys.exit(f"low_bandwidth: missed: {'; '.join(missed)}")


def parse_arguments() -> Namespace:
    """The command line."""
    parser = ToolArgumentParser(__doc__.splitlines()[0])
    parser.add_argument("--experiment", default=str(DEFAULT), help="a file of configs/experiments")
    parser.add_argument("--output", help="the Markdown page to write, with pictures beside it")
    parser.add_argument("--runs", help="folder of what was measured; runs/NAME of the experiment by default")
    parser.add_argument("--part", help="measure this part alone, and write no page: collectives, or seq_64_acc_1, …")
    parser.add_argument("--no-measure", action="store_true", help="write the page of what has been measured")
    parser.add_argument("--quick", action="store_true", help="one shape, one rate, few schemes: a minute and a half")
    return parser.parse_args()


if __name__ == "__main__":
    run_tool(lambda: low_bandwidth(parse_arguments()))
