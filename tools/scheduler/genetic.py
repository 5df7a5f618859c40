"""The genetic search for the cheapest partition, as published and as made here.

A genome is the group of every device. An offspring takes the first parent's groups at five devices and the second's
elsewhere, is brought back to equal groups, and is improved by cyclic moves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from tools.scheduler.cost_model import CostModel
from tools.scheduler.local_search import Measure, fast_link_measure, improve, kernighan_lin_measure
from tools.scheduler.starts import structured_starts

POPULATION = 100
EVALUATIONS = 5000
COPIED_DEVICES = 5
SEARCHES = ("ours", "published", "kernighan-lin")


@dataclass(frozen=True)
class Found:
    """The cheapest partition seen: device numbers int [stages, group size], and its cost."""

    groups: np.ndarray
    cost: float


def search(model: CostModel, kind: str = "ours", seed: int = 0, evaluations: int = EVALUATIONS) -> Found:
    """The cheapest partition of ``model``'s devices that a genetic search finds.

    Args:
        kind: one of ``SEARCHES``: "published" (DT-FM's local search), "kernighan-lin" (its baseline), or "ours", which
            uses both in turn and starts from partitions along the network's own clusters, too.
        seed: of every random choice.
        evaluations: partitions whose cost is worked out.
    """
    generator = np.random.default_rng(seed)
    measures = _measures(model, kind)
    starts = structured_starts(model.activation_time, model.num_stages) if kind == "ours" else []
    return _evolve(model, measures, starts, generator, evaluations)


def _measures(model: CostModel, kind: str) -> list[Measure]:
    published = fast_link_measure(model.activation_time)
    baseline = kernighan_lin_measure(model.activation_time, model.gradient_time)
    return {"published": [published], "kernighan-lin": [baseline], "ours": [published, baseline]}[kind]


def _evolve(
    model: CostModel,
    measures: list[Measure],
    starts: list[np.ndarray],
    generator: np.random.Generator,
    evaluations: int,
) -> Found:
    groups = model.num_stages
    even = np.repeat(np.arange(groups), model.group_size)
    num_random = max(0, min(POPULATION, evaluations) - len(starts))
    population = [*starts, *(generator.permutation(even) for _ in range(num_random))][:evaluations]
    costs = [_cost(model, labels) for labels in population]
    best = min(range(len(costs)), key=costs.__getitem__)
    found, least = population[best], costs[best]
    for step in tqdm(range(evaluations - len(population)), desc="search", unit="layout", leave=False, disable=None):
        parents = generator.integers(len(population), size=2)
        child = _offspring(population[parents[0]], population[parents[1]], groups, generator)
        child = improve(child, groups, measures[step % len(measures)])
        cost = _cost(model, child)
        if cost < least:
            found, least = child, cost
        worse = max(parents, key=costs.__getitem__)
        if cost <= costs[worse]:
            population[worse], costs[worse] = child, cost
    return Found(_as_groups(found, groups), least)


def _offspring(first: np.ndarray, second: np.ndarray, groups: int, generator: np.random.Generator) -> np.ndarray:
    child = second.copy()
    places = generator.choice(len(child), size=min(COPIED_DEVICES, len(child)), replace=False)
    child[places] = first[places]
    return _balanced(child, groups)


def _balanced(labels: np.ndarray, groups: int) -> np.ndarray:
    """Devices of over-full groups, in order, go to the first group that has room."""
    room = len(labels) // groups - np.bincount(labels, minlength=groups)
    for device, group in enumerate(labels):
        if room[group] < 0:
            target = int(np.argmax(room > 0))
            labels[device] = target
            room[group] += 1
            room[target] -= 1
    return labels


def _as_groups(labels: np.ndarray, groups: int) -> np.ndarray:
    return np.argsort(labels, kind="stable").reshape(groups, -1)


def _cost(model: CostModel, labels: np.ndarray) -> float:
    return model.cost(_as_groups(labels, model.num_stages)).total
