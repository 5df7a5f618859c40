"""A network of hosts as data: configs/scenarios/NAME.toml, for the emulated cluster and the scheduler. The schema:

    title = "Case 3: two universities"           # optional

    [[region]]                                   # one or more; hosts are numbered region by region
    name = "Ohio"
    hosts = 4
    devices-per-host = 1
    intra-gbps = 5.0                             # between two hosts of the region; optional where it has one host
    intra-delay-ms = 1.0
    host-gbps = 100.0                            # optional: between two devices of one host; unlimited by default

    [[link]]                                     # one for every pair of regions
    between = ["Ohio", "Virginia"]               # or, for one direction: from = "Ohio", to = "Virginia"
    gbps = 1.12                                  # 1 Gbit/s is 1e9 bit/s; 0.2 is 200 Mbit/s
    delay-ms = 11.0                              # one way
    shared = false                               # optional: whether the rate is that of all hosts together

    host-order = ["Ohio", "Virginia", "Ohio"]    # optional, before the tables: the region of host 0, 1, 2, …

A measured network may name no links; it gives every pair of hosts instead (row: who sends; the diagonal is not read):

    [matrix]
    gbps = [[0.0, 1.1], [1.2, 0.0]]
    delay-ms = [[0.0, 11.0], [11.0, 0.0]]
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from tools.cluster_files import check_keys
from tools.toml_files import read_toml

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "scenarios"

_REGION = {"name", "hosts", "devices-per-host"}
_REGION_OPTIONAL = {"intra-gbps", "intra-delay-ms", "host-gbps"}
_LINK = {"gbps", "delay-ms"}


@dataclass(frozen=True)
class Host:
    """A host: its region, how many devices it has, and bit/s between two of them (`inf`: unlimited)."""

    region: str
    num_devices: int
    device_bandwidth: float


@dataclass(frozen=True)
class Scenario:
    """Hosts and the network between them.

    delay: float64 [hosts, hosts], seconds one way, row: who sends. bandwidth: the same in bit/s. On the diagonals stand
    0 s and what two devices of that host have. shared: bool, the same shape: whether all hosts of the sender's region
    share the bandwidth to the receiver's; None where no link is shared.
    """

    name: str
    hosts: tuple[Host, ...]
    delay: np.ndarray
    bandwidth: np.ndarray
    title: str = ""
    shared: np.ndarray | None = None

    @property
    def num_devices(self) -> int:
        """Devices of all hosts; they are numbered host by host."""
        return sum(host.num_devices for host in self.hosts)

    @property
    def host_of_device(self) -> np.ndarray:
        """int [devices]: the host of each device."""
        return np.repeat(np.arange(len(self.hosts)), [host.num_devices for host in self.hosts])

    @property
    def device_delay(self) -> np.ndarray:
        """float64 [devices, devices], seconds one way."""
        return self.delay[np.ix_(self.host_of_device, self.host_of_device)]

    @property
    def device_bandwidth(self) -> np.ndarray:
        """float64 [devices, devices], bit/s as if the link were this pair's alone."""
        return self.bandwidth[np.ix_(self.host_of_device, self.host_of_device)]


def uniform_scenario(num_hosts: int, devices_per_host: int, bandwidth: float, delay: float = 0.0) -> Scenario:
    """Equal hosts, each reached by each other with `bandwidth` (bit/s) and `delay` (seconds, one way)."""
    apart = ~np.eye(num_hosts, dtype=bool)
    hosts = (Host("one", devices_per_host, np.inf),) * num_hosts
    name = f"{num_hosts} hosts at {bandwidth / 1e6:g} Mbit/s"
    return Scenario(name, hosts, np.where(apart, delay, 0.0), np.where(apart, bandwidth, np.inf))


def read_scenario(name: str, folder: Path = FOLDER) -> Scenario:
    """The scenario of this name in `folder`, or in the file of that path (`NAME.toml`).

    Raises:
        ValueError: no such scenario, or a file that does not follow the schema above.
    """
    path = Path(name) if name.endswith(".toml") else folder / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in folder.glob("*.toml"))) or "none"
        raise ValueError(f"there is no scenario {path}; {folder} has: {known}")
    tables = read_toml(path)
    return _scenario(path, tables)


def _scenario(path: Path, tables: dict[str, Any]) -> Scenario:
    check_keys(str(path), tables, {"title", "host-order", "region", "link", "matrix"}, {"region"})
    regions: dict[str, dict[str, Any]] = {}
    for number, region in enumerate(_tables(path, tables, "region"), start=1):
        where = f"{path}, region {number}"
        check_keys(where, region, _REGION | _REGION_OPTIONAL, _REGION)
        if region["name"] in regions:
            raise ValueError(f"{where}: there are two regions named {region['name']!r}")
        regions[region["name"]] = _checked_region(where, region, needs_intra="matrix" not in tables)
    hosts = _hosts(path, tables.get("host-order"), regions)
    if "matrix" in tables:
        if "link" in tables:
            raise ValueError(f"{path}: a network has links or a matrix, not both")
        bandwidth, delay = _matrices(f"{path}, matrix", tables["matrix"], len(hosts))
        shared = None
    else:
        bandwidth, delay, shared = _from_links(path, hosts, regions, _tables(path, tables, "link"))
    for number, host in enumerate(hosts):
        bandwidth[number, number], delay[number, number] = host.device_bandwidth, 0.0
    return Scenario(path.stem, hosts, delay, bandwidth, tables.get("title", ""), shared)


