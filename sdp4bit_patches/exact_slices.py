"""Which elements of a flat bucket travel unquantized: norms, biases, and what tensor parallelism replicates.

They are few, and small errors in them cost more than bytes. What tensor parallelism replicates would also drift
apart, since each tensor-parallel rank has other neighbours in its quantization groups.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def travels_exactly(parameter: Tensor, tensor_parallel_size: int, quantize_all: bool) -> bool:
    """Whether a parameter is sent as it is. Experts are never replicated over the tensor-parallel ranks."""
    split = getattr(parameter, "tensor_model_parallel", False) or not getattr(parameter, "allreduce", True)
    replicated = tensor_parallel_size > 1 and not split
    return replicated or (parameter.dim() < 2 and not quantize_all)


class ExactSlices:
    """The exact elements of one bucket of `num_elements` elements in `num_shards` equal shards.

    `index` has their places in the bucket, ascending; shard s owns `counts[s]` of them from `offsets[s]` on.
    """

    def __init__(
        self, ranges: Iterable[tuple[int, int]], num_elements: int, num_shards: int, device: torch.device
    ) -> None:
        index = [torch.arange(begin, end, dtype=torch.int64) for begin, end in sorted(ranges)]
        places = torch.cat(index) if index else torch.empty(0, dtype=torch.int64)
        shard_size = num_elements // num_shards
        self.counts = torch.bincount(places // max(shard_size, 1), minlength=num_shards).tolist()
        self.offsets = [sum(self.counts[:shard]) for shard in range(num_shards)]
        self.index = places.to(device)
        self._shard_size = shard_size

    @property
    def num_elements(self) -> int:
        """How many there are."""
        return sum(self.counts)

    def within_shard(self, shard: int) -> Tensor:
        """Places of the shard's exact elements, from the shard's own beginning."""
        begin = self.offsets[shard]
        return self.index[begin : begin + self.counts[shard]] - shard * self._shard_size


def offset_in(bucket: Tensor, view: Tensor) -> int:
    """Elements between a bucket's beginning and a view into it; `param_to_index` of megatron-core leaves out gaps."""
    return (view.data_ptr() - bucket.data_ptr()) // bucket.element_size()
