"""The published cost of an assignment (DT-FM, NeurIPS 2022): communication alone, data parallel and pipeline.

Devices are cut into as many groups as there are stages; the members of a group hold the same stage and exchange its
gradients. Between groups the activations of one macro-batch travel. Devices are taken as equally fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tools.scheduler.matching import bottleneck_matching
from tools.scheduler.shortest_path import shortest_open_path


@dataclass(frozen=True)
class Cost:
    """Seconds of an assignment by the published model."""

    data_parallel: float
    pipeline: float

    @property
    def total(self) -> float:
        """What the published search minimises."""
        return self.data_parallel + self.pipeline


class CostModel:
    """Costs of partitions of one network into stages.

    Devices that the network does not tell apart (those of one host, say) are put into one class, and what is worked out
    for a group of stages is kept by the classes of its members.

    Args:
        delay: [devices, devices], seconds; both directions are averaged, and so is the bandwidth.
        bandwidth: [devices, devices], bit/s.
        activation_bytes: of one macro-batch over one boundary between stages.
        gradient_bytes: of one stage.
        num_stages: how many parts there are; the devices divide into them.
    """

    def __init__(
        self,
        delay: np.ndarray,
        bandwidth: np.ndarray,
        activation_bytes: float,
        gradient_bytes: float,
        num_stages: int,
    ) -> None:
        if len(delay) % num_stages:
            raise ValueError(f"{len(delay)} devices do not divide into {num_stages} stages; choose another --pp")
        delay, bandwidth = (delay + delay.T) / 2, (bandwidth + bandwidth.T) / 2
        self.num_devices, self.num_stages = len(delay), num_stages
        self.group_size = self.num_devices // num_stages
        # [devices, devices] seconds: activations over a link, and a gradient's share there and back.
        self.activation_time = delay + 8 * activation_bytes / bandwidth
        self.gradient_time = 2 * (delay + 8 * gradient_bytes / (self.group_size * bandwidth))
        np.fill_diagonal(self.gradient_time, 0.0)
        self.device_class = _classes(delay, bandwidth)
        self._group_costs: dict[tuple[int, ...], float] = {}
        self._boundary_costs: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}

    def cost(self, groups: np.ndarray) -> Cost:
        """The cost of ``groups``, device numbers, int [stages, group size]; their order does not matter."""
        keys = [tuple(sorted(self.device_class[group].tolist())) for group in groups]
        data_parallel = max(self._group_cost(key, group) for key, group in zip(keys, groups, strict=True))
        return Cost(data_parallel, 2 * shortest_open_path(self._boundaries(keys, groups))[0])

    def arrange(self, groups: np.ndarray) -> np.ndarray:
        """The same groups as pipelines: row k is the k-th stage, column p the p-th pipeline, int [stages, group size].

        Stages follow the shortest path, and each pipeline the best matching from stage to stage.
        """
        keys = [tuple(sorted(self.device_class[group].tolist())) for group in groups]
        _, path = shortest_open_path(self._boundaries(keys, groups))
        stages = [groups[path[0]]]
        for stage in path[1:]:
            _, columns = bottleneck_matching(self.activation_time[np.ix_(stages[-1], groups[stage])])
            stages.append(groups[stage][columns])
        return np.array(stages)

    def cost_as_laid_out(self, stages: np.ndarray) -> Cost:
        """The cost of ``stages`` with its own order and pipelines, not the best: as a random layout would run."""
        data_parallel = max(float(self.gradient_time[np.ix_(g, g)].sum(axis=1).max()) for g in stages)
        boundaries = self.activation_time[stages[:-1], stages[1:]].max(axis=1)
        return Cost(data_parallel, 2 * float(boundaries.sum()))

    def _group_cost(self, key: tuple[int, ...], group: np.ndarray) -> float:
        if key not in self._group_costs:
            self._group_costs[key] = float(self.gradient_time[np.ix_(group, group)].sum(axis=1).max())
        return self._group_costs[key]

    def _boundaries(self, keys: list[tuple[int, ...]], groups: np.ndarray) -> np.ndarray:
        """[stages, stages]: the heaviest link of the best matching between any two groups."""
        weights = np.zeros((len(groups), len(groups)))
        for a in range(len(groups)):
            for b in range(a):
                pair = (keys[a], keys[b]) if keys[a] <= keys[b] else (keys[b], keys[a])
                if pair not in self._boundary_costs:
                    edges = self.activation_time[np.ix_(groups[a], groups[b])]
                    self._boundary_costs[pair] = bottleneck_matching(edges)[0]
                weights[a, b] = weights[b, a] = self._boundary_costs[pair]
        return weights


def _classes(delay: np.ndarray, bandwidth: np.ndarray) -> np.ndarray:
    """int [devices]: equal numbers for devices whose links to all others are equal, both being given symmetric."""
    labels = np.arange(len(delay))
    for device in range(len(delay)):
        for other in range(device):
            elsewhere = np.ones(len(delay), dtype=bool)
            elsewhere[[device, other]] = False
            same = delay[device, elsewhere] == delay[other, elsewhere]
            if labels[other] == other and (same & (bandwidth[device, elsewhere] == bandwidth[other, elsewhere])).all():
                labels[device] = other
                break
    return labels
