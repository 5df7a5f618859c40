"""Which devices form a node for compression: those that many bits reach easily."""

from __future__ import annotations

import numpy as np

from tools.scenario_files import Scenario


def node_of_device(scenario: Scenario) -> np.ndarray:
    """int [devices]: regions are the nodes of compression where there are several, else hosts."""
    regions = list(dict.fromkeys(host.region for host in scenario.hosts))
    if len(regions) == 1:
        return scenario.host_of_device
    return np.array([regions.index(scenario.hosts[host].region) for host in scenario.host_of_device])
