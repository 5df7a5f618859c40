"""Writes a measured network as a scenario file: hosts gathered into regions, and the matrices of their links."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from tools.atomic_files import atomic_files

# Hosts are regions of their own beyond the largest step between merging distances, if it is at least this factor.
REGION_STEP = 2.0
MESSAGE_BITS = 8 * 2**20


@dataclass(frozen=True)
class Measured:
    """delay [hosts, hosts], seconds one way; bandwidth the same in bit/s, row: who sends; on its diagonal what two
    devices of the host have, inf where that was not measured. num_devices: of every host."""

    delay: np.ndarray
    bandwidth: np.ndarray
    num_devices: list[int]


def regions_of(measured: Measured) -> np.ndarray:
    """int [hosts]: hosts between which a mebibyte travels fast are one region."""
    if len(measured.delay) < 3:
        return np.arange(len(measured.delay)) * 0
    time = measured.delay + MESSAGE_BITS / measured.bandwidth
    distance = (time + time.T) / 2
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), method="single")
    heights = tree[:, 2]
    steps = heights[1:] / heights[:-1]
    if steps.max() < REGION_STEP:
        return np.zeros(len(distance), dtype=int)
    labels = fcluster(tree, heights[steps.argmax()] * 1.0001, criterion="distance")
    order = {label: number for number, label in enumerate(dict.fromkeys(labels.tolist()))}
    return np.array([order[label] for label in labels.tolist()])


def write_scenario(path: Path, measured: Measured, title: str) -> None:
    """Write the scenario file whole or not at all."""
    kinds: dict[tuple[int, int, float], list[int]] = {}
    for host, region in enumerate(regions_of(measured)):
        inside = round(float(measured.bandwidth[host, host]) / 1e9, 1)
        kinds.setdefault((int(region), measured.num_devices[host], inside), []).append(host)
    names = {host: f"region {n}" for n, hosts in enumerate(kinds.values(), start=1) for host in hosts}
    order = ", ".join(f'"{names[host]}"' for host in range(len(names)))
    lines = [f'title = "{title}"', f"host-order = [{order}]"]
    for (_, devices, inside), hosts in kinds.items():
        lines += ["", "[[region]]", f'name = "{names[hosts[0]]}"', f"hosts = {len(hosts)}"]
        lines += [f"devices-per-host = {devices}"] + ([f"host-gbps = {inside}"] if np.isfinite(inside) else [])
    lines += ["", "[matrix]", _matrix("gbps", measured.bandwidth / 1e9), _matrix("delay-ms", measured.delay * 1e3)]
    with atomic_files(path) as [temporary]:
        temporary.write_text("\n".join(lines) + "\n")


def _matrix(key: str, values: np.ndarray) -> str:
    rows = []
    for number, row in enumerate(values):
        words = ["0.0" if number == column else f"{value:.6g}" for column, value in enumerate(row)]
        rows.append("    [" + ", ".join(word if "." in word or "e" in word else f"{word}.0" for word in words) + "],")
    return f"{key} = [\n" + "\n".join(rows) + "\n]"
