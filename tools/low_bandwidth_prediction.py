"""The simulator's prediction beside each row of the low-bandwidth experiment, where it knows this cluster."""

from __future__ import annotations

import importlib.util
from typing import Any

from tools.cluster_files import FOLDER

CLUSTER = "emulated_2x2"
_HAS_CLUSTER = (FOLDER / f"{CLUSTER}.toml").is_file()
_HAS_SIMULATOR = importlib.util.find_spec("tools.simulator") is not None
_HAS_MODULE = _HAS_SIMULATOR and importlib.util.find_spec("tools.simulator.emulated") is not None
NOTE_ABSENT = (
    None
    if _HAS_CLUSTER and _HAS_MODULE
    else f"The simulator's column is empty: tools/simulator/emulated.py or configs/clusters/{CLUSTER}.toml is absent."
)


def predicted_step_ms(row: dict[str, Any]) -> float | None:
    """Milliseconds of the step of `row` (its scheme, link rate, sequence and accumulation); None without simulator."""
    if NOTE_ABSENT:
        return None
    from tools.simulator import emulated

    return emulated.predicted_step_ms(row["scheme"], row["link_mbit"], row["seq_length"], row["accumulation"])
