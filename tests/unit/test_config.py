"""The method's knobs: published defaults, presets, and a sentence for every value that has no meaning."""

from __future__ import annotations

from dataclasses import replace

import pytest
from training_run import TINY

from megatron.training.arguments import parse_args
from sdp4bit_patches.config import KNOBS, PRESETS, CommConfig, from_arguments, preset_words, rounding_of
from sdp4bit_patches.wire import MessageFormat

# arXiv 2410.15526 and its flags' documented usage: published facts, so a change of one is a change of the method.
PUBLISHED = {
    "weight_quantization_bits": 4,
    "wq_group_size": 2048,
    "gradient_quantization_bits_intra": 8,
    "gq_group_size_intra": 128,
    "gradient_quantization_bits_inter": 4,
    "gq_group_size_inter": 128,
    "gradient_alltoall_pipeline": 1,
    "gradients_quantization_start_iteration": 0,
}


def test_the_defaults_are_the_published_ones_and_switch_nothing_on() -> None:
    config = CommConfig()
    assert {name: getattr(config, name) for name in PUBLISHED} == PUBLISHED
    assert config.is_baseline and not any(getattr(config, knob.name) is True for knob in KNOBS)


def test_the_preset_sdp4bit_is_the_published_flags() -> None:
    flags = "--quantized-weights --quantized-gradients --hadamard-transform"
    for name in list(PUBLISHED)[:6]:
        flags += f" --{name.replace('_', '-')} {PUBLISHED[name]}"
    assert _read(flags) == _read("--compression sdp4bit") == CommConfig(**PRESETS["sdp4bit"])


def _read(flags: str) -> CommConfig:
    return from_arguments(parse_args([*TINY, *flags.split()]))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_words_it_stands_for(name: str) -> None:
    assert _read(f"--compression {name}") == _read(" ".join(preset_words(name))) == CommConfig(**PRESETS[name])


def test_no_two_presets_are_the_same() -> None:
    configs = [CommConfig(**knobs) for knobs in PRESETS.values()]
    assert len(set(configs)) == len(configs)
    assert [name for name, config in zip(PRESETS, configs, strict=True) if config.is_baseline] == ["baseline"]


@pytest.mark.parametrize("order", ["--compression sdp4bit {}", "{} --compression sdp4bit"])
def test_other_flags_overrule_a_preset_wherever_they_stand(order: str) -> None:
    config = _read(order.format("--gq-group-size-inter 256 --no-hadamard-transform"))
    assert config == replace(CommConfig(**PRESETS["sdp4bit"]), gq_group_size_inter=256, hadamard_transform=False)


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"weight_quantization_bits": 3}, "--weight-quantization-bits 3 --wq-group-size 2048: bits=3: use one of"),
        ({"wq_group_size": 100}, "--wq-group-size 100: group_size=100: use a multiple of 32"),
        ({"gq_group_size_intra": 0}, "--gq-group-size-intra 0: group_size=0: use a multiple of 32"),
        ({"gradient_quantization_bits_inter": 16}, "--gradient-quantization-bits-inter 16"),
        ({"gradient_alltoall_pipeline": 0}, "--gradient-alltoall-pipeline 0: use an integer from 1 on"),
        ({"node_size": 0}, "--node-size 0: use an integer from 1 on"),
        ({"min_quantized_bucket": -1}, "--min-quantized-bucket -1: use 0 or a positive integer"),
        ({"gradients_quantization_start_iteration": -2}, "--gradients-quantization-start-iteration -2: use 0 or"),
        ({"log_compression_interval": -1}, "--log-compression-interval -1: use 0 or a positive integer"),
        ({"quantization_rounding": "up"}, "--quantization-rounding up: use one of"),
        ({"quantize_weights_directly": True}, "does nothing without --quantized-weights: add it"),
        ({"quantization_seed": -1}, "seed=-1: use an integer from 0"),
    ],
)
def test_a_value_without_meaning_is_refused_with_the_flag_the_value_and_the_remedy(knobs: dict, sentence: str) -> None:
    with pytest.raises(ValueError) as raised:
        CommConfig(**knobs)
    assert sentence in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 32])
def test_every_width_is_accepted_for_every_message(bits: int) -> None:
    config = CommConfig(
        weight_quantization_bits=bits, gradient_quantization_bits_intra=bits, gradient_quantization_bits_inter=bits
    )
    assert {form.bits for form in (config.weight_format, config.intra_format, config.inter_format)} == {bits}


def test_weights_of_32_bits_alone_are_the_baseline() -> None:
    """They are what megatron-core gathers anyway; gradients of 32 bits still take the two-level schedule."""
    assert CommConfig(quantized_weights=True, weight_quantization_bits=32).is_baseline
    identity = {"gradient_quantization_bits_intra": 32, "gradient_quantization_bits_inter": 32}
    assert not CommConfig(quantized_gradients=True, **identity).is_baseline


def test_both_hops_are_transformed_or_none() -> None:
    """The sum between them stays transformed; with 32 bits on both there is nothing to smooth."""
    for intra, inter, size in ((8, 4, 32), (32, 4, 32), (8, 32, 32), (32, 32, 0)):
        bits = {"gradient_quantization_bits_intra": intra, "gradient_quantization_bits_inter": inter}
        config = CommConfig(hadamard_transform=True, **bits)
        assert (config.intra_format.hadamard, config.inter_format.hadamard) == (size, size)
        assert config.weight_format.hadamard == 0


def test_random_numbers_are_named_by_everything_that_tells_messages_apart() -> None:
    four, names = MessageFormat(4, 128), (5, 3, 1, 2)
    first = rounding_of(CommConfig(), four, *names)
    for place in range(4):
        other = tuple(value + (index == place) for index, value in enumerate(names))
        assert rounding_of(CommConfig(), four, *other) != first
    assert rounding_of(CommConfig(quantization_seed=1), four, *names) != first
    assert rounding_of(CommConfig(), four, *names) == first


def test_nearest_rounding_signs_and_the_identity_have_no_random_numbers() -> None:
    assert rounding_of(CommConfig(quantization_rounding="nearest"), MessageFormat(4, 128), 1, 0, 0, 0) is None
    for bits in (1, 32):
        assert rounding_of(CommConfig(), MessageFormat(bits, 128), 1, 0, 0, 0) is None
