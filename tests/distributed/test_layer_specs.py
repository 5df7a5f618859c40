"""Whole models of the local spec: split over ranks they give the loss and gradients of the model on one rank."""

from __future__ import annotations

import importlib.util
import re

import pytest
import torch
import torch.nn.functional as F
from parallel_launch import one_after_the_other, parallel_launch

SEQUENCE, BATCH, VOCABULARY, HIDDEN = 32, 2, 64, 32
# fp32's unit is 6e-8; a gradient passes through some hundred sums whose order depends on the split (seen: below 1e-6).
TOLERANCE = 1e-5

GPT = {"position_embedding_type": "learned_absolute", "share_embeddings_and_output_weights": True}
LLAMA = {"position_embedding_type": "rope", "rope_scaling": True, "share_embeddings_and_output_weights": False}
LLAMA_CONFIG = {
    "num_query_groups": 2,
    "normalization": "RMSNorm",
    "gated_linear_unit": True,
    "activation_func": F.silu,
    "add_bias_linear": False,
}
MOE_CONFIG = {"num_moe_experts": 4, "moe_router_topk": 2, "moe_router_load_balancing_type": "none"}
FAMILIES = {
    "gpt": ({}, GPT),
    "llama": (LLAMA_CONFIG, LLAMA),
    "llama_with_qk_layernorm": (LLAMA_CONFIG | {"qk_layernorm": True}, LLAMA),
    "moe": (LLAMA_CONFIG | MOE_CONFIG | {"moe_token_dispatcher_type": "alltoall"}, LLAMA),
}
SELECTIVE = {"recompute_granularity": "selective"}
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


def model_config(family, **layout):
    from megatron.core.transformer.transformer_config import TransformerConfig

    common = {"num_layers": 2, "hidden_size": HIDDEN, "num_attention_heads": 4, "ffn_hidden_size": 64}
    common |= {"attention_dropout": 0.0, "hidden_dropout": 0.0}
    return TransformerConfig(**(common | FAMILIES[family][0] | layout))


def build(family, spec=None, **layout):
    """A GPTModel in process groups of this ``layout`` (TransformerConfig's names)."""
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.models.gpt import GPTModel

    from megatron.training.layer_specs import get_layer_spec

    parallel_state.destroy_model_parallel()
    sizes = {name: size for name, size in layout.items() if name.endswith("_parallel_size")}
    parallel_state.initialize_model_parallel(**sizes)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    config = model_config(family, **layout)
    spec = spec(config) if spec else get_layer_spec(config, use_te=False)
    return GPTModel(config, spec, VOCABULARY, SEQUENCE, **FAMILIES[family][1])


def batch():
    """Tokens, labels and positions [b, s]."""
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(VOCABULARY, (BATCH, SEQUENCE + 1), generator=generator)
    positions = torch.arange(SEQUENCE).repeat(BATCH, 1)
    return {"tokens": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous(), "position_ids": positions}


def loss_of(model, part):
    """Per-token loss [b, s] of the part of the batch that this rank holds."""
    return model(part["tokens"], part["position_ids"], None, labels=part["labels"])


def slice_of(parameter, name, whole, gated):
    """What this tensor-parallel rank holds of ``whole``."""
    from megatron.core import parallel_state

    rank, size = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size()
    if parameter.shape == whole.shape:
        return whole
    if gated and "linear_fc1" in name:  # gate and up, one below the other, are split each by itself
        return whole.unflatten(0, (2, -1)).chunk(size, dim=1)[rank].flatten(0, 1)
    return whole.chunk(size, dim=parameter.partition_dim)[rank]


def name_on_one_rank(name, model):
    """With expert parallelism every rank counts its own experts from zero."""
    from megatron.core import parallel_state

    local_experts = (model.config.num_moe_experts or 0) // model.config.expert_model_parallel_size
    first = local_experts * parallel_state.get_expert_model_parallel_rank()
    return re.sub(r"local_experts\.(\d+)", lambda match: f"local_experts.{first + int(match[1])}", name)


