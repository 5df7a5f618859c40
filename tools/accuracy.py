"""Run an experiment of configs/experiments and hold its validation losses against what is demanded of them.

``python tools/accuracy.py configs/experiments/accuracy_small.toml --output docs/accuracy.md`` writes that page and the
pictures beside it. What has finished is not run again: stop it at any time, and start it again. Exit code 1 when a
demand is missed.
"""

from __future__ import annotations

import contextlib
import os
import sys
from argparse import Namespace
from pathlib import Path

# Run as a file, Python looks for modules beside it; the trainer stands in the folder above.
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tqdm import tqdm

from tools.accuracy_report import table, write_report
from tools.accuracy_statistics import Outcome, compare
from tools.child_process import run_python, torchrun
from tools.command_line import ToolArgumentParser, run_tool
from tools.experiment import Experiment, RunFolder, Variant, arguments, read_experiment
from tools.plot_runs import read_run


class Run:
    """One variant with one seed, and its folder."""

    def __init__(self, experiment: Experiment, variant: Variant, seed: int, folder: Path) -> None:
        self.experiment, self.variant, self.seed = experiment, variant, seed
        self.name = f"{variant.name}, seed {seed}"
        self.words = experiment.words(variant, seed)
        self.num_iterations = arguments(experiment, variant, seed).train_iters
        self.folder = RunFolder(folder / variant.name / f"seed_{seed}")
        self.stood = self.folder.stands(self.words)

    def train(self, bar: tqdm) -> None:
        """Train it, and move the bar by its iterations.

        Raises:
            ChildProcessError: the run has failed.
        """
        begun = bar.n
        bar.set_description(self.name)
        self.folder.begin(self.words)
        trainer = [*torchrun(self.experiment.num_processes), "pretrain_gpt.py", *self.words]
        command = [*trainer, "--metrics-file", str(self.folder.unfinished)]
        log = self.folder.log
        code = run_python(*command, log=log, watch=lambda: _move(bar, begun + _num_lines(self.folder.unfinished)))
        if code:
            raise ChildProcessError(f"{self.name}: failed with exit code {code}, for the reason in {log}")
        self.folder.finish(self.name, self.num_iterations)
        _move(bar, begun + self.num_iterations)
        bar.write(f"{self.name}: validation loss {self.outcome().loss:.4f}", file=sys.stderr)

    def outcome(self) -> Outcome:
        """What the finished run gave."""
        return Outcome(self.variant.name, self.seed, read_run(self.folder.metrics, self.variant.name))


def _move(bar: tqdm, position: int) -> None:
    bar.update(position - bar.n)


def _num_lines(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes().count(b"\n")
    return 0


def run_experiment(experiment: Experiment, folder: Path) -> list[Outcome]:
    """Train what has not finished, all variants of a seed before the next seed; return what every run gave.

    Raises:
        ChildProcessError: a run has failed.
        ValueError: a run stands that was made with other settings.
    """
    runs = [Run(experiment, variant, seed, folder) for seed in experiment.seeds for variant in experiment.variants]
    left = [run for run in runs if not run.stood]
    print(f"{len(runs) - len(left)} of {len(runs)} runs stand in {folder}", file=sys.stderr, flush=True)
    # A line a second would be too much in a log file.
    interval = 1.0 if sys.stderr.isatty() else 30.0
    total = sum(run.num_iterations for run in left)
    with tqdm(total=total, unit="step", mininterval=interval, smoothing=0.0, disable=not left) as bar:
        for run in left:
            run.train(bar)
    return [run.outcome() for run in runs]


def accuracy(options: Namespace) -> None:
    """All of it; exit code 1 when a demand is missed."""
    path, output = Path(options.experiment).resolve(), options.output and Path(options.output).resolve()
    os.chdir(ROOT)
    experiment = read_experiment(path)
    folder = Path("runs") / path.stem if options.runs is None else Path(options.runs)
    outcomes = run_experiment(experiment, folder)
    comparisons = compare(experiment, outcomes)
    print(table(comparisons))
    if output:
        write_report(experiment, path, outcomes, comparisons, output)
    missed = [comparison.variant.name for comparison in comparisons if comparison.verdict == "missed"]
    if missed:
        sys.exit(f"accuracy: the demand is missed by {', '.join(missed)}")


def parse_arguments() -> Namespace:
    """The command line."""
    parser = ToolArgumentParser(__doc__.splitlines()[0])
    parser.add_argument("experiment", help="a file of configs/experiments")
    parser.add_argument("--output", help="the Markdown page to write, with pictures beside it")
    parser.add_argument("--runs", help="folder of the runs; runs/NAME of the experiment by default")
    return parser.parse_args()


if __name__ == "__main__":
    run_tool(lambda: accuracy(parse_arguments()))
