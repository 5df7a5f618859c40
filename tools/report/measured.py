"""What one run's folder says: means over the iterations after warm-up, or in words why there is no figure."""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron.training.flops import flops_per_sample
from tools.plot_runs import read_records
from tools.run_folder import METRICS, differences, read_record, settings
from tools.sweep.local import scaled
from tools.sweep.runs import Run

# A second sync counts as hidden when it lengthens steps by no more than this share of them.
_HIDDEN = 0.01

Records = list[dict[str, Any]]
Figure = tuple[float | str, float]  # a mean and its standard deviation; or a word


@dataclass(frozen=True)
class Measurement:
    """Of one run: figures by name, or the `gap` in words; `problem` is a gap that the user has to mend."""

    figures: dict[str, Figure] = field(default_factory=dict)
    gap: str = ""
    problem: str = ""
    hardware: str = ""
    is_scaled: bool = False


def measure(run: Run, runs_folder: Path) -> Measurement:
    """The figures of ``run`` from its folder below ``runs_folder``. What is wrong there is returned, not raised."""
    folder = runs_folder / run.id
    if not folder.is_dir():
        return Measurement(gap="not run")
    try:
        return _measure(run, folder)
    except (ValueError, OSError) as error:
        return Measurement(gap="unusable", problem=str(error))


def _measure(run: Run, folder: Path) -> Measurement:
    record = read_record(folder)
    if record is None and not (folder / METRICS).exists():
        return Measurement(gap="not run")
    is_scaled = False
    if record is not None:
        is_scaled = _is_scaled(run, folder, record)
        gap = _ended_badly(folder, record)
        if gap:
            return Measurement(gap=gap, is_scaled=is_scaled)
    records = read_records(folder / METRICS)
    skipped = run.sweep.local.skipped_iterations if is_scaled else run.sweep.skipped_iterations
    counted = [line for line in records if line["iteration"] > skipped]
    if not counted:
        return Measurement(gap=f"{len(records)} iterations, all of them warm-up", is_scaled=is_scaled)
    ranks = record["ranks"] if record else run.num_ranks
    machine = record["machine"] if record else f"machine not recorded (no run.json in {folder})"
    args = (scaled(run) if is_scaled else run).arguments()
    hardware = (
        f"{machine}; {ranks} rank{'s' if ranks > 1 else ''}; {len(counted)} iterations after {skipped} of warm-up"
    )
    return Measurement(_figures(counted, record or {}, args), "", "", hardware, is_scaled)


def _is_scaled(run: Run, folder: Path, record: dict[str, Any]) -> bool:
    """Whether the folder's run is the scaled-down one.

    Raises:
        ValueError: it is neither that nor the run itself.
    """
    if record["run"] != folder.name:
        raise ValueError(f"{folder} holds the run '{record['run']}': runs are mixed up; put each into its own folder")
    other = differences(record["settings"], settings(run.words()))
    if not other:
        return False
    if run.sweep.local and not differences(record["settings"], settings(scaled(run).words())):
        return True
    raise ValueError(
        f"{folder} holds a run with another {', '.join(other[:3])} than {run.id} of {run.sweep.name}: runs of several "
        "tables are mixed; give each table its folder"
    )


def _ended_badly(folder: Path, record: dict[str, Any]) -> str:
    done = 0
    if (folder / METRICS).exists():
        done = read_records(folder / METRICS)[-1]["iteration"]
    if record.get("exit_code") is None:
        return f"still running, or killed, at iteration {done} of {record['iterations']}"
    if record["exit_code"]:
        return f"failed with exit code {record['exit_code']} after iteration {done} of {record['iterations']}"
    return "" if done >= record["iterations"] else f"stopped at iteration {done} of {record['iterations']}"


def _figures(records: Records, record: dict[str, Any], args: Namespace) -> dict[str, Figure]:
    """Every figure that these iterations give; `hardware_tflops_per_gpu` counts what is recomputed, too."""
    recomputed = recomputed_flops(args) / args.world_size

    def hardware_tflops(line: dict[str, Any]) -> float:
        return line["tflops_per_gpu"] + recomputed / (line["step_ms"] * 1e9)

    found: dict[str, Figure] = {
        "tflops_per_gpu": _mean(records, lambda line: line["tflops_per_gpu"]),
        "hardware_tflops_per_gpu": _mean(records, hardware_tflops),
        "aggregate_pflops": _mean(records, lambda line: hardware_tflops(line) * args.world_size / 1e3),
        "seconds_per_iteration": _mean(records, lambda line: line["step_ms"] / 1e3),
    }
    validated = [line["validation_loss"] for line in records if line.get("validation_loss") is not None]
    if validated:
        found["validation_loss"] = (validated[-1], 0.0)
    if "memory_mib" in record:
        found["memory_mib"] = (record["memory_mib"], 0.0)
    synced = [line for line in records if line.get("duo_slow_ms")]
    if synced:
        exposed = sum(line["duo_exposed_ms"] for line in synced) / sum(line["step_ms"] for line in synced)
        found["slow_gradient_sync_ms"] = _mean(synced, lambda line: line["duo_slow_ms"])
        found["computation_ms"] = _mean(synced, lambda line: line["duo_window_ms"])
        found["fully_hidden"] = ("yes" if exposed < _HIDDEN else "no", 0.0)
    return found


def recomputed_flops(args: Namespace) -> float:
    """FLOPs of a step that are not counted, since full recompute does the layers' forward pass again.

    With them a GPT takes ``96 s l h^2 (1 + s/(6h) + V/(16 l h))`` a sample (Narayanan et al. 2021, arXiv 2104.04473).
    """
    if args.recompute_granularity != "full":
        return 0.0
    layers = flops_per_sample(Namespace(**vars(args) | {"padded_vocab_size": 0}))
    return layers / 3 * args.global_batch_size


def _mean(records: Records, value: Callable[[dict[str, Any]], float]) -> Figure:
    values = [value(line) for line in records]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
