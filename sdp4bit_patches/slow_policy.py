"""Whether the second gradient sync pays, and what is done where it does not.

The slow sync is free while it fits into its window, from the end of the parameter gather to the arrival of the next
gradient. What does not fit is exposed: it makes steps longer. Where ranks compute on all cores of a host, so does its
own processor time, as those cores then compute nothing. `Watch` has both of every rank. With
`--duo-policy adaptive`, `SlowPolicy` lowers the slow sync to the first level at which steps should be no longer than
without it, within `TOLERANCE`, and raises it when the window has grown; from the lowest, at which nothing shows, it
looks again from time to time. All ranks agree on each change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

# Of 3 %, a third is left to what shows neither as waiting nor in a process's time: the kernel's work for packets.
TOLERANCE = 0.02
# What a look from the lowest level may cost of the steps since the last one.
LOOK_TOLERANCE = 0.005
# Steps between decisions; the first ones of a run are slower than all others and decide nothing.
INTERVAL = 8
WARM_UP = 3


class Level(NamedTuple):
    """How exact gradients travel: their form, and in which steps (`period` 4: in every fourth; 0: in none)."""

    dtype: str
    period: int

    def __str__(self) -> str:
        often = {0: "never", 1: "every step"}.get(self.period, f"every {self.period} steps")
        return often if self.period == 0 else f"{self.dtype} {often}"


_BYTES = {"fp32": 4, "bf16": 2}
LEVELS = (Level("fp32", 1), Level("bf16", 1), Level("bf16", 2), Level("bf16", 4), Level("bf16", 8), Level("bf16", 0))


@dataclass
class Watch:
    """Milliseconds of the steps since the last decision, on this rank."""

    num_steps: int = 0
    step_ms: float = 0.0
    exposed_ms: float = 0.0
    slow_ms: float = 0.0
    window_ms: float = 0.0
    busy_ms: float = 0.0
    num_syncs: int = 0

    def add(
        self, step_ms: float, exposed_ms: float, slow_ms: float, window_ms: float, busy_ms: float, synced: bool
    ) -> None:
        """One step: its length, what of the slow sync was exposed, how long that took and what time it had, and the
        processor time that it and its like on the same core took from computing, zero where cores are free for it."""
        self.num_steps += 1
        self.step_ms += step_ms
        self.exposed_ms += exposed_ms
        self.window_ms += window_ms if synced else 0.0
        self.slow_ms += slow_ms
        self.busy_ms += busy_ms
        self.num_syncs += synced

    def means(self) -> list[float]:
        """Exposed share of the step time without it; mean milliseconds of a slow sync, and of its window negated; the
        share of the processor time that it took.

        The largest of each over all ranks is what decides.
        """
        without = max(self.step_ms - self.exposed_ms - self.busy_ms, 1e-9)
        syncs = max(self.num_syncs, 1)
        shares = self.exposed_ms / without, self.busy_ms / without
        return [shares[0], self.slow_ms / syncs, -self.window_ms / syncs, shares[1]]


@dataclass
class SlowPolicy:
    """The level that all ranks are at. `first` is the level that the flags ask for."""

    adaptive: bool
    first: int = 0
    level_index: int = field(init=False)
    watch: Watch = field(default_factory=Watch)
    _slow_ms: dict[int, float] = field(default_factory=dict)
    _busy_ms: dict[int, float] = field(default_factory=dict)  # of a sync, were a step as long as its window
    _rest_steps: float = 0.0
    _rested_steps: int = 0
    _warned: bool = False

    def __post_init__(self) -> None:
        self.level_index = self.first

    @property
    def level(self) -> Level:
        """The current one."""
        return LEVELS[self.level_index]

    def syncs(self, step: int) -> bool:
        """Whether this step's gradient is synced exactly."""
        return self.level.period > 0 and step % self.level.period == 0

    def decide(self, largest: Callable[[list[float]], list[float]]) -> str | None:
        """After every `INTERVAL` steps: look at the worst rank, and say in words what is wrong or was changed.

        `largest` gives the element-wise maximum over all ranks, which therefore decide alike.
        """
        if self.watch.num_steps < INTERVAL:
            return None
        if self.level.period == 0:
            self.watch = Watch()
            return self._look_again()
        exposed, slow_ms, window_ms, busy = largest(self.watch.means())
        synced, self.watch = self.watch.num_syncs > 0, Watch()
        if synced:
            self._slow_ms[self.level_index] = slow_ms
            self._busy_ms[self.level_index] = busy * self.level.period * -window_ms
        words = (
            f"slow sync {slow_ms:.0f} ms, compute that hides it {-window_ms:.0f} ms, exposed {exposed:.1%} of a step"
        )
        words += f", its work on shared cores {busy:.1%}" if busy else ""
        if exposed + busy > TOLERANCE:
            return self._lower(words, exposed, slow_ms, -window_ms, busy) if self.adaptive else self._warn(words)
        return self._raise(slow_ms, -window_ms, busy) if self.adaptive and synced else None

    def _warn(self, words: str) -> str | None:
        if self._warned:
            return None
        self._warned = True
        remedy = "more micro-batches or a faster slow channel hide it; --duo-policy adaptive does with less of it"
        return f"DUO is not hidden: {words}; {remedy}"

    def _lower(self, words: str, exposed: float, slow_ms: float, window_ms: float, busy: float) -> str:
        """To the first level below at which what a step is longer by, by the same window, is within `TOLERANCE`."""
        # What a level exposes in a step, on the mean; `exposed` is what that means at the current one.
        current = max(slow_ms - window_ms, 0.0) / self.level.period
        before, self.level_index = self.level, self.level_index + 1
        while self.level.period:
            left = max(slow_ms * _BYTES[self.level.dtype] / _BYTES[before.dtype] - window_ms, 0.0) / self.level.period
            waiting = exposed * left / current if current else 0.0
            if waiting + busy * before.period / self.level.period <= TOLERANCE:
                break
            self.level_index += 1
        if self.level.period == 0:
            # One sync lengthens so many steps by the whole of one.
            cost = (exposed + busy) * before.period
            self._rest_steps, self._rested_steps = max(cost / LOOK_TOLERANCE, 2 * self._rest_steps), 0
        return f"DUO is not hidden: {words}; exact gradients now: {self.level}"

    def _look_again(self) -> str | None:
        """From the lowest level, when what one sync cost is little beside the steps since; each time later."""
        self._rested_steps += INTERVAL
        if self._rested_steps < self._rest_steps:
            return None
        self.level_index -= 1
        return f"DUO looks again whether it is hidden; exact gradients now: {self.level}"

    def _raise(self, slow_ms: float, window_ms: float, busy: float) -> str | None:
        """To the level above, if by what it took there or, where it was never measured, takes here, it is hidden."""
        above = self.level_index - 1
        if above < self.first:
            return None
        taken_ms = self._busy_ms.get(above, busy * self.level.period * window_ms)
        if taken_ms > TOLERANCE * LEVELS[above].period * window_ms:
            return None
        expected = slow_ms * _BYTES[LEVELS[above].dtype] / _BYTES[self.level.dtype]
        if self._slow_ms.get(above, expected) > 0.8 * window_ms:
            return None
        self.level_index = above
        return f"DUO has room again ({window_ms:.0f} ms of compute); exact gradients now: {self.level}"
