"""A cluster as the simulator sees it: the tables [node], [device] and [calibration] of configs/clusters/NAME.toml."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tools.cluster_files import FOLDER, check_keys, read_cluster

DEVICES = Path(__file__).with_name("devices.toml")
NETWORKS, COLLECTIVES = ("rdma", "tcp"), ("nccl", "gloo")
# Keys of the table [node].
NEEDED, OPTIONAL = ("devices", "nics", "nic-gbps"), ("network", "collectives", "rank-gb-per-s")
# What no data sheet says of a rank's share of a host: keys of [device].
HOST_RATES = ("tflops", "memory-gb-per-s", "codec-gb-per-s")


@dataclass(frozen=True)
class Device:
    """One GPU or CPU. Rates in 10^9 per second, efficiencies as a share of them; see devices.toml for their sources."""

    name: str
    family: str
    tflops: float
    memory_gib: float
    memory_gb_per_s: float
    gemm_efficiency: float
    memory_efficiency: float
    attention_efficiency: float
    attention_half_length: float
    launch_us: float
    bus_gb_per_s: float
    codec_gb_per_s: float
    multiprocessors: int
    parameter_bytes: int = 2

    @property
    def gemm_flops(self) -> float:
        """FLOP/s of a large matrix product."""
        return self.tflops * 1e12 * self.gemm_efficiency

    @property
    def bytes_per_s(self) -> float:
        """Bytes/s of a kernel that does nothing but read and write memory."""
        return self.memory_gb_per_s * 1e9 * self.memory_efficiency

    @property
    def codec_bytes_per_s(self) -> float:
        """Bytes/s that a codec kernel reads and writes."""
        return self.codec_gb_per_s * 1e9

    def attention_flops(self, length: float) -> float:
        """FLOP/s of flash attention over `length` keys."""
        ramp = length / (length + self.attention_half_length)
        return self.tflops * 1e12 * self.attention_efficiency * ramp


@dataclass(frozen=True)
class Cluster:
    """Nodes of equal devices. `calibration`: constants that hold on this cluster instead of the common ones.

    `rank_gb_per_s`: the most that one rank's collectives move where hosts do them (gloo, MPI).
    """

    name: str
    devices: int
    nics: int
    nic_gbps: float
    network: str
    device: Device
    rank_gb_per_s: float = math.inf
    collectives: str = "nccl"
    calibration: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)

    @property
    def node_bytes_per_s(self) -> float:
        """Line rate out of a node, all its network cards together, in bytes/s."""
        return self.nics * self.nic_gbps * 1e9 / 8

    @property
    def bus_bytes_per_s(self) -> float:
        """Bus bandwidth of collectives inside a node, bytes/s."""
        return self.device.bus_gb_per_s * 1e9

    def with_link(self, gbps: float) -> Cluster:
        """The same cluster with network cards of `gbps` Gb/s."""
        return dataclasses.replace(self, nic_gbps=gbps)

    def with_rates(self, rates: Mapping[str, float]) -> Cluster:
        """The same cluster with other rates of its device, by keys of [device]."""
        fields = {key.replace("-", "_"): value for key, value in rates.items()}
        return dataclasses.replace(self, device=dataclasses.replace(self.device, **fields))

    @property
    def host_rates(self) -> dict[str, float]:
        """`HOST_RATES` where ranks are processes of a host, on gloo: guesses until own runs say more."""
        names = HOST_RATES if self.collectives == "gloo" else ()
        return {name: getattr(self.device, name.replace("-", "_")) for name in names}


@lru_cache(maxsize=64)
def load_cluster(name: str, folder: Path = FOLDER) -> Cluster:
    """The cluster of `folder/NAME.toml`, or of a .toml file.

    Raises:
        ValueError: there is none, or a key is unknown, missing or out of range.
    """
    path = Path(name)
    if path.suffix == ".toml":
        name, folder = path.stem, path.parent
    tables = read_cluster(name, folder)
    source = f"{folder / name}.toml"
    node = tables["node"]
    check_keys(f"{source}, [node]", node, {*NEEDED, *OPTIONAL}, set(NEEDED))
    for key in (*NEEDED, "rank-gb-per-s"):
        _require_positive(f"{source}, [node]", key, node.get(key, 1))
    choices = {"network": NETWORKS, "collectives": COLLECTIVES}
    for key, known in choices.items():
        if node.get(key, known[0]) not in known:
            raise ValueError(f"{source}, [node]: {key} = {node[key]!r}: use one of {', '.join(known)}")
    device = _device(f"{source}, [device]", tables["device"])
    return Cluster(
        name=name,
        devices=node["devices"],
        nics=node["nics"],
        nic_gbps=node["nic-gbps"],
        network=node.get("network", "rdma"),
        collectives=node.get("collectives", "nccl"),
        device=device,
        rank_gb_per_s=node.get("rank-gb-per-s", math.inf),
        calibration=dict(tables["calibration"]),
    )


def _device(source: str, given: dict[str, Any]) -> Device:
    """The device that a [device] table names, with the keys that the table itself gives."""
    known = tomllib.loads(DEVICES.read_text())
    keys = {field.name.replace("_", "-"): field for field in dataclasses.fields(Device)}
    check_keys(source, given, set(keys), {"name"})
    merged = {"name": given["name"]} | known.get(given["name"], {}) | given
    optional = {key for key, field in keys.items() if field.default is not dataclasses.MISSING}
    missing = sorted(set(keys) - optional - set(merged))
    if missing:
        names = ", ".join(known)
        raise ValueError(f"{source}: {given['name']!r} has no '{missing[0]}': give it there, or name one of {names}")
    for key, value in merged.items():
        if key not in ("name", "family"):
            _require_positive(source, key, value)
    return Device(**{key.replace("-", "_"): value for key, value in merged.items()})


def _require_positive(source: str, key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise ValueError(f"{source}: {key} = {value!r}: give a positive number")
