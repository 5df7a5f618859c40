"""One bucket's published parameters beside the model's: written by the optimizer, taken exactly once.

The difference itself is never stored: `main` (fp32) and the model's own shard meet in the codec, where they are
subtracted in fp32. So nothing is rounded twice, and no memory is spent on it.
"""

from __future__ import annotations

from torch import Tensor


class WeightDifference:
    """This rank's shard of what a bucket's parameters should become, and whether that was sent already."""

    def __init__(self, main: Tensor) -> None:
        """main: fp32[shard], in the bucket's order, zero in its gaps; the optimizer's main parameters lie in it."""
        self.main = main
        self._step: int | None = None

    def publish(self, step: int) -> None:
        """Say that `main` has new values, those of training step `step`."""
        self._step = step

    def take(self) -> int | None:
        """The step whose values are to be sent now, and no second time; None where there are none."""
        step, self._step = self._step, None
        return step