def _tables(path: Path, tables: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = tables.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path}: {key} has to be written as [[{key}]], once for each of them")
    return entries


def _checked_region(where: str, region: dict[str, Any], needs_intra: bool) -> dict[str, Any]:
    if not isinstance(region["name"], str):
        raise ValueError(f"{where}: name = {region['name']!r} is not a string")
    for key in ("hosts", "devices-per-host"):
        if type(region[key]) is not int or region[key] < 1:
            raise ValueError(f"{where}: {key} = {region[key]!r} is not a positive integer")
    if region["hosts"] > 1 and needs_intra:
        check_keys(where, region, _REGION | _REGION_OPTIONAL, {"intra-gbps", "intra-delay-ms"})
    for key in _REGION_OPTIONAL & region.keys():
        _number(where, key, region[key])
    return region


def _number(where: str, key: str, value: object) -> float:
    """`value` as a float: a bandwidth above zero, or a delay of at least zero."""
    least = "at least 0" if "delay" in key else "above 0 (a pair that nothing reaches cannot train)"
    number = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
    if not number or value < 0 or (value == 0 and "delay" not in key):
        raise ValueError(f"{where}: {key} = {value!r} has to be a number {least}")
    return float(value)


def _hosts(path: Path, order: object, regions: dict[str, dict[str, Any]]) -> tuple[Host, ...]:
    counts = {name: region["hosts"] for name, region in regions.items()}
    names = [name for name, count in counts.items() for _ in range(count)] if order is None else order
    if not isinstance(names, list) or sorted(map(str, names)) != sorted(n for n, c in counts.items() for _ in range(c)):
        raise ValueError(f"{path}: host-order has to name every region once for each of its hosts: {counts}")
    return tuple(
        Host(name, regions[name]["devices-per-host"], regions[name].get("host-gbps", np.inf) * 1e9) for name in names
    )


def _from_links(
    path: Path, hosts: tuple[Host, ...], regions: dict[str, dict[str, Any]], links: list[dict[str, Any]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bandwidth and delay of every pair of hosts, from those of the regions that they lie in, and whether shared."""
    pairs: dict[tuple[str, str], tuple[float, float, bool]] = {}
    for number, link in enumerate(links, start=1):
        where = f"{path}, link {number}"
        ends = {"between"} if "between" in link else {"from", "to"}
        check_keys(where, link, ends | _LINK | {"shared"}, ends | _LINK)
        if not isinstance(shared := link.get("shared", False), bool):
            raise ValueError(f"{where}: shared = {shared!r} has to be true or false")
        values = _number(where, "gbps", link["gbps"]), _number(where, "delay-ms", link["delay-ms"]), shared
        for pair in _directions(where, link, regions):
            if pair in pairs:
                raise ValueError(f"{where}: the link from {pair[0]} to {pair[1]} is given twice")
            pairs[pair] = values
    pairs |= {(n, n): (r.get("intra-gbps", 0.0), r.get("intra-delay-ms", 0.0), False) for n, r in regions.items()}
    for source, target in permutations(regions, 2):
        if (source, target) not in pairs:
            raise ValueError(f"{path}: there is no link from {source} to {target}; every pair of regions needs one")
    table = np.array([[pairs[source.region, target.region] for target in hosts] for source in hosts])
    return table[..., 0] * 1e9, table[..., 1] * 1e-3, table[..., 2] > 0


def _directions(where: str, link: dict[str, Any], regions: dict[str, Any]) -> list[tuple[str, str]]:
    ends = link["between"] if "between" in link else [link["from"], link["to"]]
    if not isinstance(ends, list) or len(ends) != 2 or any(end not in regions for end in map(str, ends)):
        raise ValueError(f"{where}: {ends!r} are not two of the regions {', '.join(regions)}")
    source, target = ends
    if source == target:
        raise ValueError(f"{where}: {source} to itself; that is the region's intra-gbps and intra-delay-ms")
    return [(source, target), (target, source)] if "between" in link else [(source, target)]


def _matrices(where: str, table: object, num_hosts: int) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(table, dict):
        raise ValueError(f"{where}: has to be a table with gbps and delay-ms")
    check_keys(where, table, _LINK, _LINK)
    result = []
    for key, unit in (("gbps", 1e9), ("delay-ms", 1e-3)):
        rows = table[key] if isinstance(table[key], list) else []
        if [len(row) if isinstance(row, list) else 0 for row in rows] != [num_hosts] * num_hosts:
            raise ValueError(f"{where}: {key} has to be square, {num_hosts} rows of {num_hosts} numbers: one a host")
        for row, column in permutations(range(num_hosts), 2):
            _number(f"{where}, row {row}, column {column}", key, rows[row][column])
        result.append(np.array([[0.0 if i == j else v for j, v in enumerate(r)] for i, r in enumerate(rows)]) * unit)
    return result[0], result[1]
