"""Which elements travel exactly, and which rank owns them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdp4bit_patches.exact_slices import ExactSlices, travels_exactly

CPU = torch.device("cpu")


def _parameter(*shape: int, **marks: Any) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(torch.zeros(shape))
    for name, value in marks.items():
        setattr(parameter, name, value)
    return parameter


NORM, MATRIX = _parameter(8), _parameter(8, 8)
SPLIT_MATRIX, SPLIT_BIAS = _parameter(8, 8, tensor_model_parallel=True), _parameter(8, tensor_model_parallel=True)
EXPERT, ROUTER = _parameter(8, 8, allreduce=False), _parameter(4, 8, sequence_parallel=True)


@pytest.mark.parametrize(
    ("parameter", "tensor_parallel_size", "quantize_all", "exactly"),
    [
        (NORM, 1, False, True),
        (NORM, 1, True, False),
        (MATRIX, 1, False, False),
        (MATRIX, 2, False, True),
        (MATRIX, 2, True, True),
        (NORM, 2, True, True),
        (SPLIT_MATRIX, 2, False, False),
        (SPLIT_BIAS, 2, False, True),
        (SPLIT_BIAS, 2, True, False),
        (EXPERT, 2, False, False),
        (ROUTER, 1, False, False),
        (ROUTER, 2, False, True),
    ],
)
def test_vectors_and_what_tensor_parallelism_replicates_travel_exactly(
    parameter: torch.nn.Parameter, tensor_parallel_size: int, quantize_all: bool, exactly: bool
) -> None:
    assert travels_exactly(parameter, tensor_parallel_size, quantize_all) is exactly


def test_each_shard_owns_the_exact_elements_that_lie_in_it() -> None:
    """Four shards of 10: a range over two of them, one at either end, given in any order."""
    slices = ExactSlices([(38, 40), (8, 13), (0, 2)], 40, 4, CPU)
    assert slices.index.tolist() == [0, 1, 8, 9, 10, 11, 12, 38, 39]
    assert (slices.counts, slices.offsets, slices.num_elements) == ([4, 3, 0, 2], [0, 4, 7, 7], 9)
    assert [slices.within_shard(shard).tolist() for shard in range(4)] == [[0, 1, 8, 9], [0, 1, 2], [], [8, 9]]


@pytest.mark.parametrize(
    ("ranges", "num_elements", "counts"), [([], 40, [0] * 4), ([(0, 8)], 8, [2] * 4), ([], 0, [0] * 4)]
)
def test_none_all_and_an_empty_bucket(ranges: list, num_elements: int, counts: list[int]) -> None:
    assert ExactSlices(ranges, num_elements, 4, CPU).counts == counts
