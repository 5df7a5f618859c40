"""Every knob of the method, once: command-line flags, their help, TOML keys and presets are made from `CommConfig`.

Standard library only, so that a mistake in a flag is told before torch loads.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass, field
from typing import Any

from sdp4bit_patches.wire import MessageFormat, StochasticRounding

ROUNDINGS = ("stochastic", "nearest")
ZERO_BIT = ("local", "skip")
SLOW_CHANNELS = ("host", "device")
SLOW_DTYPES = ("fp32", "bf16")
NODE_CHANNELS = ("memory", "network")
POLICIES = ("always", "adaptive")
SECOND_MOMENTS = ("settled", "largest", "bounded", "state", "updated")


def _knob(default: Any, text: str, kind: type | None = None, choices: tuple[Any, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": text, "kind": kind or type(default), "choices": choices})


@dataclass(frozen=True)
class CommConfig:
    """What travels between data-parallel ranks, and in which form. A field is the flag of the same name.

    Raises:
        ValueError: a value, or a combination, that has no meaning; the sentence names the flag and the remedy.
    """

    quantized_weights: bool = _knob(False, "send parameters as quantized differences (qWD)")
    weight_quantization_bits: int = _knob(4, "bits of a weight difference; 32 sends the parameters themselves")
    wq_group_size: int = _knob(2048, "elements that share a scale in a weight message")
    quantize_weights_directly: bool = _knob(False, "quantize the weights themselves (qW, a weak baseline)")
    quantized_gradients: bool = _knob(False, "reduce gradients by quantized all-to-alls, two-level where nodes pair")
    gradient_quantization_bits_intra: int = _knob(8, "bits of a gradient between ranks of one node")
    gq_group_size_intra: int = _knob(128, "elements that share a scale inside a node")
    gradient_quantization_bits_inter: int = _knob(4, "bits of a gradient between nodes")
    gq_group_size_inter: int = _knob(128, "elements that share a scale between nodes")
    hadamard_transform: bool = _knob(False, "smooth gradients by a Hadamard transform of every 32 elements")
    gradient_alltoall_pipeline: int = _knob(1, "chunks of a bucket whose hops overlap")
    gradients_quantization_start_iteration: int = _knob(0, "first iteration (from 0) with quantized gradients")
    quantization_rounding: str = _knob("stochastic", "how codes are rounded", choices=ROUNDINGS)
    quantization_seed: int = _knob(1234, "seed of stochastic rounding")
    node_size: int | None = _knob(None, "ranks of a node, in a row; told from the host names by default", kind=int)
    node_of_rank: str | None = _knob(
        None, "node of every rank, as 0,1,0,1; for nodes whose ranks are not in a row", kind=str
    )
    node_channel: str = _knob(
        "memory",
        "how the ranks of one node exchange messages on gloo: through memory that they share, or its network stack",
        choices=NODE_CHANNELS,
    )
    quantize_all_parameters: bool = _knob(False, "quantize norms and biases too; they travel exactly by default")
    min_quantized_bucket: int = _knob(16384, "buckets with fewer elements travel exactly")
    fast_slow_grad_reduce: bool = _knob(
        False, "DUO: reduce every gradient again, exactly, behind the next step's compute"
    )
    duo_zero_bit: str = _knob(
        "local", "at 0 bits: step with one's own gradient, or by momentum alone", choices=ZERO_BIT
    )
    duo_slow_channel: str = _knob(
        "host", "where the exact sync runs: gloo from host memory, or the device", choices=SLOW_CHANNELS
    )
    duo_slow_dtype: str = _knob("fp32", "in which form the exact gradients travel", choices=SLOW_DTYPES)
    duo_policy: str = _knob(
        "always", "what to do where the exact sync is not hidden: warn, or do with less", choices=POLICIES
    )
    duo_fast_second_moment: str = _knob(
        "settled",
        "second moment of the fast step: as published (updated), the exact state's (state), the larger of the two "
        "(largest), the state's with half the root of the updated one at least (bounded), or first the larger, then "
        "the bounded (settled)",
        choices=SECOND_MOMENTS,
    )
    strict_compression: bool = _knob(False, "stop where something would travel uncompressed or in a single hop")
    log_compression_interval: int = _knob(0, "iterations between measurements of error and bytes; 0 for none")

    def __post_init__(self) -> None:
        for name, value in self._positive().items():
            _require(value >= 1, f"{_flag(name)} {value}: use an integer from 1 on")
        for name in ("gradients_quantization_start_iteration", "min_quantized_bucket", "log_compression_interval"):
            value = getattr(self, name)
            _require(value >= 0, f"{_flag(name)} {value}: use 0 or a positive integer")
        both = self.node_size is not None and self.node_of_rank is not None
        _require(not both, "--node-size and --node-of-rank both say which ranks form a node; drop one of the two")
        _ = self.nodes
        direct = self.quantize_weights_directly and not self.quantized_weights
        _require(not direct, "--quantize-weights-directly does nothing without --quantized-weights: add it")
        StochasticRounding(self.quantization_seed, 0)
        self._check_formats()
        self._check_duo()

    def _positive(self) -> dict[str, int]:
        known = {"gradient_alltoall_pipeline": self.gradient_alltoall_pipeline}
        return known | ({} if self.node_size is None else {"node_size": self.node_size})

    def _check_duo(self) -> None:
        for knob in dataclasses.fields(self):
            choices, value = knob.metadata["choices"], getattr(self, knob.name)
            _require(not choices or value in choices, f"{_flag(knob.name)} {value}: use one of {choices}")
        needs = self.fast_slow_grad_reduce and not self.quantized_gradients
        _require(not needs, "--fast-slow-grad-reduce corrects quantized gradients: add --quantized-gradients")
        start = self.gradients_quantization_start_iteration
        sentence = (
            f"--gradients-quantization-start-iteration {start} with --fast-slow-grad-reduce: gradients are exact in "
        )
        sentence += "the end anyway; drop one of the two"
        _require(not (self.fast_slow_grad_reduce and start), sentence)

    def _check_formats(self) -> None:
        zeros = (self.gradient_quantization_bits_intra == 0) + (self.gradient_quantization_bits_inter == 0)
        sentence = "--gradient-quantization-bits-intra and -inter are 0 together or not at all: 0 sends no gradients"
        _require(zeros != 1, sentence)
        for name, group, make in (
            ("weight_quantization_bits", "wq_group_size", lambda: self.weight_format),
            ("gradient_quantization_bits_intra", "gq_group_size_intra", lambda: self.intra_format),
            ("gradient_quantization_bits_inter", "gq_group_size_inter", lambda: self.inter_format),
        ):
            if getattr(self, name) == 0 and name != "weight_quantization_bits":
                continue
            try:
                make()
            except ValueError as error:
                flags = f"{_flag(name)} {getattr(self, name)} {_flag(group)} {getattr(self, group)}"
                raise ValueError(f"{flags}: {error}") from error

    @property
    def nodes(self) -> tuple[int, ...] | None:
        """The node of every rank, where `node_of_rank` says it."""
        words = [] if self.node_of_rank is None else self.node_of_rank.split(",")
        valid = all(word.strip().isdecimal() for word in words)
        _require(valid, f"--node-of-rank {self.node_of_rank}: use one number for every rank, as 0,1,0,1")
        return tuple(map(int, words)) or None

    @property
    def is_baseline(self) -> bool:
        """Whether nothing is compressed, so that nothing of megatron-core needs replacing."""
        return not (self.compresses_weights or self.quantized_gradients)

    @property
    def compresses_weights(self) -> bool:
        """Whether parameters travel in another form than megatron-core's; 32 bits are what it sends anyway."""
        return self.quantized_weights and self.weight_quantization_bits != 32

    @property
    def sends_no_gradients(self) -> bool:
        """Whether no gradient travels on the critical path."""
        return self.quantized_gradients and self.gradient_quantization_bits_inter == 0

    @property
    def weight_format(self) -> MessageFormat:
        """The message of a shard's weight difference (or of its weights)."""
        return MessageFormat(self.weight_quantization_bits, self.wq_group_size)

    @property
    def intra_format(self) -> MessageFormat:
        """The gradient message between ranks of one node."""
        return self._gradient_format(self.gradient_quantization_bits_intra, self.gq_group_size_intra)

    @property
    def inter_format(self) -> MessageFormat:
        """The gradient message between nodes."""
        return self._gradient_format(self.gradient_quantization_bits_inter, self.gq_group_size_inter)

    @property
    def _hadamard(self) -> int:
        # With 32 bits on both hops there is no error to smooth, and the transform would only cost exactness.
        exact = self.gradient_quantization_bits_intra == self.gradient_quantization_bits_inter == 32
        return 32 if self.hadamard_transform and not exact else 0

    def _gradient_format(self, bits: int, group_size: int) -> MessageFormat:
        return MessageFormat(bits, group_size, hadamard=self._hadamard)


