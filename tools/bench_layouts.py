"""Measured steps of a small job on an emulated uneven network: scheduled, Megatron's own and random layouts.

What the scheduler had predicted stands beside them. Every layout trains with the same degrees, micro-batch and SDP4Bit;
only which node runs which rank differs. Runs on the same nodes with fast links, before and after, tell how long the
computation takes.
`--peers deepspeed` trains the same model with ZeRO-3 and DeepSpeed's pipeline on the same network, too.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import tomllib
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from tools.child_process import run_python
from tools.command_line import ToolArgumentParser, positive_int, run_tool
from tools.deepspeed_peers import PEERS, PeerRuns, check_deepspeed
from tools.deepspeed_peers import table as peer_table
from tools.scenario_files import Scenario, read_scenario
from tools.scheduler.layout_files import layout_flags, write_layout
from tools.scheduler.layouts import megatron_layout, random_layout
from tools.scheduler.nodes import node_of_device
from tools.scheduler.plan import Choices, Plan, best_plan, best_settings
from tools.simulator.heterogeneous_constants import Constants
from tools.simulator.heterogeneous_network import Network
from tools.simulator.heterogeneous_pipeline import IN_TURNS
from tools.simulator.heterogeneous_training import FORWARDS, Device, Scheme, Trainer
from tools.simulator.heterogeneous_work import Work

ROOT = Path(__file__).resolve().parents[1]
FAST_MBIT = 5000
WARM_UP = 2
SCHEME = Scheme("sdp4bit")
MEMORY_BYTES = 1e9


@dataclass(frozen=True)
class Measured:
    """A layout's plan, and the seconds of its measured steps."""

    plan: Plan
    seconds: list[float]

    @property
    def median(self) -> float:
        """Of the steps after the warm-up."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Bench:
    """What all runs share: the emulated network, the run file, and how many steps."""

    scenario: Scenario
    config: Path
    steps: int
    folder: Path

    def run(self, name: str, plan: Plan, network_words: list[str]) -> Measured:
        """Train a plan's layout on an emulated network."""
        layout, metrics = self.folder / f"{name}.toml", self.folder / f"{name}.jsonl"
        batch = tomllib.loads(self.config.read_text())["global-batch-size"]
        write_layout(layout, plan, node_of_device(self.scenario), layout_flags(plan, batch), name)
        words = [str(ROOT / "pretrain_gpt.py"), "--config", str(self.config), "--layout", str(layout)]
        words += ["--metrics-file", str(metrics), "--train-iters", str(WARM_UP + self.steps)]
        self.emulate(name, [*words, "--lr-decay-style", "constant"], network_words)
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        return Measured(plan, [line["step_ms"] / 1e3 for line in lines[WARM_UP:]])

    def emulate(self, name: str, words: list[str], network_words: list[str]) -> None:
        """Run a program on an emulated network.

        Raises:
            ValueError: it failed; its output has been shown.
        """
        log = self.folder / f"{name}.log"
        if run_python("-m", "tools.emulator", "run", *network_words, "--", *words, log=log):
            sys.stderr.write(log.read_text(errors="replace")[-4000:])
            raise ValueError(f"the run of '{name}' failed; its output is above")


def main(args: Namespace) -> None:
    """Calibrate, schedule, run every layout and peer, and print the tables."""
    version = check_deepspeed() if args.peers else None
    scenario = read_scenario(args.scenario)
    choices = Choices(stages=args.pp, tensor=1, micro_batches=(_flags(args)["micro-batch-size"],), schemes=(SCHEME,))
    network = ["--scenario", args.scenario]
    with tempfile.TemporaryDirectory(prefix="bench_layouts_") as folder:
        bench = Bench(scenario, args.config.resolve(), args.steps, Path(folder))
        trainer = _trainer(scenario, _flags(args))
        before = _seconds_on_fast_links("before", bench, trainer, choices)
        plans = _plans(_calibrated(trainer, choices, before), args, choices)
        rows = {n: bench.run(n, p, network) for n, p in tqdm(plans, desc="layouts", leave=False, disable=None)}
        seconds = (before + _seconds_on_fast_links("after", bench, trainer, choices)) / 2
        print(f"on links of {FAST_MBIT} Mbit/s a step takes {seconds:.3f} s: computation", flush=True)
        trainer = _calibrated(trainer, choices, seconds)
        rows = {n: replace(row, plan=best_settings(trainer, row.plan.layout, choices)) for n, row in rows.items()}
        print(_table(rows), flush=True)
        peers = _run_peers(bench, args.pp, rows["scheduled"].plan, network) if version else {}
    if peers:
        print(f"DeepSpeed {version}\n{peer_table(peers, rows['scheduled'].median)}")
    if args.json:
        Path(args.json).write_text(json.dumps(_as_json(rows) | {"deepspeed": version, "peers": peers}, indent=1) + "\n")


