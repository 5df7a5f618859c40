"""DeepSpeed on the same model and the same emulated network, for `tools/bench_layouts.py --peers deepspeed`."""

from __future__ import annotations

import importlib.metadata
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

RANK = Path(__file__).resolve().with_name("deepspeed_rank.py")
INSTALL = "DS_BUILD_OPS=0 pip install --no-build-isolation -c constraints.txt deepspeed"


@dataclass(frozen=True)
class Peer:
    """A system of tools/deepspeed_rank.py, and whether its ranks stand as the schedule wants them."""

    system: str
    is_scheduled: bool = False


PEERS = {
    "ZeRO-3": Peer("zero3"),
    "DeepSpeed pipeline": Peer("pipeline"),
    "the same, scheduled": Peer("pipeline", is_scheduled=True),
}


def check_deepspeed() -> str:
    """The version of DeepSpeed that is installed.

    Raises:
        ValueError: none is.
    """
    if find_spec("deepspeed") is None:
        raise ValueError(f"--peers deepspeed: {sys.executable} has no package deepspeed; install it with: {INSTALL}")
    return importlib.metadata.version("deepspeed")


@dataclass(frozen=True)
class PeerRuns:
    """What the peers' runs share.

    emulate: runs a program's words on the emulated network under a name, or raises. scheduled: devices in the order of
    ranks. steps: all, of which the first ``warm_up`` do not count.
    """

    emulate: Callable[[str, list[str]], None]
    config: Path
    stages: int
    scheduled: list[int]
    steps: int
    warm_up: int
    folder: Path

    def run(self, name: str) -> list[float]:
        """Seconds of every counted step of a peer."""
        peer = PEERS[name]
        out = self.folder / f"{name}.json"
        words = [str(RANK), peer.system, "--config", str(self.config), "--pp", str(self.stages)]
        words += ["--steps", str(self.steps), "--out", str(out)]
        if peer.is_scheduled:
            words += ["--device-of-rank", ",".join(map(str, self.scheduled))]
        self.emulate(name, words)
        return json.loads(out.read_text())["seconds"][self.warm_up :]


def table(seconds: dict[str, list[float]], scheduled: float) -> str:
    """Medians beside the scheduled layout's, in seconds."""
    lines = [f"{'peer':22}{'seconds':>10}{'of the scheduled layout':>26}"]
    for name, steps in seconds.items():
        median = statistics.median(steps)
        lines.append(f"{name:22}{median:10.3f}{median / scheduled:25.2f}x")
    return "\n".join(lines)
