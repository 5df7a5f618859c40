"""When megatron-core's overlapped parameter gathers (``--overlap-param-gather``) run, and when they must not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from megatron.core.distributed import DistributedDataParallel
from megatron.core.utils import get_model_config


class ParameterGathers:
    """Turns the forward pre-hooks that wait for gathered parameters on and off, on all model chunks together.

    They stay off until the first step is done: there is nothing to gather before, and a wrong initial weight on one
    rank would spread unseen. Evaluation and checkpoints pause them, which completes what is outstanding first.
    """

    def __init__(self, model: list[DistributedDataParallel]) -> None:
        self._model = model
        self._exist = model[0].use_forward_hook
        self._config = get_model_config(model[0])
        self._param_sync_func = self._config.param_sync_func
        self._on = self._exist
        self._turn_off(param_sync=False)

    def turn_on(self) -> None:
        """Let the next forward pass wait for its parameters; without effect when they are on already."""
        if not self._exist or self._on:
            return
        for chunk in self._model:
            chunk.enable_forward_pre_hook()
        self._config.param_sync_func = self._param_sync_func
        self._on = True

    def _turn_off(self, param_sync: bool) -> None:
        if not self._on:
            return
        for chunk in self._model:
            chunk.disable_forward_pre_hook(param_sync=param_sync)
        self._config.param_sync_func = None
        self._on = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, every parameter is complete and no gather runs."""
        was_on = self._on
        self._turn_off(param_sync=True)
        yield
        if was_on:
            self.turn_on()