def whole_model(family):
    """Losses, weights and gradients on one rank."""
    torch.manual_seed(11)
    model = build(family)
    for parameter in model.parameters():  # away from ones and zeros, so that no wrong gradient can hide behind them
        parameter.data += 0.05 * torch.randn(parameter.shape)
    loss = loss_of(model, batch())
    loss.mean().backward()
    weights = {name: parameter.data for name, parameter in model.named_parameters()}
    return loss.detach(), weights, {name: parameter.grad for name, parameter in model.named_parameters()}


def consecutive_chunks(part):
    """A cut of the sequence that isn't the balanced one."""
    from megatron.core import parallel_state

    size, rank = parallel_state.get_context_parallel_world_size(), parallel_state.get_context_parallel_rank()
    return {name: x.chunk(size, dim=1)[rank].contiguous() for name, x in part.items()}


def compare(family, layout, cut=None):
    """Relative error of the losses and of the worst gradient, for a model that is split as ``layout`` says."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.utils import get_batch_on_this_cp_rank

    cut = cut or get_batch_on_this_cp_rank
    whole_loss, weights, gradients = whole_model(family)
    model = build(family, **layout)
    gated = model.config.gated_linear_unit
    for name, parameter in model.named_parameters():
        parameter.data.copy_(slice_of(parameter, name, weights[name_on_one_rank(name, model)], gated))
    chunk = DistributedDataParallel(model.config, DistributedDataParallelConfig(grad_reduce_in_fp32=True), model)
    loss = loss_of(chunk, cut(batch()))
    loss.mean().backward()
    finalize_model_grads([chunk])
    errors = {"loss": relative_error(loss.detach(), cut({"loss": whole_loss})["loss"])}
    for name, parameter in model.named_parameters():
        whole = gradients[name_on_one_rank(name, model)]
        errors[name] = relative_error(parameter.main_grad, slice_of(parameter, name, whole, gated))
    return errors


def relative_error(x, y):
    return ((x - y).norm() / y.norm()).item()


TP2_SP = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
CP2 = {"context_parallel_size": 2}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "layout",
    [TP2_SP, CP2, CP2 | SELECTIVE, CP2 | FULL, TP2_SP | CP2],
    ids=["tp2_sp", "cp2", "cp2_selective_recompute", "cp2_full_recompute", "tp2_sp_cp2"],
)
def test_a_split_model_gives_the_loss_and_gradients_of_the_whole(family, layout):
    world_size = layout.get("tensor_model_parallel_size", 1) * layout.get("context_parallel_size", 1)
    for errors in parallel_launch(world_size, compare, family, layout):
        too_large = {name: error for name, error in errors.items() if not error < TOLERANCE}
        assert not too_large


def gradients_with_dropout(recompute):
    """Gradients of a model whose attention drops out, from the same seeds."""
    model = build("gpt", attention_dropout=0.5, tensor_model_parallel_size=2, **recompute)
    loss = loss_of(model, batch()).mean()
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("recompute", [SELECTIVE, FULL], ids=["selective", "full"])
def test_recomputation_drops_the_same_attention_again(recompute):
    cases = [(gradients_with_dropout, ({},)), (gradients_with_dropout, (recompute,))]
    for kept, recomputed in parallel_launch(2, one_after_the_other, cases):
        assert all(torch.equal(x, y) for x, y in zip(kept, recomputed, strict=True))


def test_experts_on_two_ranks_give_the_loss_and_gradients_of_one():
    for errors in parallel_launch(2, compare, "moe", {"expert_model_parallel_size": 2}):
        assert max(errors.values()) < TOLERANCE


def test_a_batch_cut_in_the_wrong_order_is_noticed():
    for errors in parallel_launch(2, compare, "llama", CP2, consecutive_chunks):
        assert errors["loss"] > 100 * TOLERANCE


def sharded_keys(family, stock):
    """Key, shape and place of every tensor in the distributed checkpoint of a TP2 model."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec

    def stock_spec(config):
        return get_gpt_decoder_block_spec(config, False, normalization=config.normalization)

    layout = {"tensor_model_parallel_size": 2, "sequence_parallel": not stock}
    shards = build(family, stock_spec if stock else None, **layout).sharded_state_dict()
    found = {}
    for name, shard in shards.items():
        place = [getattr(shard, field, None) for field in ("key", "global_shape", "local_shape", "global_offset")]
        found[name] = [*place, type(shard).__name__]
    return found


