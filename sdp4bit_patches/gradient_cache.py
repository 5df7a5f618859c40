"""A bucket's own gradients, kept for the second sync: in host memory, or on their device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class GradientCache:
    """`keep` takes the gradients in, shard by shard; another thread calls `wait` before it reads them.

    From a GPU to the host they go over a bridge: a copy on the GPU, from which a stream of its own fills the pinned
    host memory. So the compressed reduce-scatter, which works in place, waits for the device copy only.

    memory: fp32, of as many elements as the bucket. order: the shards as they lie in it.
    """

    def __init__(self, memory: Tensor, order: Sequence[int]) -> None:
        self._rows, self._order = memory.view(len(order), -1), order
        self._stream: torch.cuda.Stream | None = None
        self._done: torch.cuda.Event | None = None

    def keep(self, gradients: Tensor) -> None:
        """Copy `gradients`, on the current stream's order; returns before a copy from a GPU is done."""
        if not gradients.is_cuda:
            self._fill(gradients)
            return
        self._stream = self._stream or torch.cuda.Stream(gradients.device)
        bridge = gradients.to(self._rows.dtype, copy=True)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._fill(bridge)
            self._done = self._stream.record_event()
        bridge.record_stream(self._stream)

    def _fill(self, gradients: Tensor) -> None:
        shards = gradients.view(self._rows.shape)
        for row, shard in zip(self._rows, self._order, strict=True):
            row.copy_(shards[shard], non_blocking=True)

    def wait(self) -> None:
        """Return when the values are all there; the host waits for them, which a stream's wait would not do."""
        if self._done is not None:
            self._done.synchronize()


def host_memory(memory: Tensor) -> Tensor:
    """`memory` on the host, pinned where there is a GPU, so that copies from it need not wait.

    Raises:
        RuntimeError: it cannot be pinned.
    """
    if torch.cuda.is_available() and not memory.is_pinned():
        error = int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))
        if error:
            raise RuntimeError(f"{memory.nbytes / 2**20:.1f} MiB for DUO cannot be pinned: CUDA error {error}")
    return memory
