"""How each published run was made: what configs/published/heterogeneous_runs.toml says, and its random layouts."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tools.cluster_files import check_keys
from tools.scenario_files import Scenario, read_scenario
from tools.simulator.heterogeneous_constants import Constants
from tools.simulator.heterogeneous_network import Network
from tools.simulator.heterogeneous_work import GPT_XL_HIDDEN, Work

RUNS = Path(__file__).resolve().parents[2] / "configs" / "published" / "heterogeneous_runs.toml"
_WIDE = "sequences-per-step-of-wide-models"
_SEED = "deepspeed-random-seed"


@dataclass(frozen=True)
class Run:
    """One published run: its network, its work, the settings of its scenario, and the seed of a random order."""

    scenario: Scenario
    network: Network
    work: Work
    settings: dict[str, Any]
    seed: int | None

    @property
    def stages(self) -> int:
        """Pipeline stages of the runs with pipelines of eight."""
        return self.settings["pipeline-stages"]

    @property
    def replicas(self) -> int:
        """Pipelines beside each other."""
        return self.settings["data-replicas"]

    @property
    def sequences_per_step(self) -> int:
        """Of one DT-FM pipeline between two barriers."""
        if self.work.hidden > GPT_XL_HIDDEN:
            return self.settings[_WIDE]
        deep = self.work.layers == 40
        return self.settings["sequences-per-step-of-40-layers" if deep else "sequences-per-step"]

    def layer_time(self, sequences: int = 1) -> float:
        """Seconds of one layer's forward pass for so many sequences."""
        rate = self.network.constants.teraflops_of(self.settings["device"]) * 1e12
        return sequences * self.work.layer_forward_flops / rate

    def shuffled_devices(self, seed: int) -> np.ndarray:
        """The published permutation of the devices: 0, and the others as numpy's old generator shuffles them."""
        return _shuffled(self.network.num_devices, seed)

    def shuffled_hosts(self, seed: int) -> np.ndarray:
        """The same of the hosts, each with all its devices."""
        order = _shuffled(len(self.scenario.hosts), seed)
        return np.concatenate([np.flatnonzero(self.network.host == host) for host in order])


def _shuffled(number: int, seed: int) -> np.ndarray:
    others = np.arange(1, number)
    np.random.RandomState(seed).shuffle(others)
    return np.concatenate([[0], others])


def read_run(scenario: str, work: Work, seed: int | None, constants: Constants) -> Run:
    """The run of ``work`` on the published network of that name.

    Raises:
        ValueError: a scenario of which nothing is published.
    """
    return Run(*_network(scenario, constants), work, _settings()[scenario], seed)


def published_scenarios() -> list[str]:
    """Names of the networks with published times."""
    return list(_settings())


@cache
def _network(name: str, constants: Constants) -> tuple[Scenario, Network]:
    if name not in _settings():
        raise ValueError(f"nothing is published of scenario '{name}'; there are: {', '.join(_settings())}")
    scenario = read_scenario(name)
    return scenario, Network(scenario, constants)


@cache
def _settings() -> dict[str, dict[str, Any]]:
    tables = tomllib.loads(RUNS.read_text())
    defaults = tables.pop("defaults")
    for name, table in tables.items():
        check_keys(f"{RUNS}, {name}", table, defaults.keys() | {_WIDE, _SEED})
    return {name: defaults | table for name, table in tables.items()}
