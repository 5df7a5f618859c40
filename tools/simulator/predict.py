"""`python -m tools.simulator predict`: the time of a step by part, memory by part, and a timeline."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.atomic_files import atomic_files
from tools.simulator.memory import GIB, Memory, fits, memory
from tools.simulator.run_config import job_of, read_keys
from tools.simulator.step import Parts, Prediction
from tools.simulator.step import predict as predict_step

PART_NAMES = {
    "matrices": "matrix products",
    "attention": "attention",
    "elementwise": "element-wise kernels",
    "tensor": "tensor parallel",
    "context": "context parallel",
    "boundary": "between pipeline stages",
    "bubble": "pipeline bubble",
    "host": "host and data loader",
    "skew": "waiting for other replicas",
    "exposed_reduce": "gradient reduction, exposed",
    "exposed_gather": "parameter gather, exposed",
    "optimizer": "optimizer",
    "exposed_slow": "second sync, exposed",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    text = "a run file or its name in configs/runs, and key=value with names of pretrain_gpt.py's flags; also gpus="
    parser.add_argument("--config", nargs="+", required=True, metavar="RUN|key=value", help=text)
    parser.add_argument("--picture", help="a PNG of the timeline to write")
    parser.add_argument("--json", help="a file for the same numbers as JSON")


def run(args: argparse.Namespace) -> None:
    """Print the prediction, and write what was asked for.

    Raises:
        ValueError: the configuration makes no sense.
    """
    job = job_of(read_keys(args.config))
    prediction, needed = predict_step(job), memory(job)
    print(report(prediction, needed))
    if args.json:
        with atomic_files(Path(args.json)) as [temporary]:
            temporary.write_text(json.dumps(as_data(prediction, needed), indent=1) + "\n")
        print(f"numbers: {args.json}")
    if args.picture:
        from tools.simulator.timeline_picture import draw_timeline

        draw_timeline(prediction, Path(args.picture))
        print(f"timeline: {args.picture}")


def predict_words(words: Sequence[str]) -> dict[str, Any]:
    """The prediction for `--config WORDS`, for programs: :func:`as_data`.

    Raises:
        ValueError: the configuration makes no sense.
    """
    job = job_of(read_keys(words))
    return as_data(predict_step(job), memory(job))


def report(prediction: Prediction, needed: Memory) -> str:
    """The prediction as text."""
    job = prediction.job
    layout = f"TP {job.tp} x CP {job.cp} x PP {job.pp} x DP {job.dp}"
    batch = f"micro-batch {job.micro_batch} x accumulation {job.accumulation}, sequence {job.seq}"
    lines = [f"{job.gpus} x {job.cluster.device.name} ({job.cluster.name}): {layout}, {batch}", ""]
    lines.append(f"{'step':32}{prediction.step_seconds * 1e3:12,.1f} ms")
    for field in dataclasses.fields(Parts):
        seconds = getattr(prediction.parts, field.name)
        if seconds > 0:
            share = seconds / prediction.step_seconds
            lines.append(f"  {PART_NAMES[field.name]:30}{seconds * 1e3:12,.1f} ms {share:7.1%}")
    lines.append(f"{'TFLOP/s per GPU':32}{prediction.tflops_per_gpu:12,.4g}")
    lines += _slow_lines(prediction)
    return "\n".join([*lines, "", *_memory_lines(prediction, needed)])


def _slow_lines(prediction: Prediction) -> list[str]:
    if prediction.slow_sync_seconds is None:
        return []
    said = "hidden" if prediction.fully_hidden else "not hidden"
    times = (
        f"{prediction.slow_sync_seconds * 1e3:,.1f} ms against {prediction.compute_seconds * 1e3:,.1f} ms of compute"
    )
    return [f"DUO's second sync is {said}: {times}"]


def _memory_lines(prediction: Prediction, needed: Memory) -> list[str]:
    capacity = prediction.job.cluster.device.memory_gib
    said = "fits" if fits(prediction.job, needed) else "does not fit"
    lines = [f"{'memory':32}{needed.gib:12,.2f} GiB of {capacity:g}: {said}"]
    for field in dataclasses.fields(Memory):
        size = getattr(needed, field.name)
        if size > 0:
            name = "pinned host memory (not counted)" if field.name == "host" else field.name
            lines.append(f"  {name:34}{size / GIB:8,.2f} GiB")
    return lines


def as_data(prediction: Prediction, needed: Memory) -> dict[str, Any]:
    """The prediction for programs; seconds and GiB."""
    return {
        "step_seconds": prediction.step_seconds,
        "tflops_per_gpu": prediction.tflops_per_gpu,
        "compute_seconds": prediction.compute_seconds,
        "exposed_seconds": prediction.exposed_seconds,
        "slow_sync_seconds": prediction.slow_sync_seconds,
        "fully_hidden": prediction.fully_hidden,
        "parts_seconds": dataclasses.asdict(prediction.parts),
        "memory_gib": {name: size / GIB for name, size in dataclasses.asdict(needed).items()},
        "fits": fits(prediction.job, needed),
    }
