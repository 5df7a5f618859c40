"""A bucket's own gradients, kept for the second sync: in host memory, or on their device."""

from __future__ import annotations

import torch
from torch import Tensor


class GradientCache:
    """`keep` takes the gradients in, `kept` gives them to another thread.

    From a GPU to the host they go over a bridge: a copy on the GPU, from which a stream of its own fills the pinned
    host buffer. So the compressed reduce-scatter, which works in place, waits for the device copy only.
    """

    def __init__(self, num_elements: int, channel: torch.device) -> None:
        pinned = channel.type == "cpu" and torch.cuda.is_available()
        self._values = torch.empty(num_elements, device=channel, pin_memory=pinned)
        self._stream: torch.cuda.Stream | None = None
        self._done: torch.cuda.Event | None = None

    @property
    def num_elements(self) -> int:
        """How many gradients it holds."""
        return self._values.numel()

    def keep(self, gradients: Tensor) -> None:
        """Copy `gradients`, on the current stream's order; returns before a copy from a GPU is done."""
        if not gradients.is_cuda:
            self._values.copy_(gradients)
            return
        self._stream = self._stream or torch.cuda.Stream(gradients.device)
        bridge = gradients.to(self._values.dtype, copy=True)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._values.copy_(bridge, non_blocking=True)
            self._done = self._stream.record_event()
        bridge.record_stream(self._stream)

    def kept(self) -> Tensor:
        """The values, when they are all there; the host waits for them, which a stream's wait would not do."""
        if self._done is not None:
            self._done.synchronize()
        return self._values