def rounding_of(
    config: CommConfig, message_format: MessageFormat, step: int, bucket: int, hop: int, source: int
) -> StochasticRounding | None:
    """The rounding of one message of rank `source`: None rounds to nearest, as 32 bits and plain signs always do."""
    if config.quantization_rounding == "nearest" or message_format.bits in (1, 32):
        return None
    return StochasticRounding(config.quantization_seed, step, bucket, hop, source)


_WEIGHTS = {"quantized_weights": True, "weight_quantization_bits": 4, "wq_group_size": 2048}
_TWO_LEVEL = {
    "quantized_gradients": True,
    "gradient_quantization_bits_intra": 8,
    "gq_group_size_intra": 128,
    "gradient_quantization_bits_inter": 4,
    "gq_group_size_inter": 128,
}

_DUO = {"hadamard_transform": True, "fast_slow_grad_reduce": True}
_ZERO = {"quantized_gradients": True, "gradient_quantization_bits_intra": 0, "gradient_quantization_bits_inter": 0}

# `--compression NAME`, under the paper's names; configs/schemes/NAME.toml says the same.
PRESETS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "qw": _WEIGHTS | {"quantize_weights_directly": True},
    "qwd": _WEIGHTS,
    "ulq": _TWO_LEVEL | {"gradient_quantization_bits_intra": 4},
    "tlq": _TWO_LEVEL,
    "tlq_hs": _TWO_LEVEL | {"hadamard_transform": True},
    "sdp4bit": _WEIGHTS | _TWO_LEVEL | {"hadamard_transform": True},
    # With 4 bits the rule as published is closest to the baseline; with fewer it costs accuracy (docs/duo_accuracy.md).
    "duo4bit": _WEIGHTS | _TWO_LEVEL | _DUO | {"duo_fast_second_moment": "updated"},
    "duo1bit": _WEIGHTS | _TWO_LEVEL | _DUO | {"gradient_quantization_bits_inter": 1, "gq_group_size_inter": 64},
    "duo0bit": _WEIGHTS | _ZERO | {"fast_slow_grad_reduce": True},
}

