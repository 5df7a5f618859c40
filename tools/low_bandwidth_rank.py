"""One rank of tools/low_bandwidth.py, on a node of the emulated cluster: trains all schemes of a shape in turns.

``low_bandwidth_rank.py [--quick] GRID SHAPE_INDEX OUTPUT``. Rank 0 writes the rows to OUTPUT. At every link rate the
schemes take turns, a block of steps each; the first step of a block is not counted, and no exact sync of DUO goes on
into another's block.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Run as a file, Python looks for modules beside it; the trainer stands in the folder above.
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from megatron.training.arguments import parse_args
from megatron.training.step_parts import take_part_seconds
from megatron.training.validation import validate_args
from tools.atomic_files import atomic_files
from tools.emulator.counters import Traffic, processor_seconds, read_counters
from tools.emulator.network import DEVICE
from tools.emulator.shaping import rate_change_command
from tools.low_bandwidth_grid import Grid, Scheme, Shape, read_grid

SYNCS = ("gradient sync", "parameter sync")


class SchemeRun:
    """A scheme's training run: its steps' times, losses and traffic."""

    def __init__(self, grid: Grid, shape: Shape, scheme: Scheme) -> None:
        import sdp4bit_patches
        from megatron.training.initialize import set_random_seed
        from megatron.training.training import set_up

        quiet = ["--eval-iters", "0", "--timing-log-level", "2", "--log-interval", str(2**30)]
        args = validate_args(parse_args([*grid.words(shape, scheme), *quiet]), grid.world_size)
        args.barrier_with_L1_time = False  # a barrier before every part would be measured, too
        self.scheme, self.losses = scheme, []
        device_seconds = shape.device_ms / shape.accumulation * 1e-3
        set_random_seed(args.seed)  # all schemes begin with the same weights
        with contextlib.redirect_stdout(io.StringIO()):  # the start-up report of each
            self.run = set_up(args)
        sdp4bit_patches.uninstall()
        if device_seconds:
            self.run.model[0].register_forward_pre_hook(lambda *_: time.sleep(device_seconds))

    @property
    def _groups(self) -> list[Any]:
        return [group for chunk in self.run.model for group in chunk.bucket_groups if hasattr(group, "session")]

    @property
    def duo(self) -> Any:
        """The second sync; None where the scheme has none."""
        return self._groups[0].session.duo if self._groups else None

    def step(self) -> dict[str, float]:
        """Train one step; milliseconds of it and of its parts on this rank."""
        begun = time.perf_counter()
        self.losses.append(self.run.iteration().lm_loss)
        times = {"step": (time.perf_counter() - begun) * 1e3}
        parts = {part: seconds * 1e3 for part, seconds in take_part_seconds(self.run.timers).items()}
        return times | {"compute": parts["forward"] + parts["backward"], "exposed": sum(parts[sync] for sync in SYNCS)}

    def settle(self) -> None:
        """Train the steps that a scheme needs to get used to a rate."""
        for _ in range(self.scheme.settle_steps):
            self.step()
        if self.duo is not None:
            self.duo.pause()

    def block(self, num_steps: int) -> dict[str, Any]:
        """One step that is not counted, then `num_steps` that are; means over the latter."""
        import torch.distributed as dist

        dist.barrier()
        before = _sent_by_node()
        self.step()
        dist.barrier()
        rows, worked = [], processor_seconds()
        for _ in range(num_steps):
            row = self.step()
            if self.duo is not None:
                row |= {key: value for key, value in self.duo.latest.items() if key.endswith("_ms")}
            rows.append(row)
        worked = processor_seconds() - worked
        if self.duo is not None:
            self.duo.pause()
        dist.barrier()
        # No exact sync is under way at either reading: there are as many between them as steps.
        sent = _sent_by_node() - before
        means = {key: statistics.fmean(row[key] for row in rows) for key in rows[0]}
        means |= {"sent_bytes": sent.payload_bytes / (num_steps + 1), "processor_ms": worked / num_steps * 1e3}
        return {"steps": [row["step"] for row in rows], **means}

    def predicted_bytes(self, ranks_per_node: int) -> float | None:
        """What this rank's node sends to others in a step, by wire.py.

        None for a scheme that gloo's own collectives take part in, or that changes how often it syncs exactly.
        """
        messages = [message for group in self._groups for message in group.messages or ()]
        if not messages or any(message.all_gather is None for message in messages):
            return None
        total = sum((message.gradient_bytes + message.parameter_bytes).inter for message in messages)
        if self.duo is not None:
            if self.duo.policy.adaptive:
                return None
            total += sum(bucket.link_bytes.inter for bucket in self.duo.buckets)
        return ranks_per_node * total


def _sent_by_node() -> Traffic:
    return read_counters()[DEVICE][1]


def set_link_rate(megabits: float) -> None:
    """The first rank of every node changes its link; returns when all have."""
    import torch.distributed as dist

    if os.environ["LOCAL_RANK"] == "0":
        subprocess.run(["tc", *rate_change_command(DEVICE, megabits * 1e6).split()], check=True)
    dist.barrier()


def measure(grid: Grid, shape: Shape) -> list[dict[str, Any]]:
    """All schemes at all rates; rows on every rank alike."""
    import torch.distributed as dist
    from tqdm import tqdm

    runs = [SchemeRun(grid, shape, scheme) for scheme in grid.schemes_of(shape)]
    rows = []
    turns = [grid.rounds_of(shape, run.scheme) for run in runs]
    total = len(grid.link_mbit) * sum(turns)
    with tqdm(total=total, desc=shape.name, unit="block", disable=dist.get_rank() != 0, mininterval=5.0) as bar:
        for megabits in grid.link_mbit:
            set_link_rate(megabits)
            for run in runs:
                run.settle()
            blocks: list[list[Any]] = [[] for _ in runs]
            for turn in range(max(turns)):
                taking_turns = [index for index, own in enumerate(turns) if turn < own]
                first = turn % len(taking_turns)
                for index in taking_turns[first:] + taking_turns[:first]:
                    blocks[index].append(runs[index].block(grid.steps_per_block))
                    bar.update()
            for run, own in zip(runs, blocks, strict=True):
                rows.append(_row(grid, shape, megabits, run, own))
    return rows


def _row(grid: Grid, shape: Shape, megabits: float, run: SchemeRun, blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of the table: of all ranks, the slowest one's step, the mean of the rest."""
    import torch.distributed as dist

    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, blocks)
    steps = [
        max(times) for block in zip(*ranks, strict=True) for times in zip(*(r["steps"] for r in block), strict=True)
    ]
    means = {
        f"{key.removesuffix('_ms')}_ms": statistics.fmean(block[key] for rank in ranks for block in rank)
        for key in blocks[0]
        if key not in ("steps", "sent_bytes", "step")
    }
    row = {"link_mbit": megabits, "seq_length": shape.seq_length, "accumulation": shape.accumulation}
    row |= {"device_ms": shape.device_ms}
    row |= {"scheme": run.scheme.name, "step_ms": statistics.median(steps), "steps_ms": steps, **means}
    row |= {"steps_per_block": grid.steps_per_block}
    tokens = grid.world_size * shape.accumulation * shape.seq_length
    row |= {"tokens_per_s": tokens / row["step_ms"] * 1e3}
    row |= {"node_bytes": statistics.fmean(block["sent_bytes"] for rank in ranks for block in rank)}
    row |= {"predicted_bytes": run.predicted_bytes(grid.ranks_per_node), "losses": list(run.losses)}
    return row | {"slow_level": str(run.duo.policy.level) if run.duo is not None else None}


def main(*words: str) -> None:
    """One rank."""
    grid_path, shape_index, output = [word for word in words if not word.startswith("--")]
    grid = read_grid(Path(grid_path))
    grid = grid.quick() if "--quick" in words else grid
    shape = grid.shapes[int(shape_index)]
    first = validate_args(parse_args(grid.words(shape, grid.schemes[0])), grid.world_size)
    from sdp4bit_patches import cpu_device

    cpu_device.install()
    from megatron.training.host_group import initialize_host_group
    from megatron.training.initialize import initialize_megatron
    from megatron.training.quiet import quiet_libraries

    quiet_libraries()
    import torch.distributed as dist

    initialize_megatron(first)
    initialize_host_group(first.distributed_timeout_minutes)
    rows = measure(grid, shape)
    if dist.get_rank() == 0:
        with atomic_files(Path(output)) as [temporary]:
            temporary.write_text(json.dumps(rows, indent=1) + "\n")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
