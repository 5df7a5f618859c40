"""What has to be equal on several ranks is equal to the bit, although each quantizes messages of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compressed_training import CHECK_REPLICAS, SDP4BIT, look_at_training
from torch import Tensor

TP2, PP2 = "--tensor-model-parallel-size 2".split(), "--pipeline-model-parallel-size 2".split()
SEQUENCE_PARALLEL = [*TP2, "--sequence-parallel"]
EXPERTS = [*SEQUENCE_PARALLEL, *"--num-experts 4 --disable-bias-linear".split()]
OVERLAP = "--overlap-grad-reduce --overlap-param-gather --ddp-bucket-size 40000".split()

# A rank's place (tensor, pipeline) and its parameters: by name, whether tensor parallelism splits them, and values.
Parameters = dict[str, tuple[bool, Tensor]]


def _parameters(run: Any) -> tuple[tuple[int, int], Parameters]:
    from megatron.core import parallel_state

    place = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_pipeline_model_parallel_rank()
    with run.gathers.paused():
        named = [pair for chunk in run.model for pair in chunk.named_parameters()]
    return place, {name: (_is_split(value), value.detach().clone()) for name, value in named}


def _is_split(parameter: Any) -> bool:
    """Whether tensor-parallel ranks have different parts of it; experts may be spread over them."""
    return getattr(parameter, "tensor_model_parallel", False) or not getattr(parameter, "allreduce", True)


def _quantize_everything() -> None:
    """Quantize what tensor parallelism replicates too, which the package does not do."""
    from sdp4bit_patches import bucket_group

    bucket_group.travels_exactly = lambda *_: False


def _round_every_bucket_by_its_own_name() -> None:
    """Forget that tied embeddings share one name in the keys of random numbers."""
    from megatron.core import parallel_state

    from sdp4bit_patches import session

    def name(self: Any, _bucket: Any) -> int:
        self._num_buckets += 1
        return self._num_buckets + 100 * parallel_state.get_pipeline_model_parallel_rank()

    session.Session.name_bucket = name


def _differences(ranks: list, replicated: bool) -> dict[str, int]:
    """Parameters, with numbers of elements, that differ between data-parallel ranks; or, of those that tensor
    parallelism replicates, between all ranks of a pipeline stage."""
    found: dict[str, int] = {}
    for place, parameters in ranks:
        first = next(values for at, values in ranks if at[replicated:] == place[replicated:])
        for name, (is_split, values) in parameters.items():
            if not (replicated and is_split):
                found[name] = max(found.get(name, 0), int((values != first[name][1]).sum()))
    return {name: count for name, count in found.items() if count}


BIASED = ("layernorm.weight", "proj.bias", "fc2.bias", "position_embeddings.weight")


@pytest.mark.parametrize(
    ("flags", "kinds"),
    [(TP2, BIASED), ([*SEQUENCE_PARALLEL, *OVERLAP], BIASED), (EXPERTS, ("layernorm.weight", "router.weight"))],
    ids=["TP2", "TP2+SP overlapped", "TP2+SP, experts"],
)
def test_what_tensor_parallelism_replicates_stays_equal_on_all_its_ranks(flags: list[str], kinds: tuple) -> None:
    ranks = look_at_training(4, [*SDP4BIT, *flags, *CHECK_REPLICAS], _parameters, num_steps=8)
    replicated = {name for name, (is_split, _) in ranks[0][1].items() if not is_split}
    assert all(any(kind in name for name in replicated) for kind in kinds), replicated
    assert not _differences(ranks, replicated=True)
    assert not _differences(ranks, replicated=False)


def test_they_would_drift_apart_if_they_were_quantized() -> None:
    """Negative control, and the reason why they travel exactly."""
    ranks = look_at_training(4, [*SDP4BIT, *TP2], _parameters, _quantize_everything, num_steps=8)
    assert _differences(ranks, replicated=True)
    assert not _differences(ranks, replicated=False)


def _embeddings(ranks: list) -> list[Tensor]:
    """The embedding of the first pipeline stage and the output weight of the last."""
    names = ("word_embeddings.weight", "output_layer.weight")
    return [values for _, parameters in ranks for name, (_, values) in parameters.items() if name.endswith(names)]


@pytest.mark.parametrize("flags", [[], OVERLAP], ids=["", "overlapped"])
def test_tied_embeddings_stay_equal_on_the_first_and_the_last_pipeline_stage(flags: list[str]) -> None:
    ranks = look_at_training(4, [*SDP4BIT, *PP2, *flags, *CHECK_REPLICAS], _parameters, num_steps=8)
    first, *others = _embeddings(ranks)
    assert len(others) == 3 and all(torch.equal(first, other) for other in others)
    assert not _differences(ranks, replicated=False)


def test_tied_embeddings_would_differ_if_each_stage_rounded_by_its_own_numbers() -> None:
    """Negative control of the test above."""
    ranks = look_at_training(4, [*SDP4BIT, *PP2], _parameters, _round_every_bucket_by_its_own_name, num_steps=8)
    first, *others = _embeddings(ranks)
    assert not all(torch.equal(first, other) for other in others)
