"""The fitted constants, each with its unit, its meaning and the range outside of which it is refused.

calibration.toml holds their values: a table [common], and one for each family of devices; the [calibration] table of a
cluster overrules both. `python -m tools.simulator fit` makes calibration.toml again from the measured rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from tools.cluster_files import check_keys
from tools.simulator.machine import Cluster
from tools.toml_files import read_toml

FILE = Path(__file__).with_name("calibration.toml")


def _constant(default: float, low: float, high: float, unit: str, text: str) -> float:
    return field(default=default, metadata={"low": low, "high": high, "unit": unit, "help": text})


@dataclass(frozen=True)
class Constants:
    """Everything that is fitted; a default is what the fit leans to where no row says anything.

    Raises:
        ValueError: a constant is outside its range.
    """

    sustained_clock: float = _constant(
        0.85, 0.5, 1.0, "share", "speed of kernels throughout a training, of that in a short benchmark"
    )
    local_passes: float = _constant(
        1.5,
        1.0,
        3.0,
        "factor",
        "memory traffic of the local layer spec's element-wise kernels, of what fused ones need",
    )
    score_bytes: float = _constant(13, 8, 30, "bytes", "memory traffic of a score of unfused attention, forward")
    tensor_step_us: float = _constant(100, 0, 400, "us", "latency and launch of one tensor-parallel collective")
    nic_efficiency: float = _constant(0.9, 0.75, 1.0, "share", "of the line rate that NCCL reaches over RDMA")
    tcp_efficiency: float = _constant(0.8, 0.3, 1.0, "share", "of the line rate that NCCL or gloo reach over TCP")
    gloo_host_ms_per_mb: float = _constant(
        0.0,
        0.0,
        20.0,
        "ms/MB",
        "that gloo's collectives take of a node's processes for what it sends, beside the line's time",
    )
    shared_ring: float = _constant(
        0.65,
        0.3,
        1.0,
        "share",
        "of that, a ring through several devices of a node with fewer network cards than devices",
    )
    bucket_efficiency: float = _constant(
        0.5, 0.2, 1.0, "share", "of their rate that collectives reach which go bucket by bucket beside compute"
    )
    micro_batch_ms: float = _constant(
        30, 0, 60, "ms", "host work of a micro-batch that no kernel hides, local layer spec"
    )
    mask_gscores_per_s: float = _constant(
        0.5, 0.1, 2.0, "G/s", "scores of a sample's attention mask that a data loader makes"
    )
    mask_gb_per_s: float = _constant(6, 2, 30, "GB/s", "at which such a mask gets to the device")
    loader_skew_ms: float = _constant(
        400, 0, 1500, "ms", "by which a replica's slowest mask loader ends a step later, per further rank along CP x PP"
    )
    host_reduce_gb_per_s: float = _constant(
        0.85,
        0.02,
        5.0,
        "GB/s",
        "at which a rank's host sums gradients in DUO's second sync, not overlapped with sending; least where ranks "
        "compute on the same cores",
    )

    def __post_init__(self) -> None:
        for constant in FIELDS.values():
            check_range("calibration", constant, getattr(self, constant.name))


FIELDS = {constant.name: constant for constant in dataclasses.fields(Constants)}


def check_range(source: str, constant: dataclasses.Field, value: float) -> None:
    """Raise ValueError where `value` is outside the constant's range; `source` is named."""
    low, high, unit = (constant.metadata[key] for key in ("low", "high", "unit"))
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{source}: {constant.name} = {value!r} {unit}: plausible is {low:g} to {high:g}")


@dataclass(frozen=True)
class Calibration:
    """Values of constants by table: `common`, then families of devices."""

    tables: Mapping[str, Mapping[str, float]]

    def constants(self, cluster: Cluster) -> Constants:
        """The constants that hold on `cluster`."""
        values = {**self.tables.get("common", {}), **self.tables.get(cluster.device.family, {}), **cluster.calibration}
        check_keys(f"[calibration] of {cluster.name}", values, set(FIELDS))
        return Constants(**values)


@lru_cache(maxsize=4)
def read_calibration(path: Path = FILE) -> Calibration:
    """The calibration of a file.

    Raises:
        ValueError: it is not TOML, or a constant is unknown or out of range.
    """
    tables = read_toml(path)
    for table, values in tables.items():
        check_keys(f"{path}, [{table}]", values, set(FIELDS))
        for name, value in values.items():
            check_range(f"{path}, [{table}]", FIELDS[name], value)
    return Calibration(tables)
