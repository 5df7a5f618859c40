"""The local spec's norms: values, zero-centred weights, and gradients under sequence parallelism."""

from __future__ import annotations

import pytest
import torch
from parallel_launch import parallel_launch

HIDDEN, SEQUENCE, BATCH = 16, 8, 2


def config(**changes):
    from megatron.core.transformer.transformer_config import TransformerConfig

    return TransformerConfig(**({"num_layers": 1, "hidden_size": HIDDEN, "num_attention_heads": 2} | changes))


def norm_class(normalization):
    from megatron.training import norm

    return getattr(norm, normalization)


def values(normalization, zero_centered):
    """Output and gradients of ours and of torch's norm that has the same effective weight."""
    torch.manual_seed(1)
    settings = config(normalization=normalization, layernorm_zero_centered_gamma=zero_centered)
    ours = norm_class(normalization)(settings, HIDDEN, eps=1e-3)
    theirs = getattr(torch.nn, normalization)(HIDDEN, eps=1e-3)
    x = torch.randn(SEQUENCE, BATCH, HIDDEN)
    fresh = torch.equal(ours(x), theirs(x))
    shift = torch.randn(HIDDEN)
    with torch.no_grad():
        ours.weight += shift
        theirs.weight += shift
    results = []
    for module in (ours, theirs):
        y = module(x.requires_grad_())
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])])
    same_keys = list(ours.state_dict()) == list(theirs.state_dict())
    return fresh, same_keys, results


@pytest.mark.parametrize("normalization", ["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize("zero_centered", [False, True])
def test_values_gradients_and_names_are_those_of_torchs_norm(normalization, zero_centered):
    [(fresh, same_keys, (ours, theirs))] = parallel_launch(1, values, normalization, zero_centered)
    assert fresh and same_keys
    # w = 0 + 1 + shift and w = 1 + shift round differently: a few units in the last place of fp32.
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def gradients_after_the_all_reduce(normalization, sequence_parallel):
    """Gradients of a norm whose rank saw half of the sequence, finalized by megatron-core, and those of the whole."""
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads

    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=2)
    settings = config(normalization=normalization, sequence_parallel=sequence_parallel, tensor_model_parallel_size=2)
    torch.manual_seed(1)
    x, output_gradient = torch.randn(SEQUENCE, BATCH, HIDDEN), torch.randn(SEQUENCE, BATCH, HIDDEN)
    whole = norm_class(normalization)(settings, HIDDEN)
    whole(x).backward(output_gradient)

    module = torch.nn.Module()
    module.final_layernorm = norm_class(normalization)(settings, HIDDEN)
    module.share_embeddings_and_output_weights, module.config = False, settings
    chunk = DistributedDataParallel(settings, DistributedDataParallelConfig(grad_reduce_in_fp32=True), module)
    rank = parallel_state.get_tensor_model_parallel_rank()
    module.final_layernorm(x.chunk(2)[rank]).backward(output_gradient.chunk(2)[rank])
    finalize_model_grads([chunk])
    return [(p.main_grad.clone(), q.grad) for p, q in zip(module.parameters(), whole.parameters(), strict=True)]


@pytest.mark.parametrize("normalization", ["LayerNorm", "RMSNorm"])
def test_with_sequence_parallelism_gradients_are_summed_over_the_sequence(normalization):
    for rank in parallel_launch(2, gradients_after_the_all_reduce, normalization, True):
        for ours, expected in rank:
            # SEQUENCE * BATCH fp32 terms of order one, added in another order
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_without_the_flag_the_gradients_would_be_partial():
    for rank in parallel_launch(2, gradients_after_the_all_reduce, "LayerNorm", False):
        assert all((ours - expected).abs().max() > 0.1 for ours, expected in rank)


def build(changes):
    norm_class("LayerNorm")(config(**changes), HIDDEN)


@pytest.mark.parametrize("asked", ["persist_layer_norm", "memory_efficient_layer_norm"])
def test_kernels_of_apex_are_refused_with_a_sentence(asked):
    with pytest.raises(ValueError, match=f"{asked}=True: a kernel of Apex"):
        parallel_launch(1, build, {asked: True})


def test_fp32_residuals_of_a_bf16_model_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match="fp32_residual_connection=True.*drop it or use Transformer Engine"):
        parallel_launch(1, build, {"fp32_residual_connection": True, "params_dtype": torch.bfloat16})
