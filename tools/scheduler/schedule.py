"""Find the layout of a job on a network, and write it, its cost and a picture of its map."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from tools.command_line import positive_int
from tools.scenario_files import Scenario, read_scenario
from tools.scheduler import contributions
from tools.scheduler.comparison import Judge, Judged, as_table
from tools.scheduler.genetic import EVALUATIONS, SEARCHES, search
from tools.scheduler.layout_files import layout_flags, write_layout
from tools.scheduler.layouts import megatron_layout, random_layout
from tools.scheduler.nodes import node_of_device
from tools.scheduler.plan import Choices, best_plan, best_settings
from tools.scheduler.published import Sizes, published_model
from tools.simulator.heterogeneous_constants import Constants
from tools.simulator.heterogeneous_network import Network
from tools.simulator.heterogeneous_training import Device, Trainer
from tools.simulator.heterogeneous_work import SEQUENCE, VOCABULARY, Work

RANDOM_LAYOUTS = 5
PUBLISHED_STAGES = 8
# Beyond this ratio of its two directions a link is called asymmetric, and that is said.
ASYMMETRIC = 1.25


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `schedule`."""
    parser.add_argument("--scenario", required=True, help="name in configs/scenarios, or a file NAME.toml")
    parser.add_argument(
        "--objective", choices=("time", "published"), default="time", help="simulated iteration time, or DT-FM's cost"
    )
    parser.add_argument("--pp", type=positive_int, help="pipeline stages; chosen by default (published: 8)")
    parser.add_argument("--dp", type=positive_int, help="data-parallel replicas; chosen by default")
    parser.add_argument("--tp", type=positive_int, help="tensor-parallel ranks, of one host; chosen by default")
    parser.add_argument("--out", type=Path, help="layout to write, for pretrain_gpt.py --layout")
    parser.add_argument("--picture", type=Path, help="PNG of the map; beside --out by default")
    parser.add_argument("--json", nargs="?", const="-", help="costs as JSON, to this file or to the output")
    parser.add_argument("--seed", type=int, default=0, help="of the search")
    parser.add_argument("--contributions", action="store_true", help="also tell what layout, micro-batch, bits bring")
    _add_model(parser)
    group = parser.add_argument_group("--objective published")
    group.add_argument("--search", choices=SEARCHES, default="ours", help="which genetic search")
    group.add_argument("--evaluations", type=positive_int, default=EVALUATIONS, help="partitions that are costed")
    group.add_argument("--activation-gb", type=_positive, help="a macro-batch's activations; the traces' by default")
    group.add_argument("--gradient-gb", type=_positive, help="a stage's gradient; the traces' by default")


def _add_model(parser: argparse.ArgumentParser) -> None:
    known = Constants()
    group = parser.add_argument_group("work and devices of the simulated iteration")
    group.add_argument("--num-layers", type=positive_int, default=24, help="transformer layers")
    group.add_argument("--hidden-size", type=positive_int, default=2048, help="width of the residual stream")
    group.add_argument("--seq-length", type=positive_int, default=SEQUENCE, help="tokens of a sequence")
    group.add_argument("--vocab-size", type=positive_int, default=VOCABULARY, help="of the embedding")
    group.add_argument("--global-batch-size", type=positive_int, default=1024, help="sequences of an iteration")
    group.add_argument("--teraflops", type=_positive, default=known.v100_teraflops, help="of a device in a layer")
    group.add_argument("--memory-gb", type=_positive, default=16.0, help="of a device")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def run(args: argparse.Namespace) -> None:
    """Search, and tell.

    Raises:
        ValueError: a scenario or degrees that do not go together.
    """
    scenario = read_scenario(args.scenario)
    trainer = _trainer(scenario, args)
    sizes = Sizes(args.activation_gb, args.gradient_gb)
    judge = Judge(scenario, trainer, sizes)
    choices = Choices(args.pp, args.dp, args.tp)
    if args.objective == "published":
        plan = best_settings(trainer, _published_layout(scenario, args, sizes), Choices())
        if plan is None:
            raise ValueError(f"--memory-gb {args.memory_gb:g} does not hold the model in these stages; give more")
    else:
        plan = best_plan(trainer, choices, seed=args.seed)
    for sentence in _remarks(scenario):
        sys.stderr.write(f"{sentence}\n")
    found = judge(plan)
    others = _others(judge, trainer, plan.layout.shape, args.seed)
    _write(args, scenario, trainer, found, others)
    if args.contributions:
        print(contributions.as_table(contributions.contributions(trainer, args.pp or PUBLISHED_STAGES)))


