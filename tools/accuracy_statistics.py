"""Paired differences of the validation losses of an experiment's runs, and whether they are what is demanded."""

from __future__ import annotations

import math
import statistics
from typing import NamedTuple

from tools.experiment import Experiment, Variant
from tools.plot_runs import RunMetrics


class Outcome(NamedTuple):
    """What the run of one variant with one seed gave."""

    variant: str
    seed: int
    metrics: RunMetrics

    @property
    def loss(self) -> float:
        """The validation loss after the last iteration, in nats per token."""
        return self.metrics.validation[-1][1]


class Comparison(NamedTuple):
    """A variant's validation losses, and their differences in % from the reference with the same seed; by seed.

    `repaired`: the differences of the variant that it repairs.
    """

    variant: Variant
    losses: list[float]
    differences: list[float]
    repaired: list[float] | None = None

    @property
    def mean(self) -> float:
        """Mean of the differences, in %."""
        return statistics.fmean(self.differences)

    @property
    def standard_error(self) -> float:
        """Of that mean; NaN where there is a single seed."""
        count = len(self.differences)
        return statistics.stdev(self.differences) / math.sqrt(count) if count > 1 else math.nan

    @property
    def closed(self) -> float | None:
        """Share in % of the repaired variant's mean difference that this one has not; None where it repairs none."""
        if self.repaired is None:
            return None
        return 100 * (1 - self.mean / statistics.fmean(self.repaired))

    @property
    def demand(self) -> str:
        """What is demanded of the mean, in words."""
        within, at_least = self.variant.within, self.variant.at_least
        parts = [] if within is None else [f"within ±{within:g} %"]
        parts += [] if at_least is None else [f"at least {at_least:+g} %"]
        repairs, share = self.variant.repairs, self.variant.closes_at_least
        return " and ".join([*parts, *([] if repairs is None else [f"{share:g} % of {repairs}'s closed"])])

    @property
    def verdict(self) -> str:
        """`met` or `missed`; empty where nothing is demanded. A loss that is NaN meets nothing."""
        within, at_least, share = self.variant.within, self.variant.at_least, self.variant.closes_at_least
        kept = [] if within is None else [abs(self.mean) <= within]
        kept += [] if at_least is None else [self.mean >= at_least]
        kept += [] if self.closed is None else [self.closed >= share]
        return "" if not kept else "met" if all(kept) else "missed"


def compare(experiment: Experiment, outcomes: list[Outcome]) -> list[Comparison]:
    """Pair every run with the reference's run of the same seed."""
    losses = {(outcome.variant, outcome.seed): outcome.loss for outcome in outcomes}
    comparisons = []
    for variant in experiment.variants:
        own = [losses[variant.name, seed] for seed in experiment.seeds]
        others = [losses[experiment.reference, seed] for seed in experiment.seeds]
        differences = [100 * (mine / theirs - 1) for mine, theirs in zip(own, others, strict=True)]
        comparisons.append(Comparison(variant, own, differences))
    by_name = {comparison.variant.name: comparison.differences for comparison in comparisons}
    return [comparison._replace(repaired=by_name.get(comparison.variant.repairs)) for comparison in comparisons]
