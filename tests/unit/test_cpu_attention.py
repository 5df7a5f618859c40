"""bf16 attention on the CPU: against fp64, no further off than megatron-core's own."""

from __future__ import annotations

import pytest
import torch

from megatron.training import cpu_attention

# bf16 has 8 bits of precision: 2^-9 relative for each rounding, and scores, probabilities and the result are rounded.
TOLERANCE = 2e-2


def _exact(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, offset: int) -> torch.Tensor:
    """Written out in fp64: query i sees the keys up to i + offset."""
    repeats = query.size(1) // key.size(1)
    key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) / query.size(3) ** 0.5
    positions = torch.arange(query.size(2))[:, None] + offset
    scores = scores.masked_fill(torch.arange(key.size(2)) > positions, -torch.inf)
    return scores.softmax(-1) @ value


def _inputs(num_queries: int, num_keys: int, heads: int, kv_heads: int) -> list[torch.Tensor]:
    torch.manual_seed(1)
    shapes = [(2, heads, num_queries, 16), (2, kv_heads, num_keys, 16), (2, kv_heads, num_keys, 24)]
    return [torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (32, 32), (33, 33), (16, 48)])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_values_and_gradients_are_those_of_fp64_up_to_bf16(num_queries: int, num_keys: int, kv_heads: int) -> None:
    inputs = _inputs(num_queries, num_keys, 4, kv_heads)
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    ours = cpu_attention.attend(*inputs, 0.0, None)
    exact = _exact(*exact_inputs, offset=num_keys - num_queries)
    weight = torch.randn_like(exact)
    gradients = torch.autograd.grad(ours, inputs, weight.bfloat16())
    exact_gradients = torch.autograd.grad(exact, exact_inputs, weight)
    for got, expected in zip([ours, *gradients], [exact, *exact_gradients], strict=True):
        assert (got.double() - expected).norm() <= TOLERANCE * expected.norm() + 1e-6


def test_the_comparison_sees_a_mask_that_is_off_by_one() -> None:
    inputs = _inputs(32, 32, 4, 4)
    ours = cpu_attention.attend(*inputs, 0.0, None).double()
    other = _exact(*[x.double() for x in inputs], offset=1)
    assert (ours - other).norm() > 5 * TOLERANCE * other.norm()


def test_dropout_keeps_the_expected_value() -> None:
    inputs = [x.detach() for x in _inputs(8, 8, 4, 4)]
    mean = torch.stack([cpu_attention.attend(*inputs, 0.5, None).float() for _ in range(400)]).mean(0)
    exact = _exact(*[x.double() for x in inputs], offset=0).float()
    assert (mean - exact).norm() < 0.1 * exact.norm()
    assert (cpu_attention.attend(*inputs, 0.5, None).float() - exact).norm() > 0.3 * exact.norm()


def test_it_is_taken_for_short_causal_bf16_on_the_cpu_only() -> None:
    short, long = torch.zeros(1, 1, 8, 8, dtype=torch.bfloat16), torch.zeros(1, 1, 1025, 8, dtype=torch.bfloat16)
    assert cpu_attention.suits(short, short, None, causal=True)
    assert not cpu_attention.suits(short, short, None, causal=False)
    assert not cpu_attention.suits(short, short, torch.zeros(1, dtype=torch.bool), causal=True)
    assert not cpu_attention.suits(short.float(), short.float(), None, causal=True)
    assert not cpu_attention.suits(long, long, None, causal=True)
