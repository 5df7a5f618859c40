"""The low-bandwidth experiment as data: schemes x link rates x shapes of a run."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from tools.cluster_files import check_keys
from tools.toml_files import read_toml

_KEYS = {"title", "config", "nodes", "ranks-per-node", "link-mbit", "rounds", "steps-per-block", "shape", "schemes"}


@dataclass(frozen=True)
class Shape:
    """What a step computes: tokens of a sequence, and micro-batches that a rank accumulates."""

    seq_length: int
    accumulation: int

    @property
    def name(self) -> str:
        """Its folder's."""
        return f"seq_{self.seq_length}_acc_{self.accumulation}"


@dataclass(frozen=True)
class Scheme:
    """A way to send, by the flags that ask for it. `settle_steps`: not counted, at the beginning of every rate.
    `rounds`: turns that it takes, of `steps_per_block` each."""

    name: str
    flags: tuple[str, ...]
    rounds: int
    settle_steps: int = 0


@dataclass(frozen=True)
class Grid:
    """The whole experiment."""

    title: str
    config: str
    nodes: int
    ranks_per_node: int
    link_mbit: tuple[float, ...]
    steps_per_block: int
    shapes: tuple[Shape, ...]
    schemes: tuple[Scheme, ...]

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.nodes * self.ranks_per_node

    def words(self, shape: Shape, scheme: Scheme) -> list[str]:
        """The command line of a scheme's run."""
        batch = self.world_size * shape.accumulation
        sizes = ["--seq-length", str(shape.seq_length), "--global-batch-size", str(batch)]
        return ["--config", self.config, *sizes, *scheme.flags]

    def quick(self) -> Grid:
        """What CI has the time for: one shape, the slowest link, the schemes that the numbers are about."""
        names = ("baseline", "fp32_exchange", "sdp4bit", "duo4bit_adaptive")
        few_steps = [replace(s, settle_steps=s.settle_steps // 2, rounds=1) for s in self.schemes]
        schemes = tuple(scheme for scheme in few_steps if scheme.name in names)
        few = {"link_mbit": self.link_mbit[-1:], "shapes": self.shapes[:1]}
        return replace(self, schemes=schemes, **few)


def read_grid(path: Path) -> Grid:
    """Read configs/experiments/low_bandwidth.toml, or a file like it.

    Raises:
        ValueError: it is not TOML, or a key is missing or unknown.
    """
    table = read_toml(path)
    check_keys(str(path), table, _KEYS, _KEYS)
    shapes = []
    for shape in table["shape"]:
        check_keys(f"{path}, shape", shape, {"seq-length", "accumulation"}, {"seq-length", "accumulation"})
        shapes.append(Shape(shape["seq-length"], shape["accumulation"]))
    schemes = []
    for name, scheme in table["schemes"].items():
        check_keys(f"{path}, schemes.{name}", scheme, {"flags", "rounds", "settle-steps"}, {"flags"})
        counts = scheme.get("rounds", table["rounds"]), scheme.get("settle-steps", 0)
        schemes.append(Scheme(name, tuple(shlex.split(scheme["flags"])), *counts))
    numbers = [table[key] for key in ("title", "config", "nodes", "ranks-per-node")]
    return Grid(*numbers, tuple(table["link-mbit"]), table["steps-per-block"], tuple(shapes), tuple(schemes))
