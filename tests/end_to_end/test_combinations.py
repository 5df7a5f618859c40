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
EXPERTS = "--num-experts 4 --disable-bias-linear"
# Ranks, flags, and the schemes without and with overlap; all combinations would take minutes.
LAYOUTS = {
    "DP4": (4, "", "qw", "tlq_hs"),
    "DP3 on 2 + 1": (3, "--global-batch-size 12", "sdp4bit", None),
    "TP2+SP": (4, f"{TP} 2 --sequence-parallel", "ulq", "sdp4bit"),
    "PP2": (4, f"{PP} 2", "tlq", "qw"),
    "interleaved": (4, f"{PP} 2 --num-layers-per-virtual-pipeline-stage 1", "tlq_hs", "sdp4bit"),
    "CP2, Llama": (4, f"{CP} 2 {LLAMA}", "sdp4bit", None),
    "experts on 2 ranks": (4, f"{EXPERTS} --expert-model-parallel-size 2", "qwd", "sdp4bit"),
    "TP2+SP, experts": (4, f"{TP} 2 --sequence-parallel {EXPERTS}", "sdp4bit", None),
    "TP2xPP2, one data-parallel rank": (4, f"{TP} 2 {PP} 2", "sdp4bit", None),
    "nearest, norms and biases too": (4, "--quantization-rounding nearest --quantize-all-parameters", "sdp4bit", None),
    # The tied embedding's bucket is too small, its group's other bucket is not.
    "PP2, small beside large": (4, f"{PP} 2 --min-quantized-bucket 16384", "sdp4bit", None),
    "gradients in bf16": (2, "--grad-reduce-in-bf16", "sdp4bit", "ulq"),
}
COMBINATIONS = [
    (layout, overlapped, schemes[overlapped])
    for layout, (_, _, *schemes) in LAYOUTS.items()
    for overlapped in (False, True)
    if schemes[overlapped]
]


def test_no_scheme_is_left_out() -> None:
    """The combinations below leave none out."""
    schemes = {name for name, knobs in PRESETS.items() if knobs and not knobs.get("fast_slow_grad_reduce")}
    assert {scheme for _, _, scheme in COMBINATIONS} == schemes
    assert {overlapped for _, overlapped, scheme in COMBINATIONS if scheme == "sdp4bit"} == {False, True}


@pytest.mark.parametrize(("layout", "overlapped", "scheme"), COMBINATIONS)
def test_it_trains_with_equal_replicas(layout: str, overlapped: bool, scheme: str, tmp_path: Path) -> None:
    world_size, flags, *_ = LAYOUTS[layout]
    words = [*NODES, *flags.split(), *CHECK_REPLICAS, *(SMALL_BUCKETS if overlapped else [])]
    steps = trained(world_size, [*words, "--compression", scheme, "--gradient-alltoall-pipeline", "2"], tmp_path, 3)
    assert all(math.isfinite(value) for step in steps for value in step)
    assert steps[-1][0] < steps[0][0]
