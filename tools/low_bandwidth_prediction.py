"""The simulator's prediction beside each row of the low-bandwidth experiment."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from tools.low_bandwidth_grid import Grid
from tools.simulator.predict import predict_words

CLUSTER = "emulated_2x2"


def predicted_step_ms(grid: Grid, row: dict[str, Any]) -> float:
    """Milliseconds of the step of `row` (its scheme, link rate, sequence and accumulation), by the simulator."""
    [scheme] = [scheme for scheme in grid.schemes if scheme.name == row["scheme"]]
    batch = grid.world_size * row["accumulation"]
    sizes = [f"seq-length={row['seq_length']}", f"global-batch-size={batch}", f"gpus={grid.world_size}"]
    link = [f"cluster={CLUSTER}", f"link-gbps={row['link_mbit'] / 1000:g}"]
    words = [Path(grid.config).stem, *link, *sizes, *_assignments(scheme.flags)]
    with contextlib.redirect_stderr(io.StringIO()):  # which of the run's keys have no effect on a prediction
        return predict_words(words)["step_seconds"] * 1e3


def _assignments(flags: tuple[str, ...]) -> list[str]:
    """`--a --b 3` as the simulator reads it: `a=true`, `b=3`."""
    words: list[str] = []
    for flag in flags:
        if flag.startswith("--"):
            words.append(f"{flag.removeprefix('--')}=true")
        else:
            words[-1] = f"{words[-1].removesuffix('true')}{flag}"
    return words
