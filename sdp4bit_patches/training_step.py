"""Which training step it is, by megatron-core's own counter: rounding, warm-up and telemetry go by it."""

from __future__ import annotations

import warnings

from megatron.core.rerun_state_machine import get_rerun_state_machine

from sdp4bit_patches.session import Session


def current_step(session: Session) -> int:
    """The step, from 1 on, as Megatron-LM and this project's trainer keep it in the rerun state machine.

    A script that leaves the state machine alone gets the number of its optimizer steps, and is told: after a resume
    that counts from the beginning, and stochastic rounding repeats its random numbers.
    """
    iteration = get_rerun_state_machine().current_iteration
    if iteration >= 0:
        return iteration
    if not session.num_steps:
        sentence = "the script does not advance megatron-core's rerun state machine: steps are counted from this start"
        warnings.warn(f"{sentence}, and a resumed run will not round as an uninterrupted one", stacklevel=2)
    return session.num_steps + 1
