"""The fastest way to train on a network: degrees, micro-batch, layout and scheme, by simulated iteration time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from tools.scheduler.layouts import candidate_layouts, tensor_groups
from tools.scheduler.shortest_path import MOST_NODES
from tools.simulator.heterogeneous_training import SCHEMES, Scheme, Trainer

MICRO_BATCHES = (1, 2, 4, 8, 16)
TENSOR_DEGREES = (1, 2, 4, 8)
# A more exact scheme is taken where it costs no more than this share of the time.
FREE = 0.01
REFINED = 3  # best layouts that are refined by swaps


@dataclass(frozen=True)
class Plan:
    """A layout, int [stages, replicas, tensor], with what is chosen beside it, and its simulated seconds."""

    layout: np.ndarray
    micro_batch: int
    scheme: Scheme
    pipeline_seconds: float
    sync_seconds: float

    @property
    def seconds(self) -> float:
        """Of one iteration."""
        return self.pipeline_seconds + self.sync_seconds


@dataclass(frozen=True)
class Choices:
    """What a search may choose from; None leaves a degree open."""

    stages: int | None = None
    replicas: int | None = None
    tensor: int | None = None
    micro_batches: tuple[int, ...] = MICRO_BATCHES
    schemes: tuple[Scheme, ...] = SCHEMES


def best_plan(trainer: Trainer, choices: Choices, swaps: int = 1000, seed: int = 0) -> Plan:
    """The plan with the least simulated time that fits into memory.

    Args:
        swaps: random exchanges of two devices tried on each of the best layouts.

    Raises:
        ValueError: no allowed combination divides the devices, layers and batch, or none fits into memory.
    """
    shapes = list(_shapes(trainer, choices))
    if not shapes:
        raise ValueError(_nothing_divides(trainer, choices))
    plans = []
    for layouts in tqdm(shapes, desc="degrees", leave=False, disable=None):
        found = [plan for layout in layouts for plan in [best_settings(trainer, layout, choices)] if plan]
        plans += sorted(found, key=lambda plan: plan.seconds)[:REFINED]
    if not plans:
        needed = f"{trainer.device.memory_bytes / 1e9:g} GB of a device hold no allowed combination"
        raise ValueError(f"{needed}; allow more stages or tensor ranks, or give --memory-gb")
    plans = sorted(plans, key=lambda plan: plan.seconds)[:REFINED]
    generator = np.random.default_rng(seed)
    refined = [_refine(trainer, plan, choices, swaps // len(plans), generator) for plan in plans]
    return min(refined, key=lambda plan: plan.seconds)


def best_settings(trainer: Trainer, layout: np.ndarray, choices: Choices) -> Plan | None:
    """Micro-batch and scheme for one layout; None where nothing fits into memory."""
    replicas = layout.shape[1]
    plans = []
    for micro_batch in choices.micro_batches:
        if trainer.work.batch % (replicas * micro_batch):
            continue
        pipeline = None
        for scheme in choices.schemes:
            if trainer.memory_bytes(layout, micro_batch, scheme) <= trainer.device.memory_bytes:
                pipeline = trainer.pipeline_time(layout, micro_batch) if pipeline is None else pipeline
                sync = trainer.sync_time(layout, scheme, hidden=pipeline)
                plans.append(Plan(layout, micro_batch, scheme, pipeline, sync))
    if not plans:
        return None
    fastest = min(plan.seconds for plan in plans)
    free = [plan for plan in plans if plan.seconds <= (1 + FREE) * fastest]
    return min(free, key=lambda plan: (choices.schemes.index(plan.scheme), plan.seconds))


def _shapes(trainer: Trainer, choices: Choices) -> Iterator[list[np.ndarray]]:
    """Candidate layouts for every allowed combination of degrees."""
    layers, batch = trainer.work.layers, trainer.work.batch
    for tensor in TENSOR_DEGREES if choices.tensor is None else (choices.tensor,):
        groups = tensor_groups(trainer.network.host, tensor)
        if groups is None:
            continue
        for stages in range(1, MOST_NODES + 1) if choices.stages is None else (choices.stages,):
            replicas = len(groups) // stages
            fits = len(groups) % stages == 0 and layers % stages == 0 and batch % replicas == 0
            if fits and choices.replicas in (None, replicas):
                yield _candidates(trainer, groups, stages)


def _candidates(trainer: Trainer, groups: np.ndarray, stages: int) -> list[np.ndarray]:
    network, work = trainer.network, trainer.work
    sent = work.batch / (len(groups) // stages) * work.activation_bytes
    bandwidth = np.where(np.isinf(network.bandwidth), 1e15, network.bandwidth)
    return candidate_layouts(network.delay, bandwidth, groups, stages, sent, 6 * work.stage_parameters(stages))


def _nothing_divides(trainer: Trainer, choices: Choices) -> str:
    given = {"--pp": choices.stages, "--dp": choices.replicas, "--tp": choices.tensor}
    words = " ".join(f"{flag} {value}" for flag, value in given.items() if value) or "any degrees"
    return (
        f"{words}: {trainer.network.num_devices} devices, {trainer.work.layers} layers and a batch of "
        f"{trainer.work.batch} do not divide into them (tensor ranks share a host); choose other degrees"
    )


def _refine(trainer: Trainer, plan: Plan, choices: Choices, swaps: int, generator: np.random.Generator) -> Plan:
    """Exchange tensor groups at random and keep what is faster with the plan's own settings."""
    stages, replicas, tensor = plan.layout.shape
    if stages * replicas < 2:
        return plan
    only = replace(choices, micro_batches=(plan.micro_batch,), schemes=(plan.scheme,))
    for _ in range(swaps):
        units = plan.layout.reshape(-1, tensor).copy()
        pair = generator.choice(len(units), size=2, replace=False)
        units[pair] = units[pair[::-1]]
        other = best_settings(trainer, units.reshape(plan.layout.shape), only)
        if other and other.seconds < plan.seconds:
            plan = other
    return plan
