"""Measure training speed: tokens per second of one or several variants of a run, and where a step's time goes.

``python tools/bench_training.py`` starts the processes itself; under torchrun it is one of them. Every ``--variant``
adds flags to the run of ``--config``; the variants take turns step by step, so that a drift of the machine meets them
alike, and are compared with the first by the median of the ratios of neighbouring steps.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import statistics
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

# Run as a file, Python looks for modules beside it; the trainer stands in the folder above.
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tqdm import tqdm

from megatron.training.arguments import parse_args
from megatron.training.step_parts import take_part_seconds
from megatron.training.validation import validate_args
from tools.child_process import run_python, torchrun
from tools.command_line import ToolArgumentParser, positive_int, run_tool

# Variants share the process groups and the number of micro-batches.
SHARED = (
    "tensor_model_parallel_size pipeline_model_parallel_size context_parallel_size expert_model_parallel_size "
    "virtual_pipeline_model_parallel_size micro_batch_size global_batch_size seq_length"
).split()


class Variant(NamedTuple):
    """A name and the arguments of the run it stands for."""

    name: str
    args: Namespace


class Measurement(NamedTuple):
    """Seconds of each measured step of a variant, and of each part of it (mean over the ranks)."""

    name: str
    steps: list[float]
    parts: list[dict[str, float]]


def read_variants(args: Namespace, world_size: int) -> list[Variant]:
    """The variants of the command line; one without further flags where none is given.

    Raises:
        ValueError: ``NAME=FLAGS`` is malformed, or a flag is unknown or differs where variants have to agree.
    """
    variants = []
    for text in args.variant or ["run="]:
        name, equals, flags = text.partition("=")
        if not equals or not name:
            raise ValueError(f"--variant {text!r} does not read NAME=FLAGS, as in 'overlap=--overlap-grad-reduce'")
        words = ["--config", args.config, *shlex.split(flags), "--eval-iters", "0", "--timing-log-level", "2"]
        run = parse_args([*words, "--log-interval", str(2**30), "--train-iters", str(args.warmup + args.steps)])
        run = validate_args(run, world_size)
        run.barrier_with_L1_time = False  # a barrier before every part would be measured, too
        variants.append(Variant(name, run))
    for name in SHARED:
        values = {getattr(variant.args, name) for variant in variants}
        if len(values) > 1:
            raise ValueError(f"--variant: {name} is {sorted(values)}; variants have to agree on it")
    return variants


def measure(variants: list[Variant], warmup: int, steps: int) -> list[Measurement]:
    """Train all variants in turns on every rank."""
    from megatron.training.host_group import initialize_host_group
    from megatron.training.initialize import initialize_megatron

    initialize_megatron(variants[0].args)
    initialize_host_group(variants[0].args.distributed_timeout_minutes)
    with contextlib.redirect_stdout(io.StringIO()):  # the start-up report of each
        runs = [_set_up(variant) for variant in variants]
    measurements = [Measurement(variant.name, [], []) for variant in variants]
    shown = os.environ["RANK"] == "0"
    for step in tqdm(range(warmup + steps), desc="steps", disable=not shown, file=sys.stderr):
        for turn in range(len(runs)):
            index = (step + turn) % len(runs)  # no variant always runs after the same other
            measurement = measurements[index]
            seconds, parts = _timed_iteration(runs[index])
            if step >= warmup:
                measurement.steps.append(seconds)
                measurement.parts.append(parts)
    return [_mean_over_ranks(measurement) for measurement in measurements]


def _set_up(variant: Variant) -> Any:
    """A run with the compression of its own flags: what was wrapped while it was installed keeps it."""
    import sdp4bit_patches
    from megatron.training.training import set_up

    run = set_up(variant.args)
    sdp4bit_patches.uninstall()
    return run


def _timed_iteration(run: Any) -> tuple[float, dict[str, float]]:
    import torch

    torch.distributed.barrier()
    begun = time.perf_counter()
    run.iteration()
    seconds = time.perf_counter() - begun
    parts = take_part_seconds(run.timers)
    return seconds, parts | {"other": seconds - sum(parts.values())}


def _mean_over_ranks(measurement: Measurement) -> Measurement:
    """The same on every rank: a step lasts as long as on its slowest rank, a part as long as on the mean one."""
    import torch.distributed as dist

    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, measurement)
    steps = [max(times) for times in zip(*(rank.steps for rank in ranks), strict=True)]
    parts = [
        {part: statistics.fmean(times[part] for times in step) for part in step[0]}
        for step in zip(*(rank.parts for rank in ranks), strict=True)
    ]
    return Measurement(measurement.name, steps, parts)


def summarize(measurement: Measurement, first: Measurement, tokens_per_step: int) -> dict[str, Any]:
    """What is printed of a variant: medians; the spread is the distance of the quartiles from each other."""
    low, median, high = statistics.quantiles(measurement.steps, n=4)
    parts = {part: statistics.median(step[part] for step in measurement.parts) * 1e3 for part in measurement.parts[0]}
    ratios = [own / other for own, other in zip(measurement.steps, first.steps, strict=True)]
    return {
        "name": measurement.name,
        "tokens_per_second": tokens_per_step / median,
        "tokens_per_second_quartiles": [tokens_per_step / high, tokens_per_step / low],
        "step_ms": median * 1e3,
        "parts_ms": parts,
        "step_time_ratio_to_first": statistics.median(ratios),
    }


def print_table(summaries: list[dict[str, Any]]) -> None:
    """One column a variant."""
    print(f"{'':24}" + "".join(f"{summary['name']:>22}" for summary in summaries))
    tokens = [(s["tokens_per_second"], *s["tokens_per_second_quartiles"]) for s in summaries]
    rows = {"tokens/s": [f"{median:,.0f}" for median, _, _ in tokens]}
    rows["  quartiles"] = [f"{low:,.0f} - {high:,.0f}" for _, low, high in tokens]
    rows["step time / first's"] = [f"{s['step_time_ratio_to_first']:.3f}" for s in summaries]
    rows["step (ms)"] = [f"{s['step_ms']:.1f}" for s in summaries]
    for part in summaries[0]["parts_ms"]:
        rows[f"  {part}"] = [f"{s['parts_ms'][part]:.1f}" for s in summaries]
    for name, cells in rows.items():
        print(f"{name:24}" + "".join(f"{cell:>22}" for cell in cells))


def run_rank(args: Namespace) -> None:
    """One process of the measurement."""
    variants = read_variants(args, int(os.environ["WORLD_SIZE"]))
    from sdp4bit_patches import cpu_device

    cpu_device.install()
    from megatron.training.quiet import quiet_libraries

    quiet_libraries()
    import torch

    measurements = measure(variants, args.warmup, args.steps)
    run = variants[0].args
    if torch.distributed.get_rank() == 0:
        tokens = run.global_batch_size * run.seq_length
        summaries = [summarize(measurement, measurements[0], tokens) for measurement in measurements]
        device = "CPU" if cpu_device.is_installed() else torch.cuda.get_device_name()
        header = {"config": args.config, "ranks": run.world_size, "device": device, "steps": args.steps}
        header |= {"torch": torch.__version__, "tokens_per_step": tokens}
        if args.json:
            print(json.dumps(header | {"variants": summaries}, indent=2))
        else:
            print(", ".join(f"{key} {value}" for key, value in header.items()))
            print_table(summaries)
    torch.distributed.destroy_process_group()


def launch(args: Namespace) -> None:
    """Start the ranks and pass their exit code on."""
    read_variants(args, args.nproc_per_node)  # what a user mistyped is told once, and before anything starts
    sys.exit(run_python(*torchrun(args.nproc_per_node), __file__, *sys.argv[1:]))


def parse_arguments() -> Namespace:
    """The command line."""
    parser = ToolArgumentParser(__doc__.splitlines()[0])
    parser.add_argument("--config", default=str(ROOT / "configs/runs/benchmark.toml"), help="TOML file of the run")
    parser.add_argument("--variant", action="append", help="NAME=FLAGS added to the run; several are compared")
    parser.add_argument("--nproc-per-node", type=positive_int, default=4, help="processes, without torchrun")
    parser.add_argument("--warmup", type=positive_int, default=10, help="steps of each variant that are not counted")
    parser.add_argument("--steps", type=positive_int, default=50, help="steps of each variant that are counted")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


if __name__ == "__main__":
    run_tool(lambda: (run_rank if "RANK" in os.environ else launch)(parse_arguments()))