@pytest.mark.parametrize("family", ["gpt", "llama", "llama_with_qk_layernorm"])
def test_checkpoints_have_the_keys_and_shapes_of_megatron_cores_own_modules(family):
    ours, stock = parallel_launch(2, sharded_keys, family, False), parallel_launch(2, sharded_keys, family, True)
    assert ours == stock
    assert any("layer_norm_weight" in str(shard[0]) for shard in ours[0].values())


def module_classes(family):
    return {f"{type(module).__module__}.{type(module).__name__}" for module in build(family).modules()}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_attention_norm_and_router_of_the_local_spec_is_ours(family):
    [classes] = parallel_launch(1, module_classes, family)
    norm = "RMSNorm" if "normalization" in FAMILIES[family][0] else "LayerNorm"
    relevant = {name for name in classes if name.endswith(("Norm", "DotProductAttention", "Router"))}
    ours = {f"megatron.training.norm.{norm}", "megatron.training.attention.DotProductAttention"}
    assert relevant == (ours | {"megatron.training.router.Router"} if family == "moe" else ours)
    assert ("megatron.core.transformer.moe.experts.SequentialMLP" in classes) == (family == "moe")


def router_logits(router_dtype):
    """Logits of a bf16 router, and the same product in fp64."""
    router = (
        build("moe", moe_router_dtype=router_dtype, bf16=True, params_dtype=torch.bfloat16).decoder.layers[0].mlp.router
    )
    x = torch.randn(SEQUENCE, BATCH, HIDDEN).bfloat16()
    return router.gating(x).detach(), (x.double() @ router.weight.double().t()).detach()


@pytest.mark.parametrize(
    ("router_dtype", "dtype"), [(None, torch.bfloat16), ("fp32", torch.float32), ("fp64", torch.float64)]
)
def test_the_router_computes_in_the_dtype_that_was_asked_for(router_dtype, dtype):
    [(logits, exact)] = parallel_launch(1, router_logits, router_dtype)
    assert logits.dtype == dtype
    # the largest logit's rounding, and for fp32 and fp64 that of HIDDEN additions
    assert (logits - exact).abs().max() <= HIDDEN * torch.finfo(dtype).eps * exact.abs().max()
    assert router_dtype is None or (logits - exact.bfloat16()).abs().max() > 0


def spec_of(use_te, changes):
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron.training.layer_specs import get_layer_spec

    get_layer_spec(TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1, **changes), use_te)


@pytest.mark.parametrize(
    ("use_te", "changes", "sentence"),
    [
        (False, {"normalization": "L2Norm"}, "normalization='L2Norm': the local spec has LayerNorm and RMSNorm"),
        (False, {"multi_latent_attention": True}, "multi_latent_attention=True needs Transformer Engine"),
    ],
)
def test_what_the_local_spec_lacks_is_refused_with_a_sentence(use_te, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        parallel_launch(1, spec_of, use_te, changes)


@pytest.mark.skipif(importlib.util.find_spec("transformer_engine"), reason="Transformer Engine is installed")
def test_transformer_engine_is_asked_for_where_it_is_missing():
    with pytest.raises(ValueError, match="Transformer Engine isn't installed: pip install"):
        parallel_launch(1, spec_of, True, {})
