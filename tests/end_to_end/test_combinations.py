"""Overlap, parallel layouts and schemes in combination: each trains. The refused ones: tests/unit/test_refusals.py."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from compressed_training import CHECK_REPLICAS, NODES, SMALL_BUCKETS, trained

from sdp4bit_patches.config import PRESETS

TP, PP, CP = "--tensor-model-parallel-size", "--pipeline-model-parallel-size", "--context-parallel-size"
LLAMA = "--swiglu --normalization RMSNorm --position-embedding-type rope --disable-bias-linear"
LLAMA += " --untie-embeddings-and-output-weights"
LAYOUTS = {
    "DP4": (4, ""),
    "DP3 on 2 + 1": (3, "--global-batch-size 12"),
    "TP2+SP": (4, f"{TP} 2 --sequence-parallel"),
    "PP2": (4, f"{PP} 2"),
    "interleaved": (4, f"{PP} 2 --num-layers-per-virtual-pipeline-stage 1"),
    "CP2, Llama": (4, f"{CP} 2 {LLAMA}"),
    "experts on 2 ranks": (4, "--num-experts 4 --expert-model-parallel-size 2 --disable-bias-linear"),
    "TP2xPP2, one data-parallel rank": (4, f"{TP} 2 {PP} 2"),
    "TP2+SP, experts": (4, f"{TP} 2 --sequence-parallel --num-experts 4 --disable-bias-linear"),
    "nearest, norms and biases too": (4, "--quantization-rounding nearest --quantize-all-parameters"),
    # The tied embedding's bucket is too small, its group's other bucket is not.
    "PP2, small beside large": (4, f"{PP} 2 --min-quantized-bucket 16384"),
    "gradients in bf16": (2, "--grad-reduce-in-bf16"),
    "averaged in the collective": (2, "--ddp-average-in-collective"),
}
SCHEMES = [name for name, knobs in PRESETS.items() if knobs and not knobs.get("fast_slow_grad_reduce")]
# Where overlap meets a schedule or a group of its own; the others with overlap would only take longer.
OVERLAPPED = ("DP4", "TP2+SP", "PP2", "interleaved", "experts on 2 ranks", "gradients in bf16")
# Each time with another scheme; all pairs would take minutes.
COMBINATIONS = [(layout, False, SCHEMES[index % len(SCHEMES)]) for index, layout in enumerate(LAYOUTS)]
COMBINATIONS += [(layout, True, SCHEMES[(index + 4) % len(SCHEMES)]) for index, layout in enumerate(OVERLAPPED)]


def test_every_scheme_is_combined_with_and_without_overlap() -> None:
    """The combinations below leave none out."""
    assert {scheme for _, _, scheme in COMBINATIONS} == set(SCHEMES)
    assert {overlapped for _, overlapped, scheme in COMBINATIONS if scheme == "sdp4bit"} == {False, True}


@pytest.mark.parametrize(("layout", "overlapped", "scheme"), COMBINATIONS)
def test_it_trains_with_equal_replicas(layout: str, overlapped: bool, scheme: str, tmp_path: Path) -> None:
    world_size, flags = LAYOUTS[layout]
    words = [*NODES, *flags.split(), *CHECK_REPLICAS, *(SMALL_BUCKETS if overlapped else [])]
    steps = trained(world_size, [*words, "--compression", scheme, "--gradient-alltoall-pipeline", "2"], tmp_path, 3)
    assert all(math.isfinite(value) for step in steps for value in step)
    assert steps[-1][0] < steps[0][0]