def _remarks(scenario: Scenario) -> list[str]:
    """What of the network is used otherwise than one might think."""
    off = ~np.eye(len(scenario.hosts), dtype=bool)
    remarks = []
    for name, matrix in (("bandwidth", scenario.bandwidth), ("delay", scenario.delay)):
        both = off & (np.minimum(matrix, matrix.T) > 0)
        ratio = np.ones_like(matrix)
        np.divide(matrix, matrix.T, out=ratio, where=both)
        if ratio.max() > ASYMMETRIC:
            a, b = np.unravel_index(ratio.argmax(), ratio.shape)
            remarks.append(
                f"{scenario.name}: {name} from host {a} to host {b} is {ratio.max():.1f} times that of the way back; "
                "the simulation uses both as given, the published cost their mean"
            )
    return remarks


def _trainer(scenario: Scenario, args: argparse.Namespace) -> Trainer:
    work = Work(args.num_layers, args.hidden_size, args.global_batch_size, args.seq_length, args.vocab_size)
    device = Device(args.teraflops, args.memory_gb * 1e9)
    return Trainer(Network(scenario, Constants()), work, device, node_of_device(scenario))


def _published_layout(scenario: Scenario, args: argparse.Namespace, sizes: Sizes) -> np.ndarray:
    if args.tp not in (None, 1):
        raise ValueError(f"--tp {args.tp}: the published cost knows no tensor parallelism; drop it or use time")
    devices = scenario.num_devices
    stages = args.pp or (devices // args.dp if args.dp else PUBLISHED_STAGES)
    replicas = args.dp or devices // stages
    if devices != stages * replicas:
        raise ValueError(f"--pp {stages} x --dp {replicas} are not the {devices} devices of {scenario.name}")
    if args.global_batch_size % replicas:
        raise ValueError(f"--global-batch-size {args.global_batch_size} is not a multiple of the {replicas} replicas")
    model = published_model(scenario, stages, sizes)
    found = search(model, args.search, args.seed, args.evaluations)
    return model.arrange(found.groups)[:, :, None]


def _others(judge: Judge, trainer: Trainer, shape: tuple[int, ...], seed: int) -> dict[str, Judged]:
    """Megatron's own order, and the median of random ones, of the same degrees."""
    devices, settings = trainer.network.num_devices, Choices()
    others = {}
    default = best_settings(trainer, megatron_layout(devices, shape[0], shape[2]), settings)
    if default:
        others["default"] = judge(default, as_laid_out=True)
    generator = np.random.default_rng(seed)
    drawn = [random_layout(devices, shape[0] * shape[2], generator).reshape(shape) for _ in range(RANDOM_LAYOUTS)]
    plans = [plan for layout in drawn for plan in [best_settings(trainer, layout, settings)] if plan]
    if plans:
        ranked = sorted(plans, key=lambda plan: plan.seconds)
        others["random"] = judge(ranked[len(ranked) // 2], as_laid_out=True)
    return others


def _write(
    args: argparse.Namespace, scenario: Scenario, trainer: Trainer, found: Judged, others: dict[str, Judged]
) -> None:
    rows = {"scheduled": found} | others
    result = found.as_json() | {name: judged.as_json() for name, judged in others.items()}
    text = json.dumps({"scenario": scenario.name, "objective": args.objective} | result, indent=1)
    if args.json == "-":
        print(text)
    else:
        print(as_table(rows))
    if args.json not in (None, "-"):
        Path(args.json).write_text(text + "\n")
    if args.out:
        comment = f"{scenario.title or scenario.name}: {found.sentence}"
        flags = layout_flags(found.plan, trainer.work.batch)
        write_layout(args.out, found.plan, trainer.node, flags, comment)
    picture = args.picture or (args.out.with_suffix(".png") if args.out else None)
    if picture:
        from tools.scheduler.map_picture import draw_map  # matplotlib takes longer to load than all of the rest

        draw_map(picture, scenario, found.plan.layout, found.sentence)
