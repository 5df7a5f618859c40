"""Keeps the log to what is ours: libraries' notes about absent packages are said once, by the start-up report."""

from __future__ import annotations

import logging
import warnings

_TALKATIVE = r"megatron\.core\..*|torch\.distributed\..*|torch\.autograd\..*"


def quiet_libraries() -> None:
    """Silence megatron-core's informational messages and import-time warnings; errors are kept."""
    logging.getLogger("megatron.core").setLevel(logging.ERROR)
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=_TALKATIVE)
