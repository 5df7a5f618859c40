"""Which samples a data-parallel rank reads, from nothing but the number of samples consumed before.

Sample positions run on through the training: iteration by iteration, a global batch is the next ``global_batch_size``
positions, whatever the data-parallel size. Micro-batch k of rank r is the r-th slice of the k-th stretch of
``micro_batch_size x data_parallel_size`` positions.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch


class _MicroBatches:
    """The positions of one rank's micro-batches, from ``consumed_samples`` on."""

    def __init__(self, consumed_samples: int, micro_batch_size: int, rank: int, size: int) -> None:
        assert 0 <= rank < size and micro_batch_size > 0 and consumed_samples >= 0
        self._stretch = micro_batch_size * size
        self._first = consumed_samples
        self._share = range(rank * micro_batch_size, (rank + 1) * micro_batch_size)

    def _positions(self) -> Iterator[list[int]]:
        start = self._first
        while True:
            yield [start + offset for offset in self._share]
            start += self._stretch


class SequentialSampler(_MicroBatches):
    """``--dataloader-type single``: once through the dataset, which GPTDataset has shuffled already.

    Args:
        num_samples: length of the dataset; a last stretch that is not whole is left out on every rank.
        consumed_samples: samples of all ranks that earlier iterations have used.
        micro_batch_size: samples of one micro-batch.
        rank: of this process in its data-parallel group.
        size: of the data-parallel group.
    """

    def __init__(self, num_samples: int, consumed_samples: int, micro_batch_size: int, rank: int, size: int) -> None:
        super().__init__(consumed_samples, micro_batch_size, rank, size)
        self._num_micro_batches = max(num_samples - consumed_samples, 0) // self._stretch

    def __len__(self) -> int:
        return self._num_micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        for _, positions in zip(range(self._num_micro_batches), self._positions(), strict=False):
            yield positions


class CyclicSampler(_MicroBatches):
    """``--dataloader-type cyclic``: without end, in an order shuffled anew for every pass.

    Megatron-LM shuffles each rank's own part; here one permutation is shared by all ranks, so that the order does not
    depend on the data-parallel size. A micro-batch may lie across two passes.

    Args:
        seed: of the permutations; pass number p uses ``seed + p``.
    """

    def __init__(
        self, num_samples: int, consumed_samples: int, micro_batch_size: int, rank: int, size: int, seed: int
    ) -> None:
        super().__init__(consumed_samples, micro_batch_size, rank, size)
        assert num_samples > 0
        self._num_samples = num_samples
        self._seed = seed
        self._pass = -1
        self._order: list[int] = []

    def __iter__(self) -> Iterator[list[int]]:
        for positions in self._positions():
            yield [self._sample(position) for position in positions]

    def _sample(self, position: int) -> int:
        number, offset = divmod(position, self._num_samples)
        if number != self._pass:
            generator = torch.Generator().manual_seed(self._seed + number)
            self._pass, self._order = number, torch.randperm(self._num_samples, generator=generator).tolist()
        return self._order[offset]
