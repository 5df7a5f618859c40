"""Where the time of a step goes, from the timers that megatron-core and the trainer run with ``--timing-log-level 2``.

Parts don't overlap: fetching data happens inside the forward timer and is taken out of it. Communication that
overlaps with compute (``--overlap-grad-reduce``) counts where a rank waits for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a tool reads the names of the parts before torch.cuda is answered for
    from megatron.core.timers import Timers

# Part -> timers and their log levels; megatron-core asserts that a timer is always asked for with the same level.
_OPTIMIZER = (
    "optimizer-copy-to-main-grad optimizer-unscale-and-check-inf optimizer-clip-main-grad optimizer-count-zeros "
    "optimizer-inner-step optimizer-copy-main-to-model-params"
).split()
_PARTS: dict[str, dict[str, int]] = {
    "data": {"batch-generator": 2},
    "forward": {"forward-compute": 2},
    "backward": {"backward-compute": 2},
    "gradient sync": {"all-grads-sync": 1},
    "optimizer": dict.fromkeys(_OPTIMIZER, 1),
    "parameter sync": {"params-all-gather": 1},
}


def take_part_seconds(timers: Timers) -> dict[str, float]:
    """Seconds that this rank has spent in each part since the last call."""
    seconds = {
        part: sum(timers(name, log_level=level).elapsed(reset=True) for name, level in names.items())
        for part, names in _PARTS.items()
    }
    return seconds | {"forward": seconds["forward"] - seconds["data"]}
