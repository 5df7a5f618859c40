"""Put finished experiments beside each other: how the differences from the reference depend on what tells them apart.

``python tools/accuracy_summary.py configs/experiments/duo_*.toml --output docs/duo_dependence.md`` writes a table and a
picture of the runs that tools/accuracy.py has made.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from pathlib import Path

# Run as a file, Python looks for modules beside it; the trainer stands in the folder above.
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from matplotlib import pyplot as plt

from tools.accuracy import Run
from tools.accuracy_statistics import Comparison, compare
from tools.atomic_files import atomic_files
from tools.command_line import ToolArgumentParser, run_tool
from tools.experiment import Experiment, arguments, read_experiment
from tools.plot_runs import COLORS, markdown_rows

Column = tuple[str, list[Comparison]]


def read_column(path: Path) -> Column:
    """An experiment in a few words, and its comparisons.

    Raises:
        ValueError: a run of it has not finished.
    """
    experiment = read_experiment(path)
    runs = [
        Run(experiment, v, seed, Path("runs") / path.stem) for v in experiment.variants for seed in experiment.seeds
    ]
    missing = next((run.name for run in runs if not run.stood), None)
    if missing:
        raise ValueError(f"{path}: {missing} has not run yet; python tools/accuracy.py {path} runs it")
    return _in_words(experiment), compare(experiment, [run.outcome() for run in runs])


def _in_words(experiment: Experiment) -> str:
    args, count = arguments(experiment, experiment.variants[0], experiment.seeds[0]), len(experiment.seeds)
    return f"lr {args.lr:g}, {args.train_iters:,} steps, {count} seed{'s' * (count > 1)}"


def table(columns: list[Column]) -> str:
    """A row for each variant, a column for each experiment: mean difference in %, and what of a gap it closes."""
    names = list(dict.fromkeys(row.variant.name for _, rows in columns for row in rows))
    by_name = [{row.variant.name: _cell(row) for row in rows} for _, rows in columns]
    body = [[name, *(cells.get(name, "not in it") for cells in by_name)] for name in names]
    return markdown_rows([["variant", *(words for words, _ in columns)], *body])


def _cell(row: Comparison) -> str:
    closed = "" if row.closed is None else f" ({row.closed:.0f} % closed)"
    return f"{row.mean:+.2f} %{closed}"


def draw(columns: list[Column], path: Path) -> None:
    """Bars of the mean differences, a group for each experiment; the reference is at 0 and has none."""
    figure, axes = plt.subplots(figsize=(10, 4.6), layout="constrained")
    names = list(dict.fromkeys(row.variant.name for _, rows in columns for row in rows if any(row.differences)))
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        means = [next((row.mean for row in rows if row.variant.name == name), np.nan) for _, rows in columns]
        places = np.arange(len(columns)) + (index - (len(names) - 1) / 2) * width
        bars = axes.bar(places, means, width, color=COLORS[index % len(COLORS)], label=name)
        axes.bar_label(bars, fmt="%+.1f", fontsize=8, padding=2)
    axes.set_xticks(range(len(columns)), [words for words, _ in columns])
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_ylabel("difference of the validation loss (%)\nlogarithmic beyond 1")
    axes.axhline(0, color="gray", linewidth=0.8)
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside upper center", ncols=len(names))
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)


def summarize(options: Namespace) -> None:
    """All of it."""
    paths = [Path(path).resolve() for path in options.experiments]
    output = Path(options.output).resolve()
    os.chdir(ROOT)
    columns = [read_column(path) for path in paths]
    print(table(columns))
    named = " ".join(str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path) for path in paths)
    picture = output.with_suffix(".png")
    with atomic_files(picture, output) as [drawn, page]:
        draw(columns, drawn)
        command = f'tools/accuracy_summary.py {named} --title "{options.title}" --output {options.output}'
        page.write_text(_page(options.title, command, table(columns), picture.name))


def _page(title: str, command: str, rows: str, picture: str) -> str:
    return (
        f"# {title}\n\n`python {command}`\nwrote this page from the runs of tools/accuracy.py. Differences of the "
        "validation loss from that of the baseline under the same schedule and seed; above 0 is worse.\n\n"
        f"{rows}\n\n![{title}]({picture})\n"
    )


def parse_arguments() -> Namespace:
    """The command line."""
    parser = ToolArgumentParser(__doc__.splitlines()[0])
    parser.add_argument("experiments", nargs="+", help="files of configs/experiments")
    parser.add_argument("--title", default="Accuracy by schedule", help="of the page")
    parser.add_argument("--output", required=True, help="the Markdown page to write, with a picture beside it")
    return parser.parse_args()


if __name__ == "__main__":
    run_tool(lambda: summarize(parse_arguments()))
