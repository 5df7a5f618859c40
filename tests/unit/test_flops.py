"""FLOPs of a step against the closed formulas of the papers, which are written differently from ours."""

from __future__ import annotations

from argparse import Namespace

import pytest

from megatron.training.flops import flops_per_sample, tflops_per_gpu

# layers, hidden size, heads: GPT 125M, 1.3B, 6.7B, 18B
GPT = [(12, 768, 12), (24, 2048, 16), (32, 4096, 32), (40, 6144, 48)]


def model(layers: int, hidden: int, heads: int, **changes) -> Namespace:
    values = {
        "num_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_query_groups": heads,
        "kv_channels": hidden // heads,
        "ffn_hidden_size": 4 * hidden,
        "seq_length": 2048,
        "padded_vocab_size": 50304,
        "swiglu": False,
        "num_experts": None,
        "moe_ffn_hidden_size": None,
        "moe_router_topk": 2,
        "world_size": 1,
    }
    return Namespace(**(values | changes))


def gpt(batch, s, layers, h, kv_over_a, vocabulary):
    """60 B s l h^2 (1 + kv/(5a) + s/(5h) + V/(10 l h))."""
    return 60 * batch * s * layers * h**2 * (1 + kv_over_a / 5 + s / (5 * h) + vocabulary / (10 * layers * h))


@pytest.mark.parametrize(("layers", "hidden", "heads"), GPT)
def test_a_gpt_counts_as_in_both_published_forms(layers, hidden, heads):
    args = model(layers, hidden, heads)
    of_heads = 72 * 2048 * layers * hidden**2 * (1 + 2048 / (6 * hidden) + 50304 / (12 * layers * hidden))
    assert flops_per_sample(args) == pytest.approx(of_heads, rel=1e-12)
    assert flops_per_sample(args) == pytest.approx(gpt(1, 2048, layers, hidden, 1, 50304), rel=1e-12)


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_key_and_value_heads_count_by_their_number(groups):
    args = model(24, 2048, 16, num_query_groups=groups)
    assert flops_per_sample(args) == pytest.approx(gpt(1, 2048, 24, 2048, groups / 16, 50304), rel=1e-12)
    assert flops_per_sample(args) < flops_per_sample(model(24, 2048, 16))


def test_llama_counts_three_matrices_in_its_mlp():
    s, h, layers, heads, groups, ffn, vocabulary = 8192, 4096, 32, 32, 8, 14336, 128256
    args = model(
        layers, h, heads, num_query_groups=groups, ffn_hidden_size=ffn, swiglu=True, seq_length=s,
        padded_vocab_size=vocabulary,
    )  # fmt: skip
    expected = 12 * s * layers * h**2 * (1 + groups / heads + s / h + 1.5 * ffn / h + vocabulary / (2 * layers * h))
    assert flops_per_sample(args) == pytest.approx(expected, rel=1e-12)


def test_llama_3_1_8b_needs_six_flops_per_weight_and_token_and_the_attention():
    """A check from another side: 6 x the weights that multiply, plus 12 s h l for scores and values."""
    layers, h, ffn, vocabulary, s = 32, 4096, 14336, 128256, 2048
    weights = layers * (h * h * 2 + 2 * h * 1024 + 3 * h * ffn) + vocabulary * h
    args = model(
        layers, h, 32, num_query_groups=8, ffn_hidden_size=ffn, swiglu=True, seq_length=s, padded_vocab_size=vocabulary
    )
    assert 7.4e9 < weights < 7.6e9
    assert flops_per_sample(args) == pytest.approx(s * (6 * weights + 12 * s * h * layers), rel=1e-12)


def test_a_token_pays_for_the_experts_it_visits_and_not_for_the_others():
    plain = model(24, 2048, 16)
    one_expert = model(24, 2048, 16, num_experts=64, moe_ffn_hidden_size=4 * 2048, moe_router_topk=1)
    two_experts = model(24, 2048, 16, num_experts=64, moe_ffn_hidden_size=4 * 2048, moe_router_topk=2)
    assert flops_per_sample(one_expert) == flops_per_sample(plain)
    of_one_mlp = 3 * 2048 * 24 * 4 * 2048 * 4 * 2048
    assert flops_per_sample(two_experts) - flops_per_sample(one_expert) == pytest.approx(of_one_mlp, rel=1e-12)


def test_tflops_are_shared_by_all_ranks_and_grow_with_the_batch():
    args = model(24, 2048, 16, world_size=16)
    expected = gpt(256, 2048, 24, 2048, 1, 50304) / (2.5 * 1e12 * 16)
    assert tflops_per_gpu(args, 256, 2.5) == pytest.approx(expected, rel=1e-12)
