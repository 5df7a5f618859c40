"""`python -m tools.simulator plan`: layouts and schemes of a model on a cluster, ranked; whether compression pays."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from sdp4bit_patches.config import PRESETS, CommConfig
from tools.atomic_files import atomic_files
from tools.command_line import positive_int
from tools.simulator.job import Job
from tools.simulator.machine import load_cluster
from tools.simulator.model_shape import read_model
from tools.simulator.planning import BreakEven, Candidate, Request, break_even, candidates, hiding_accumulation
from tools.simulator.step import predict

DEFAULT_SCHEMES = ("baseline", "sdp4bit", "duo4bit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("--model", required=True, help="a model of configs/models, or a .toml file")
    parser.add_argument("--cluster", required=True, help="a cluster of configs/clusters, or a .toml file")
    parser.add_argument("--gpus", type=positive_int, required=True, help="devices in all")
    parser.add_argument("--global-batch", type=positive_int, default=512, help="samples of a step")
    parser.add_argument("--seq", type=positive_int, default=2048, help="tokens of a sample")
    parser.add_argument("--schemes", nargs="+", default=list(DEFAULT_SCHEMES), choices=tuple(PRESETS), help="presets")
    parser.add_argument("--link-gbps", type=float, help="line rate of a network card, instead of the cluster's")
    parser.add_argument("--top", type=positive_int, default=12, help="rows to print")
    parser.add_argument("--json", help="a file for everything that was found")
    parser.add_argument("--picture", help="a PNG to write: step time against bandwidth, by scheme")


def run(args: argparse.Namespace) -> None:
    """Print the ranking and the verdict, and write what was asked for.

    Raises:
        ValueError: no layout is possible.
    """
    request = _request(args)
    found, refused = candidates(request)
    feasible = [candidate for candidate in found if not candidate.reason]
    if not feasible:
        raise ValueError(_nothing_fits(request, found, refused))
    best = feasible[0]
    even = [break_even(best.job, scheme) for scheme in request.schemes if scheme != "baseline"]
    print("\n".join([*_ranking(feasible[: args.top]), "", *_fallen(found, refused), "", *verdict(best.job, even)]))
    if args.json:
        with atomic_files(Path(args.json)) as [temporary]:
            temporary.write_text(json.dumps(_data(found, refused, even, best.job), indent=1) + "\n")
        print(f"plan: {args.json}")
    if args.picture:
        from tools.simulator.plan_picture import draw_plan

        draw_plan(best.job, request.schemes, even, Path(args.picture))
        print(f"picture: {args.picture}")


def _request(args: argparse.Namespace) -> Request:
    cluster = load_cluster(args.cluster)
    if args.link_gbps is not None:
        if args.link_gbps <= 0:
            raise ValueError(f"--link-gbps {args.link_gbps:g}: give a positive rate")
        cluster = cluster.with_link(args.link_gbps)
    schemes = tuple(dict.fromkeys(args.schemes))
    return Request(read_model(args.model), cluster, args.gpus, args.global_batch, args.seq, schemes)


def _nothing_fits(request: Request, found: list[Candidate], refused: dict[str, int]) -> str:
    start = f"{request.model.name} on {request.gpus} x {request.cluster.device.name}: no layout is possible"
    if not found:
        reason = max(refused, key=refused.__getitem__) if refused else "no split of the devices fits the model"
        return f"{start}: {reason}"
    least = min(found, key=lambda candidate: candidate.memory.gib)
    return f"{start}: the smallest needs {least.reason}; take more devices, or a smaller micro-batch or sequence"


def _ranking(shown: list[Candidate]) -> list[str]:
    head = f"{'TP':>3}{'CP':>4}{'PP':>4}{'DP':>5}{'micro':>6}{'accum':>6} {'scheme':10}{'recompute':10}"
    lines = [f"{head}{'step ms':>11}{'TFLOP/s':>9}{'exposed ms':>12}{'GiB':>7}"]
    for candidate in shown:
        job, made = candidate.job, candidate.prediction
        sizes = f"{job.tp:3}{job.cp:4}{job.pp:4}{job.dp:5}{job.micro_batch:6}{job.accumulation:6}"
        times = f"{made.step_seconds * 1e3:11,.1f}{made.tflops_per_gpu:9.1f}{made.exposed_seconds * 1e3:12,.1f}"
        lines.append(f"{sizes} {candidate.scheme:10}{job.recompute:10}{times}{candidate.memory.gib:7.1f}")
    return lines


def _fallen(found: list[Candidate], refused: dict[str, int]) -> list[str]:
    """Why others fall out: those without enough memory by TP and PP, and layouts that cannot exist by reason."""
    short = [candidate for candidate in found if candidate.reason]
    lines = [
        f"{len(found) - len(short)} candidates fit, {len(short)} do not, {sum(refused.values())} layouts cannot exist"
    ]
    least: dict[tuple[int, int], Candidate] = {}
    for candidate in sorted(short, key=lambda candidate: -candidate.memory.gib):
        least[candidate.job.tp, candidate.job.pp] = candidate
    for (tp, pp), candidate in sorted(least.items())[:8]:
        lines.append(f"  out of memory at TP {tp}, PP {pp}: at least {candidate.reason}")
    return lines + [f"  {count} layouts: {reason}" for reason, count in Counter(refused).most_common(4)]


def verdict(job: Job, even: list[BreakEven]) -> list[str]:
    """Whether compression pays in the best layout, from which bandwidth on, and whether DUO hides."""
    rate = job.cluster.nic_gbps
    lines = [f"in the best layout, with network cards of {rate:g} Gb/s ({job.cluster.nics} a node):"]
    for found in even:
        word = f"pays, {found.saving:.1%} of a step" if found.pays else f"does not pay, {-found.saving:.1%} longer"
        if found.gbps is None:
            limit = "at every bandwidth" if found.pays else "at no bandwidth"
        else:
            limit = f"it does below {found.gbps:,.3g} Gb/s a card"
        lines.append(f"  {found.scheme} {word} ({limit})")
        lines += _duo_lines(job, found.scheme)
    return lines


def _duo_lines(job: Job, scheme: str) -> list[str]:
    own = job.replace(comm=CommConfig(**PRESETS[scheme]))
    made, needed = predict(own), hiding_accumulation(own)
    if needed is None:
        return []
    times = f"{made.slow_sync_seconds * 1e3:,.0f} ms against {made.compute_seconds * 1e3:,.0f} ms of compute"
    if made.fully_hidden:
        return [f"    its second sync is hidden: {times}; it is from accumulation {needed} on"]
    return [f"    its second sync is not hidden: {times}; accumulation {needed} would hide it"]


def _data(found: list[Candidate], refused: dict[str, int], even: list[BreakEven], best: Job) -> dict[str, Any]:
    rows = []
    for candidate in found:
        job, made = candidate.job, candidate.prediction
        sizes = {
            name: getattr(job, name) for name in ("tp", "cp", "pp", "dp", "micro_batch", "accumulation", "recompute")
        }
        numbers = {"step_seconds": made.step_seconds, "tflops_per_gpu": made.tflops_per_gpu}
        numbers |= {"exposed_seconds": made.exposed_seconds, "memory_gib": candidate.memory.gib}
        rows.append(sizes | {"scheme": candidate.scheme} | numbers | {"reason": candidate.reason})
    points = [{"scheme": point.scheme, "break_even_gbps": point.gbps, "saving": point.saving} for point in even]
    return {"candidates": rows, "cannot_exist": refused, "break_even": points, "verdict": verdict(best, even)}
