"""Context-parallel attention against plain attention over the whole sequence, written out in fp64."""

from __future__ import annotations

import math

import pytest
import torch
from parallel_launch import one_after_the_other, parallel_launch

SEQUENCE, BATCH, HEADS, DIM = 32, 2, 4, 8
# fp64 holds 16 digits and the sums have at most SEQUENCE * DIM terms of order one: what is left is rounding.
FP64 = {"atol": 1e-13, "rtol": 1e-12}
# fp32 holds 7 digits; the kernels sum the same terms in another order.
FP32 = {"atol": 2e-6, "rtol": 2e-5}
TOLERANCE = {torch.float64: FP64, torch.float32: FP32}


def plain_attention(query, key, value, hidden, scale=None):
    """[s, b, heads, dim], GQA's keys repeated, ``hidden`` True where masked: the textbook's formula, [s, b, h * d]."""
    key, value = (x.repeat_interleave(query.size(2) // x.size(2), dim=2) for x in (key, value))
    scores = torch.einsum("qbhd,kbhd->bhqk", query, key) * (scale or 1 / math.sqrt(query.size(-1)))
    probabilities = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
    return torch.einsum("bhqk,kbhd->qbhd", probabilities, value).flatten(2)


def future(sequence=SEQUENCE):
    """[1, 1, s, s], True above the diagonal."""
    return torch.ones(1, 1, sequence, sequence, dtype=torch.bool).triu(1)


def two_documents():
    """The mask of ``--reset-attention-mask``: causal, and the second document of each sample begins elsewhere."""
    hidden = future().repeat(BATCH, 1, 1, 1)
    for sample, start in enumerate((SEQUENCE // 2 - 3, SEQUENCE // 4)):
        hidden[sample, :, start:, :start] = True
    return hidden


def config(**changes):
    from megatron.core.transformer.transformer_config import TransformerConfig

    settings = {"num_layers": 1, "hidden_size": HEADS * DIM, "num_attention_heads": HEADS, "attention_dropout": 0.0}
    return TransformerConfig(**(settings | changes))


def attention(mask_type="causal", softmax_scale=None, **changes):
    from megatron.core.transformer.enums import AttnMaskType

    from megatron.training.attention import DotProductAttention

    return DotProductAttention(config(**changes), 1, AttnMaskType[mask_type], "self", softmax_scale=softmax_scale)


def set_up(tp=1, cp=1):
    from megatron.core import parallel_state, tensor_parallel

    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=tp, context_parallel_size=cp)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    return parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_context_parallel_rank()


def balanced_chunks(x):
    """This CP rank's part of ``x`` [s, b, ...], cut by megatron-core itself."""
    from megatron.core.utils import get_batch_on_this_cp_rank

    return get_batch_on_this_cp_rank({"x": x.transpose(0, 1).contiguous()})["x"].transpose(0, 1)


def consecutive_chunks(x):
    """What a rank would hold if the sequence were cut without balancing: not what the attention expects."""
    from megatron.core import parallel_state

    return x.chunk(parallel_state.get_context_parallel_world_size())[parallel_state.get_context_parallel_rank()]


def compare(tp, cp, kv_heads, dtype=torch.float64, mask_type="causal", hidden=None, scale=None, cut=balanced_chunks):
    """Largest excess over the tolerance, of the output and of each gradient; at most 0 where they agree."""
    from megatron.core.utils import get_batch_on_this_cp_rank

    tp_rank, _ = set_up(tp, cp)
    torch.manual_seed(7)
    shapes = [(SEQUENCE, BATCH, heads, DIM) for heads in (HEADS, kv_heads, kv_heads)]
    whole = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    output_gradient = torch.randn(SEQUENCE, BATCH, HEADS * DIM, dtype=torch.float64)
    expected = plain_attention(*whole, future() if hidden is None else hidden, scale)
    expected.backward(output_gradient)

    def mine(x):
        return cut(x.detach().chunk(tp, dim=2)[tp_rank]).to(dtype)

    part = [mine(x).requires_grad_() for x in whole]
    mask = None if hidden is None else get_batch_on_this_cp_rank({"attention_mask": hidden})["attention_mask"]
    module = attention(mask_type, scale, num_query_groups=kv_heads, context_parallel_size=cp)
    output = module(*part, mask)
    output.backward(mine(output_gradient))
    pairs = [(output.detach(), mine(expected))]
    pairs += [(x.grad, mine(y.grad)) for x, y in zip(part, whole, strict=True)]
    atol, rtol = TOLERANCE[dtype]["atol"], TOLERANCE[dtype]["rtol"]
    assert all(x.isfinite().all() for x, _ in pairs)
    return max(((x - y).abs() - atol - rtol * y.abs()).max().item() for x, y in pairs)


def excess(world_size, *cases):
    """The largest excess of each case over the ranks of one launch."""
    ranks = parallel_launch(world_size, one_after_the_other, [(compare, case) for case in cases])
    return [max(of_case) for of_case in zip(*ranks, strict=True)]


def test_one_rank_gives_plain_attention_for_every_mask_scale_and_number_of_kv_heads():
    other_mask = torch.rand(BATCH, 1, SEQUENCE, SEQUENCE, generator=torch.Generator().manual_seed(3)) < 0.5
    other_mask[..., 0] = False
    cases = [
        (1, 1, HEADS),
        (1, 1, 1),
        (1, 1, 2, torch.float32),
        (1, 1, 2, torch.float64, "causal", two_documents()),
        (1, 1, 2, torch.float64, "arbitrary", other_mask),
        (1, 1, HEADS, torch.float64, "causal", None, 0.3),
    ]
    assert max(excess(1, *cases)) <= 0


def test_two_context_parallel_ranks_give_plain_attention_and_its_gradients():
    other_mask = torch.rand(BATCH, 1, SEQUENCE, SEQUENCE, generator=torch.Generator().manual_seed(3)) < 0.5
    other_mask[..., 0] = False
    cases = [
        (1, 2, HEADS),
        (1, 2, 2),
        (1, 2, 1, torch.float32),
        (1, 2, 2, torch.float64, "causal", two_documents()),
        (1, 2, 2, torch.float64, "arbitrary", other_mask),
    ]
    assert max(excess(2, *cases)) <= 0


def test_four_ranks_give_plain_attention_as_cp4_and_as_tp2_x_cp2():
    cases = [(1, 4, HEADS), (1, 4, 2, torch.float64, "causal", two_documents()), (2, 2, HEADS), (2, 2, 2)]
    assert max(excess(4, *cases)) <= 0


def test_a_sequence_cut_in_the_wrong_order_is_noticed():
    wrong = (1, 2, HEADS, torch.float64, "causal", None, None, consecutive_chunks)
    assert min(excess(2, wrong)) > 1e-2


def bits_of_repeated_gradients():
    set_up(cp=2)
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        part = [torch.randn(8, 1, HEADS, DIM, dtype=torch.bfloat16).requires_grad_() for _ in range(3)]
        output = attention(context_parallel_size=2)(*part, None)
        output.sum().backward()
        results.append([output.detach(), *(x.grad for x in part)])
    return all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_repeating_a_bf16_step_gives_the_same_bits():
    assert all(parallel_launch(2, bits_of_repeated_gradients))


def dropout_draws():
    """Outputs of two TP ranks' attention in training, from equal inputs: their heads must drop different things."""
    set_up(tp=2)
    x = torch.ones(SEQUENCE, BATCH, HEADS // 2, DIM)
    value = torch.arange(SEQUENCE, dtype=torch.float32).view(-1, 1, 1, 1).expand_as(x)
    module = attention(attention_dropout=0.5)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    training = module(x, x, value, None)
    untouched = torch.equal(before, torch.get_rng_state())
    return training, module.eval()(x, x, value, None), untouched


def test_dropout_differs_between_tensor_parallel_ranks_and_stops_in_evaluation():
    (train_0, eval_0, untouched_0), (train_1, eval_1, untouched_1) = parallel_launch(2, dropout_draws)
    assert not torch.equal(train_0, train_1)
    assert torch.equal(eval_0, eval_1)
    assert untouched_0 and untouched_1  # the draws came from Megatron's tracked state


def against_stock(dtype):
    """Distance to fp64 of ours and of megatron-core's attention, in units of the result's largest element."""
    from megatron.core.transformer.dot_product_attention import DotProductAttention as Stock
    from megatron.core.transformer.enums import AttnMaskType

    set_up()
    torch.manual_seed(7)
    qkv = [torch.randn(SEQUENCE, BATCH, HEADS, DIM).to(dtype) for _ in range(3)]
    exact = plain_attention(*(x.double() for x in qkv), future())
    settings = {"bf16": dtype == torch.bfloat16, "masked_softmax_fusion": False}
    stock = Stock(config(**settings), 1, AttnMaskType.causal, "self")(*qkv, future())
    ours = attention(**settings)(*qkv, None)
    return [((x.double() - exact).abs().max() / exact.abs().max()).item() for x in (ours, stock)]


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 2**-23), (torch.bfloat16, 2**-8)])
def test_it_is_as_exact_as_megatron_cores_attention(dtype, rounding):
    [(ours, stock)] = parallel_launch(1, against_stock, dtype)
    assert ours <= stock + rounding


def refuse(mask_type="causal", forward=None, **changes):
    set_up()
    module = attention(mask_type, **changes)
    x = torch.ones(4, 1, HEADS, DIM)
    module(x, x, x, None, **(forward or {}))


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"window_size": (4, 0)}, "window_size=.* has no sliding window"),
        ({"softmax_type": "off-by-one"}, "softmax_type='off-by-one'"),
        ({"log_max_attention_logit": True}, "log_max_attention_logit"),
        ({"mask_type": "padding_causal"}, "attn_mask_type=padding_causal"),
        ({"forward": {"attention_bias": torch.zeros(1)}}, "no attention bias"),
    ],
)
def test_what_it_does_not_do_is_refused_with_a_sentence(asked, sentence):
    with pytest.raises(ValueError, match=sentence):
        parallel_launch(1, one_after_the_other, [(_refuse_with, (asked,))])


def _refuse_with(asked):
    refuse(**asked)


def refuse_ring():
    set_up(cp=2)
    from megatron.core.transformer.enums import AttnMaskType

    from megatron.training.attention import DotProductAttention

    DotProductAttention(config(context_parallel_size=2), 1, AttnMaskType.causal, "self", cp_comm_type="p2p")


def test_another_way_of_context_parallelism_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="cp_comm_type='p2p'.*use 'all_gather'"):
        parallel_launch(2, refuse_ring)
