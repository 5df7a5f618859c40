"""The low-bandwidth experiment as data: schemes x link rates x shapes of a run."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from tools.cluster_files import check_keys
from tools.toml_files import read_toml

_KEYS = {"title", "config", "nodes", "ranks-per-node", "link-mbit", "rounds", "steps-per-block", "shape", "schemes"}

_SHAPE, _SHAPE_FURTHER = {"seq-length", "accumulation"}, {"device-ms", "schemes", "judged-rounds"}
_SCHEME, _SCHEME_FURTHER = {"flags"}, {"judged", "settle-steps"}


@dataclass(frozen=True)
class Shape:
    """What a step computes: tokens of a sequence, and micro-batches that a rank accumulates.

    device_ms: what a device besides would compute for, a step, while the host's cores are free: a rank waits so long.
    schemes: those that are measured; all where it is empty.
    judged_rounds: turns of the schemes whose ratio is judged to 3 %; of the others, `Grid.rounds`.
    """

    seq_length: int
    accumulation: int
    judged_rounds: int
    device_ms: float = 0.0
    schemes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its folder's."""
        return f"seq_{self.seq_length}_acc_{self.accumulation}" + f"_device_{self.device_ms:g}" * (self.device_ms > 0)


@dataclass(frozen=True)
class Scheme:
    """A way to send, by the flags that ask for it. `settle_steps`: not counted, at the beginning of every rate.
    `is_judged`: whether its ratio is judged to 3 %, which takes more turns."""

    name: str
    flags: tuple[str, ...]
    is_judged: bool = False
    settle_steps: int = 0


@dataclass(frozen=True)
class Grid:
    """The whole experiment."""

    title: str
    config: str
    nodes: int
    ranks_per_node: int
    link_mbit: tuple[float, ...]
    rounds: int
    steps_per_block: int
    shapes: tuple[Shape, ...]
    schemes: tuple[Scheme, ...]

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.nodes * self.ranks_per_node

    def schemes_of(self, shape: Shape) -> list[Scheme]:
        """The schemes that are measured in a shape."""
        return [scheme for scheme in self.schemes if not shape.schemes or scheme.name in shape.schemes]

    def rounds_of(self, shape: Shape, scheme: Scheme) -> int:
        """Turns that a scheme takes in a shape, of `steps_per_block` counted steps each."""
        return shape.judged_rounds if scheme.is_judged else self.rounds

    def words(self, shape: Shape, scheme: Scheme) -> list[str]:
        """The command line of a scheme's run."""
        batch = self.world_size * shape.accumulation
        sizes = ["--seq-length", str(shape.seq_length), "--global-batch-size", str(batch)]
        return ["--config", self.config, *sizes, *scheme.flags]

    def quick(self) -> Grid:
        """What CI has the time for: one shape, the slowest link, the schemes that the numbers are about."""
        names = ("baseline", "fp32_exchange", "sdp4bit", "duo4bit_adaptive")
        few_steps = [replace(s, settle_steps=s.settle_steps // 2) for s in self.schemes]
        schemes = tuple(scheme for scheme in few_steps if scheme.name in names)
        shape = replace(self.shapes[0], judged_rounds=1)
        return replace(self, schemes=schemes, link_mbit=self.link_mbit[-1:], rounds=1, shapes=(shape,))


def read_grid(path: Path) -> Grid:
    """Read configs/experiments/low_bandwidth.toml, or a file like it.

    Raises:
        ValueError: it is not TOML, or a key is missing or unknown.
    """
    table = read_toml(path)
    check_keys(str(path), table, _KEYS, _KEYS)
    shapes = []
    for shape in table["shape"]:
        check_keys(f"{path}, shape", shape, _SHAPE | _SHAPE_FURTHER, _SHAPE)
        further = float(shape.get("device-ms", 0.0)), tuple(shape.get("schemes", ()))
        judged_rounds = shape.get("judged-rounds", table["rounds"])
        shapes.append(Shape(shape["seq-length"], shape["accumulation"], judged_rounds, *further))
    schemes = []
    for name, scheme in table["schemes"].items():
        check_keys(f"{path}, schemes.{name}", scheme, _SCHEME | _SCHEME_FURTHER, _SCHEME)
        further = scheme.get("judged", False), scheme.get("settle-steps", 0)
        schemes.append(Scheme(name, tuple(shlex.split(scheme["flags"])), *further))
    numbers = [table[key] for key in ("title", "config", "nodes", "ranks-per-node")]
    counts = table["rounds"], table["steps-per-block"]
    return Grid(*numbers, tuple(table["link-mbit"]), *counts, tuple(shapes), tuple(schemes))
