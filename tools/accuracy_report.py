"""What an experiment's runs say, as a table and as a page with pictures."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from pathlib import Path

from tools.accuracy_pictures import draw_curves, draw_differences
from tools.accuracy_statistics import Comparison, Outcome
from tools.atomic_files import atomic_files
from tools.experiment import Experiment, arguments
from tools.plot_runs import markdown_rows

ROOT = Path(__file__).resolve().parent.parent


def table(comparisons: list[Comparison]) -> str:
    """A Markdown table with a row for each variant; what a gap was closed by, where a variant repairs another."""
    repairs = any(comparison.closed is not None for comparison in comparisons)
    closed = ["gap closed"] if repairs else []
    head = ["variant", "validation loss by seed", "mean difference", "standard error", *closed, "demanded", ""]
    return markdown_rows([head, *(_row(comparison, repairs) for comparison in comparisons)])


def _row(comparison: Comparison, repairs: bool) -> list[str]:
    losses = ", ".join(f"{loss:.4f}" for loss in comparison.losses)
    error = "one seed" if len(comparison.differences) == 1 else f"{comparison.standard_error:.3f} %"
    closed = "" if comparison.closed is None else f"{comparison.closed:.0f} %"
    row = [comparison.variant.name, losses, f"{comparison.mean:+.3f} %", error, *([closed] if repairs else [])]
    return [*row, comparison.demand, comparison.verdict]


def write_report(
    experiment: Experiment, path: Path, outcomes: list[Outcome], comparisons: list[Comparison], output: Path
) -> None:
    """Write the page `output` and its pictures OUTPUT_curves.png and OUTPUT_differences.png."""
    pictures = [output.with_name(f"{output.stem}_{name}.png") for name in ("curves", "differences")]
    with atomic_files(*pictures, output) as [curves, differences, page]:
        draw_curves(experiment, outcomes, curves)
        draw_differences(experiment, comparisons, differences)
        page.write_text(_page(experiment, path, comparisons, output, pictures))


def _page(experiment: Experiment, path: Path, comparisons: list[Comparison], output: Path, pictures: list[Path]) -> str:
    command = f"python tools/accuracy.py {_from_root(path)} --output {_from_root(output)}"
    flags = markdown_rows([["variant", "flags"], *([v.name, f"`{' '.join(v.flags)}`"] for v in experiment.variants)])
    return (
        "\n\n".join(
            [
                f"# {experiment.title}",
                f"`{command}` wrote this page on {_date()}\n(torch {version('torch')}, megatron-core "
                f"{version('megatron-core')}, {platform.machine()}); every number is that run's.",
                _shape(experiment),
                table(comparisons),
                f"A difference is loss of the variant / loss of {experiment.reference} with the same seed − 1, in %; "
                "its standard error is that of the mean over the seeds. Above 0 is worse." + _gap(experiment),
                f"![Differences of the validation loss by variant and seed]({pictures[1].name})",
                f"![Training loss and its distance from {experiment.reference}]({pictures[0].name})",
                flags,
            ]
        )
        + "\n"
    )


def _gap(experiment: Experiment) -> str:
    pairs = [f"{v.name} of {v.repairs}" for v in experiment.variants if v.repairs]
    return (
        f" Gap closed: the share of a variant's mean difference that another has not ({', '.join(pairs)})."
        if pairs
        else ""
    )


def _shape(experiment: Experiment) -> str:
    args = arguments(experiment, experiment.variants[0], experiment.seeds[0])
    tokens = args.global_batch_size * args.seq_length
    return (
        f"A GPT of {args.num_layers} layers, hidden size {args.hidden_size}, {args.train_iters:,} steps of {tokens:,} "
        f"tokens, {experiment.num_processes} processes on nodes of {args.node_size or 'one machine'}, "
        f"{str(args.params_dtype).removeprefix('torch.')}, seeds {', '.join(map(str, experiment.seeds))}. All variants "
        f"of a seed begin with the same weights and read the same data. The loss is that of {args.eval_iters} batches "
        "of the validation split after the last step."
    )


def _from_root(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def _date() -> str:
    return time.strftime("%d %B %Y").lstrip("0")
