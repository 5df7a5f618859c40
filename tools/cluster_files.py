"""A cluster as data: configs/clusters/NAME.toml, one table for each that reads it. Standard library only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.toml_files import read_toml

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "clusters"

# Table of a cluster file -> what it says. Who reads a table checks its keys (:func:`check_keys`).
TABLES = {
    "flags": "flags of pretrain_gpt.py that a run on this cluster always takes, such as node-size",
    "node": "what a node has: devices, network cards, links inside it and out of it",
    "device": "what one GPU or CPU does: FLOP/s, bytes/s, memory",
    "calibration": "the simulator's fitted constants, each with the run it comes from",
    "launch": "how jobs start: Slurm options, environment, network interfaces, container",
}


def read_cluster(name: str, folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """The tables of ``folder/name.toml``; a table that the file has not is empty.

    Raises:
        ValueError: no such cluster, invalid TOML, or a table that nobody reads.
    """
    path = folder / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in folder.glob("*.toml"))) or "none"
        raise ValueError(f"there is no cluster '{name}' in {folder}; there are: {known}")
    tables = read_toml(path)
    for key, value in tables.items():
        if key not in TABLES or not isinstance(value, dict):
            raise ValueError(f"{path}: '{key}' is not one of the tables of a cluster: {', '.join(TABLES)}")
    return {table: tables.get(table, {}) for table in TABLES}


def check_keys(source: str, given: dict[str, Any], known: set[str], needed: set[str] = frozenset()) -> None:
    """Raise ValueError where ``given`` has a key outside ``known`` or lacks one of ``needed``; ``source`` is named."""
    unknown = sorted(given.keys() - known)
    if unknown:
        raise ValueError(f"{source}: unknown key '{unknown[0]}'; known are: {', '.join(sorted(known))}")
    missing = sorted(needed - given.keys())
    if missing:
        raise ValueError(f"{source}: '{missing[0]}' is missing; it has to be given")
