"""SIGTERM (a cluster's preemption, torchrun's own end) asks for a checkpoint and a clean exit."""

from __future__ import annotations

import signal
from types import FrameType


class ExitSignal:
    """Remembers that SIGTERM arrived on this rank; the loop asks all ranks whether any has seen one."""

    def __init__(self) -> None:
        self.received = False
        signal.signal(signal.SIGTERM, self._remember)

    def _remember(self, _number: int, _frame: FrameType | None) -> None:
        self.received = True