def _run_peers(bench: Bench, stages: int, scheduled: Plan, network: list[str]) -> dict[str, list[float]]:
    def emulate(name: str, words: list[str]) -> None:
        bench.emulate(name, words, network)

    order, steps = scheduled.layout.ravel().tolist(), WARM_UP + bench.steps
    runs = PeerRuns(emulate, bench.config, stages, order, steps, WARM_UP, bench.folder)
    return {name: runs.run(name) for name in tqdm(PEERS, desc="peers", leave=False, disable=None)}


def _flags(args: Namespace) -> dict:
    return tomllib.loads(args.config.read_text())


def _trainer(scenario: Scenario, flags: dict) -> Trainer:
    batch, sequence = flags["global-batch-size"], flags["seq-length"]
    work = Work(flags["num-layers"], flags["hidden-size"], batch, sequence, flags["vocab-size"] + 1, True)
    network, device = Network(scenario, Constants()), Device(1.0, MEMORY_BYTES)
    return Trainer(network, work, device, node_of_device(scenario), serial=IN_TURNS)


def _seconds_on_fast_links(when: str, bench: Bench, trainer: Trainer, choices: Choices) -> float:
    """Of a step in Megatron's order."""
    plan = best_settings(trainer, megatron_layout(trainer.network.num_devices, choices.stages), choices)
    words = ["--nodes", str(len(bench.scenario.hosts)), "--ranks-per-node", "1", "--link-mbit", str(FAST_MBIT)]
    return bench.run(f"fast links, {when}", plan, words).median


def _calibrated(trainer: Trainer, choices: Choices, seconds: float) -> Trainer:
    """The trainer with the compute rate that makes so many seconds on fast links, where 1F1B takes M + S - 1 rounds."""
    stages, [micro_batch] = choices.stages, choices.micro_batches
    replicas = trainer.network.num_devices // stages
    rounds = trainer.work.batch // (replicas * micro_batch) + stages - 1
    flops = FORWARDS * trainer.work.layers / stages * micro_batch * trainer.work.layer_forward_flops
    return replace(trainer, device=Device(flops * rounds / seconds / 1e12, MEMORY_BYTES))


def _plans(trainer: Trainer, args: Namespace, choices: Choices) -> list[tuple[str, Plan]]:
    devices, generator = trainer.network.num_devices, np.random.default_rng(args.seed)
    plans = [("scheduled", best_plan(trainer, choices)), ("default", megatron_layout(devices, args.pp))]
    plans += [(f"random {n}", random_layout(devices, args.pp, generator)) for n in range(1, args.random + 1)]
    return [(n, p if isinstance(p, Plan) else best_settings(trainer, p, choices)) for n, p in plans]


def _table(rows: dict[str, Measured]) -> str:
    lines = [f"{'layout':12}{'nodes of the ranks':>22}{'seconds':>10}{'predicted':>11}{'error':>8}"]
    for name, row in rows.items():
        ranks = " ".join(map(str, row.plan.layout.ravel()))
        error = row.plan.seconds / row.median - 1
        lines.append(f"{name:12}{ranks:>22}{row.median:10.3f}{row.plan.seconds:11.3f}{100 * error:+7.1f}%")
    return "\n".join([*lines, f"scheduled beats the median of the random ones by {_advantage(rows):.2f}x"])


def _advantage(rows: dict[str, Measured]) -> float:
    random = [row.median for name, row in rows.items() if name.startswith("random")]
    return statistics.median(random) / rows["scheduled"].median


def _as_json(rows: dict[str, Measured]) -> dict:
    table = {
        name: {"ranks": row.plan.layout.ravel().tolist(), "seconds": row.seconds, "predicted": row.plan.seconds}
        for name, row in rows.items()
    }
    return {"layouts": table, "advantage": _advantage(rows)}


def parse_arguments() -> Namespace:
    """The command line."""
    parser = ToolArgumentParser(__doc__.splitlines()[0])
    parser.add_argument("--scenario", default="emulated_two_regions", help="network to emulate, one device a host")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/runs/uneven_small.toml", help="run file")
    parser.add_argument("--pp", type=positive_int, default=2, help="pipeline stages")
    parser.add_argument("--random", type=positive_int, default=5, help="random layouts")
    parser.add_argument("--seed", type=int, default=0, help="of the random layouts")
    parser.add_argument("--steps", type=positive_int, default=9, help="measured steps of a layout")
    parser.add_argument("--peers", choices=["deepspeed"], help="other systems to run on the same network")
    parser.add_argument("--json", help="write the rows to this file, too")
    return parser.parse_args()


if __name__ == "__main__":
    run_tool(lambda: main(parse_arguments()))