KNOBS = dataclasses.fields(CommConfig)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every knob, and `--compression`, to a parser; on/off knobs exist in both senses."""
    group = parser.add_argument_group("compression between data-parallel ranks")
    group.add_argument("--compression", choices=tuple(PRESETS), help="a preset; other flags overrule it")
    for knob in KNOBS:
        kind, text = knob.metadata["kind"], knob.metadata["help"]
        if kind is bool:
            action = argparse.BooleanOptionalAction
            group.add_argument(_flag(knob.name), action=action, default=knob.default, help=text)
        else:
            choices = knob.metadata["choices"]
            group.add_argument(_flag(knob.name), type=kind, default=knob.default, choices=choices, help=text)


def preset_words(name: str) -> list[str]:
    """The command-line words that `--compression NAME` stands for, to be put in front of a command line."""
    words: list[str] = []
    for knob, value in PRESETS[name].items():
        words += [_flag(knob)] if value is True else [_flag(knob), str(value)]
    return words


def from_arguments(args: argparse.Namespace) -> CommConfig:
    """The configuration of parsed arguments."""
    return CommConfig(**{knob.name: getattr(args, knob.name) for knob in KNOBS})


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _require(valid: bool, sentence: str) -> None:
    if not valid:
        raise ValueError(sentence)
