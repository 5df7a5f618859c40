"""What a layout costs by the published model and takes in simulated seconds, side by side with others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tools.scenario_files import Scenario
from tools.scheduler.cost_model import Cost
from tools.scheduler.plan import Plan
from tools.scheduler.published import Sizes, published_model
from tools.simulator.heterogeneous_training import Trainer


@dataclass(frozen=True)
class Judged:
    """A plan and its cost by the published model."""

    plan: Plan
    cost: Cost

    @property
    def sentence(self) -> str:
        """Degrees, micro-batch, scheme and seconds in words."""
        stages, replicas, tensor = self.plan.layout.shape
        degrees = f"PP {stages} x DP {replicas}" + (f" x TP {tensor}" if tensor > 1 else "")
        settings = f"micro-batch {self.plan.micro_batch}, {self.plan.scheme.name}"
        return f"{degrees}, {settings}: {self.plan.seconds:.2f} s simulated, published cost {self.cost.total:.3f}"

    def as_json(self) -> dict[str, Any]:
        """Numbers and choices under the names of the command's output."""
        stages, replicas, tensor = self.plan.layout.shape
        cost = {"cost": self.cost.total, "data_parallel_cost": self.cost.data_parallel}
        seconds = {"pipeline_seconds": self.plan.pipeline_seconds, "sync_seconds": self.plan.sync_seconds}
        degrees = {"pp": stages, "dp": replicas, "tp": tensor, "micro_batch_size": self.plan.micro_batch}
        chosen = degrees | {"compression": self.plan.scheme.name}
        return cost | {"pipeline_cost": self.cost.pipeline, "seconds": self.plan.seconds} | seconds | chosen


@dataclass(frozen=True)
class Judge:
    """Judges plans on one scenario."""

    scenario: Scenario
    trainer: Trainer
    sizes: Sizes

    def __call__(self, plan: Plan, as_laid_out: bool = False) -> Judged:
        """The plan's published cost: of its groups at their best, or with the stages and pipelines just as they are."""
        stages, replicas, tensor = plan.layout.shape
        units = plan.layout.reshape(-1, tensor)
        model = published_model(self.scenario, stages, self.sizes, units)
        numbers = model.cost if not as_laid_out else model.cost_as_laid_out
        return Judged(plan, numbers(np.arange(len(units)).reshape(stages, replicas)))


def as_table(rows: dict[str, Judged]) -> str:
    """The rows for people to read."""
    head = f"{'layout':12}{'cost':>9}{'  data parallel':>16}{'pipeline':>10}{'seconds':>10}   chosen"
    lines = [head]
    for name, judged in rows.items():
        cost = f"{judged.cost.total:9.3f}{judged.cost.data_parallel:16.3f}{judged.cost.pipeline:10.3f}"
        stages, replicas, tensor = judged.plan.layout.shape
        chosen = f"PP {stages} DP {replicas} TP {tensor}, micro-batch {judged.plan.micro_batch}"
        lines.append(f"{name:12}{cost}{judged.plan.seconds:10.2f}   {chosen}, {judged.plan.scheme.name}")
    return "\n".join(lines)
