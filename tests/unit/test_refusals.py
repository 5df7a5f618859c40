"""What compression cannot be combined with: one sentence with the flag and the remedy, before anything is trained."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from training_run import TINY

from megatron.training.arguments import parse_args
from megatron.training.errors import UserError
from megatron.training.validation import validate_args
from sdp4bit_patches import refusals
from sdp4bit_patches.config import PRESETS, CommConfig

SDP4BIT = CommConfig(**PRESETS["sdp4bit"])


def _ddp(**changes: Any) -> SimpleNamespace:
    """megatron-core's data-parallel configuration, as far as it matters."""
    names = "use_megatron_fsdp fp8_param_gather reuse_grad_buf_for_mxfp8_param_ag nccl_ub"
    names += " reduce_scatter_with_fp32_accumulation"
    off = dict.fromkeys(names.split(), False)
    return SimpleNamespace(
        **off | {"num_distributed_optimizer_instances": 1, "use_distributed_optimizer": True} | changes
    )


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"use_megatron_fsdp": True}, "--use-megatron-fsdp"),
        ({"fp8_param_gather": True}, "--fp8-param-gather"),
        ({"reuse_grad_buf_for_mxfp8_param_ag": True}, "--reuse-grad-buf-for-mxfp8-param-ag"),
        ({"nccl_ub": True}, "--use-nccl-ub"),
        ({"reduce_scatter_with_fp32_accumulation": True}, "--reduce-scatter-with-fp32-accumulation"),
        ({"num_distributed_optimizer_instances": 2}, "--num-distributed-optimizer-instances 2"),
        ({"use_distributed_optimizer": False}, "add --use-distributed-optimizer"),
    ],
)
def test_a_feature_of_the_wrapper_that_rules_compression_out_is_named(changes: dict, flag: str) -> None:
    refusals.check_ddp_config(SDP4BIT, _ddp())
    with pytest.raises(ValueError) as raised:
        refusals.check_ddp_config(SDP4BIT, _ddp(**changes))
    assert flag in str(raised.value) and "\n" not in str(raised.value)


def test_every_name_that_is_looked_for_is_one_of_megatron_cores() -> None:
    """A renamed field would never be found, and so never be refused."""
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig

    assert refusals._DDP.keys() <= DistributedDataParallelConfig.__dataclass_fields__.keys()
    assert refusals._OPTIMIZER.keys() <= OptimizerConfig.__dataclass_fields__.keys()


@pytest.mark.parametrize("name", refusals._OPTIMIZER)
def test_a_feature_of_the_optimizer_that_rules_compressed_parameters_out_is_named(name: str) -> None:
    refusals.check_optimizer_config(SimpleNamespace())
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')}: .*; drop it, or do not quantize weights"):
        refusals.check_optimizer_config(SimpleNamespace(**{name: True}))


def test_a_fallback_is_told_once_and_is_an_error_when_strict() -> None:
    with pytest.warns(RuntimeWarning, match="a reason"):
        refusals.check_fallback(SDP4BIT, "a reason")
    strict = CommConfig(**PRESETS["sdp4bit"], strict_compression=True)
    with pytest.raises(ValueError, match="a reason; drop --strict-compression to accept it"):
        refusals.check_fallback(strict, "a reason")


def _validate(flags: str, world_size: int = 2) -> None:
    validate_args(parse_args([*TINY, "--train-iters", "1", *flags.split()]), world_size)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--no-use-distributed-optimizer --bf16 --compression sdp4bit", "add --use-distributed-optimizer"),
        ("--compression qwd", "fp32 main parameters differ from 16-bit ones by; add --bf16"),
        (
            "--bf16 --compression sdp4bit --quantize-all-parameters --tensor-model-parallel-size 2",
            "--quantize-all-parameters with --tensor-model-parallel-size 2: .*; drop one of the two",
        ),
        ("--quantized-gradients --gq-group-size-inter 100", "--gq-group-size-inter 100: group_size=100"),
        ("--quantize-weights-directly", "does nothing without --quantized-weights"),
    ],
)
def test_the_trainer_refuses_flags_that_contradict_each_other(flags: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as raised:
        _validate(flags)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "flags",
    [
        "--bf16 --compression sdp4bit",
        "--compression tlq_hs",
        "--bf16 --compression sdp4bit --tensor-model-parallel-size 2",
        "--bf16 --compression sdp4bit --quantize-all-parameters",
        "--no-use-distributed-optimizer --compression baseline",
    ],
)
def test_what_fits_together_is_let_through(flags: str) -> None:
    """Negative control of the refusals above."""
    _validate(flags)


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        ("--quantized-gradients --fast-slow-grad-reduce", "add --bf16"),
        ("--compression duo4bit --bf16 --optimizer sgd", "say --optimizer adam"),
        ("--compression duo4bit --bf16 --calculate-per-token-loss", "drop one"),
        ("--compression duo4bit --bf16 --gradients-quantization-start-iteration 5", "drop one of the two"),
        ("--bf16 --fast-slow-grad-reduce", "add --quantized-gradients"),
        ("--bf16 --quantized-gradients --gradient-quantization-bits-inter 0", "0 together or not at all"),
    ],
)
def test_what_the_second_sync_cannot_follow_is_refused(flags: str, remedy: str) -> None:
    with pytest.raises(UserError, match=remedy):
        validate_args(parse_args([*TINY, "--train-iters", "2", *flags.split()]), world_size=4)
