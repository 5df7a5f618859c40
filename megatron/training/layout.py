"""`--layout`: which of the launcher's processes runs which rank, so that Megatron's own groups lie on good links.

Megatron counts tensor-parallel ranks first, then data-parallel ones, then pipeline stages; which process stands behind
a rank is all that a layout changes. Written by `python -m tools.scheduler schedule`. Standard library only.
"""

from __future__ import annotations

import argparse
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.training.errors import UserError, require

_KEYS = {"world-size", "device-of-rank", "node-of-device", "flags"}
# Flags that say how ranks are counted: another value than the layout's would give every device another part.
_DEGREES = ("tensor-model-parallel-size", "pipeline-model-parallel-size", "context-parallel-size")


@dataclass(frozen=True)
class Layout:
    """A layout file. device_of_rank[r] is the process, as the launcher counts them, that runs rank r."""

    path: Path
    device_of_rank: tuple[int, ...]
    node_of_device: tuple[int, ...]
    flags: dict[str, Any]

    @property
    def rank_of_process(self) -> list[int]:
        """The inverse of `device_of_rank`."""
        return sorted(range(len(self.device_of_rank)), key=self.device_of_rank.__getitem__)

    @property
    def node_of_rank(self) -> list[int]:
        """The node on which each rank's device lies."""
        return [self.node_of_device[device] for device in self.device_of_rank]


def read_layout(path: Path) -> Layout:
    """The layout in the file.

    Raises:
        UserError: no such file, or not a layout.
    """
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give --layout an existing file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error
    if set(table) != _KEYS:
        wrong = sorted(set(table) ^ _KEYS)[0]
        raise UserError(f"{path}: key '{wrong}' is unknown or missing; a layout has {', '.join(sorted(_KEYS))}")
    size, flags = table["world-size"], table["flags"]
    require(type(size) is int and size > 0, f"{path}: world-size = {size!r} is not a positive integer")
    require(isinstance(flags, dict), f"{path}: flags has to be a table of flags")
    devices, nodes = (_integers(path, key, table[key], size) for key in ("device-of-rank", "node-of-device"))
    require(
        sorted(devices) == list(range(size)),
        f"{path}: device-of-rank has to name each of the devices 0 to {size - 1} once",
    )
    return Layout(path, devices, nodes, flags)


def _integers(path: Path, key: str, values: object, size: int) -> tuple[int, ...]:
    valid = isinstance(values, list) and len(values) == size and all(type(v) is int and v >= 0 for v in values)
    require(valid, f"{path}: {key} has to be a list of {size} numbers from 0 on, one for each of the world-size")
    return tuple(values)


def check_rank_layout(args: argparse.Namespace) -> None:
    """Refuse a layout that is not for this job's ranks and degrees.

    Raises:
        UserError: with the two numbers and the remedy.
    """
    if args.layout is None:
        return
    layout = read_layout(Path(args.layout))
    size = len(layout.device_of_rank)
    require(
        size == args.world_size,
        f"--layout {args.layout} is for {size} ranks, the job has {args.world_size}; make a layout for this cluster",
    )
    for name in _DEGREES:
        value, meant = getattr(args, name.replace("-", "_")), layout.flags.get(name, 1)
        require(
            value == meant, f"--{name} {value}: --layout {args.layout} is for {meant}; drop the flag, or the layout"
        )
