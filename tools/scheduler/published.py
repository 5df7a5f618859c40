"""The published cost model on a scenario, with the sizes and the matrix that its authors' traces used."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.cluster_files import check_keys
from tools.scenario_files import Scenario
from tools.scheduler.cost_model import CostModel

COSTS = Path(__file__).resolve().parents[2] / "configs" / "published" / "heterogeneous_cost.toml"
_SIZES = {"activation-gb", "gradient-gb"}
_MATRIX = {"between-hosts-gbps", "inside-region-delay-ms"}


@dataclass(frozen=True)
class Sizes:
    """GB of one macro-batch's activations at a boundary, and of one stage's gradient; None takes the published one."""

    activation: float | None = None
    gradient: float | None = None


def published_model(scenario: Scenario, num_stages: int, sizes: Sizes, groups: np.ndarray | None = None) -> CostModel:
    """The cost model of the scenario's devices, or of tensor groups (int [units, tensor]) by their first device.

    Raises:
        ValueError: the devices do not divide into the stages.
    """
    settings = _settings(scenario.name)
    delay, bandwidth = scenario.device_delay.copy(), scenario.device_bandwidth.copy()
    host = scenario.host_of_device
    region = np.array([scenario.hosts[index].region for index in host])
    elsewhere = host[:, None] != host
    if "between-hosts-gbps" in settings:
        bandwidth[elsewhere] = settings["between-hosts-gbps"] * 1e9
    if "inside-region-delay-ms" in settings:
        delay[elsewhere & (region[:, None] == region)] = settings["inside-region-delay-ms"] * 1e-3
    if groups is not None:
        first = np.ix_(groups[:, 0], groups[:, 0])
        delay, bandwidth = delay[first], bandwidth[first]
    activation = settings["activation-gb"] if sizes.activation is None else sizes.activation
    gradient = settings["gradient-gb"] if sizes.gradient is None else sizes.gradient
    return CostModel(delay, bandwidth, activation * 1e9, gradient * 1e9, num_stages)


def _settings(name: str) -> dict[str, float]:
    tables = tomllib.loads(COSTS.read_text())
    defaults = tables.pop("defaults")
    for scenario, table in tables.items():
        check_keys(f"{COSTS}, {scenario}", table, _SIZES | _MATRIX)
    return defaults | tables.get(name, {})
