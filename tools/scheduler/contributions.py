"""What a schedule's gain is made of: the layout, the micro-batch, the bits, and the degrees, one after the other."""

from __future__ import annotations

from tools.scheduler.layouts import megatron_layout
from tools.scheduler.plan import Choices, Plan, best_plan, best_settings
from tools.simulator.heterogeneous_training import Scheme, Trainer

EXACT = (Scheme("baseline"),)


def contributions(trainer: Trainer, stages: int) -> dict[str, Plan]:
    """Plans that differ from the one before in a single choice; the first is Megatron's order at micro-batch 1, exact.

    Raises:
        ValueError: the degrees do not go together, or a plan does not fit into memory.
    """
    start = Choices(stages, None, 1, (1,), EXACT)
    default = best_settings(trainer, megatron_layout(trainer.network.num_devices, stages), start)
    if default is None:
        raise ValueError(f"micro-batch 1 in {stages} stages does not fit into memory or batch; choose another --pp")
    return {
        "Megatron's order, micro-batch 1, exact": default,
        "the layout": best_plan(trainer, start, swaps=0),
        "the micro-batch": best_plan(trainer, Choices(stages, None, 1, schemes=EXACT), swaps=0),
        "the bits": best_plan(trainer, Choices(stages, None, 1), swaps=0),
        "the degrees": best_plan(trainer, Choices(), swaps=0),
    }


def as_table(plans: dict[str, Plan]) -> str:
    """Seconds after each choice, and the factor that it brought."""
    lines = [f"{'with':42}{'pipeline':>10}{'sync':>9}{'seconds':>9}{'factor':>8}   chosen"]
    before = None
    for name, plan in plans.items():
        factor = f"{before / plan.seconds:.2f}x" if before else ""
        stages, replicas, tensor = plan.layout.shape
        chosen = f"PP {stages} DP {replicas} TP {tensor}, micro-batch {plan.micro_batch}, {plan.scheme.name}"
        seconds = f"{plan.pipeline_seconds:10.2f}{plan.sync_seconds:9.2f}{plan.seconds:9.2f}{factor:>8}"
        lines.append(f"{name:42}{seconds}   {chosen}")
        before = plan.seconds
    return "\n".join(lines)
