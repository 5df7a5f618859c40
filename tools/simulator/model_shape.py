"""A model as the simulator sees it: the sizes in configs/models/NAME.toml, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from tools.cluster_files import check_keys
from tools.toml_files import read_toml

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "models"

NEEDED = {"num-layers", "hidden-size", "num-attention-heads", "vocab-size"}
# Keys of a model file that change neither times nor memory by what the simulator resolves.
WITHOUT_EFFECT = {
    "seq-length", "rotary-base", "use-rope-scaling", "rope-scaling-factor", "norm-epsilon", "attention-dropout",
}  # fmt: skip
KNOWN = NEEDED | WITHOUT_EFFECT | {
    "ffn-hidden-size", "group-query-attention", "num-query-groups", "kv-channels", "max-position-embeddings",
    "position-embedding-type", "normalization", "swiglu", "disable-bias-linear", "hidden-dropout",
    "untie-embeddings-and-output-weights", "make-vocab-size-divisible-by",
}  # fmt: skip


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a GPT or Llama; `positions` is 0 without learned positions."""

    name: str
    num_layers: int
    hidden: int
    ffn_hidden: int
    heads: int
    query_groups: int
    channels: int
    vocab: int
    positions: int = 0
    swiglu: bool = False
    biases: bool = True
    rms_norm: bool = False
    tied_embeddings: bool = True
    dropout: bool = True
    vocab_multiple: int = 128

    def padded_vocab(self, tp: int) -> int:
        """Rows of the embedding table: a multiple of `vocab_multiple` x TP, as Megatron pads it."""
        multiple = self.vocab_multiple * tp
        return -(-self.vocab // multiple) * multiple

    @cached_property
    def matrices(self) -> tuple[tuple[int, int, bool], ...]:
        """(outputs, inputs, whether tensor parallelism splits the outputs) of a layer's four linear maps."""
        attention, keys = self.heads * self.channels, self.query_groups * self.channels
        gated = 2 if self.swiglu else 1
        return (
            (attention + 2 * keys, self.hidden, True),
            (self.hidden, attention, False),
            (gated * self.ffn_hidden, self.hidden, True),
            (self.hidden, self.ffn_hidden, False),
        )

    @cached_property
    def layer_matrix_parameters(self) -> int:
        """Parameters of a layer that tensor parallelism splits, without biases."""
        return sum(outputs * inputs for outputs, inputs, _ in self.matrices)

    @cached_property
    def layer_vector_parameters(self) -> int:
        """Norms and biases of a layer: they travel exactly between data-parallel ranks."""
        norms = 2 * self.hidden * (1 if self.rms_norm else 2)
        return norms + (sum(outputs for outputs, _, _ in self.matrices) if self.biases else 0)

    def stage_parameters(self, tp: int, pp: int, stage: int) -> int:
        """Parameters of one tensor-parallel rank of a pipeline stage (the vectors counted as if whole)."""
        layer = self.layer_matrix_parameters // tp + self.layer_vector_parameters
        total = self.num_layers // pp * layer
        table = self.padded_vocab(tp) // tp * self.hidden
        if stage == 0:
            total += table + self.positions * self.hidden
        if stage == pp - 1:
            total += self.hidden * (1 if self.rms_norm else 2)
            total += 0 if self.tied_embeddings and pp == 1 else table
        return total

    def num_parameters(self) -> int:
        """Parameters of the whole model, its vocabulary padded for one rank."""
        return self.stage_parameters(1, 1, 0)

    def flops_per_sample(self, seq: int, tp: int = 1) -> float:
        """Model FLOPs of forward and backward for one sequence, attention counted in full, recompute not at all.

        The formula of Narayanan et al. 2021 (arXiv 2104.04473, section 5.1), with key/value heads and gated MLPs;
        docs/simulator.md has it in the form that the published tables use.
        """
        layer = 2 * self.layer_matrix_parameters + 4 * seq * self.heads * self.channels
        return 3.0 * seq * (self.num_layers * layer + 2 * self.hidden * self.padded_vocab(tp))


def _squeezed(name: str) -> str:
    return name.lower().replace(".", "p").replace("-", "").replace("_", "")


@lru_cache(maxsize=64)
def read_model(name: str) -> ModelShape:
    """The model of configs/models/NAME.toml, or of a file; `gpt-1.3b` finds gpt_1p3b.

    Raises:
        ValueError: there is no such model, or the simulator does not know one of its keys.
    """
    path = Path(name)
    if path.suffix != ".toml":
        named = {_squeezed(file.stem): file for file in FOLDER.glob("*.toml")}
        path = named.get(_squeezed(name), path)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.toml")))
        raise ValueError(f"there is no model '{name}'; there are: {known}, or give a .toml file")
    keys = read_toml(path)
    return shape_of(path.stem, keys, str(path))


def shape_of(name: str, keys: dict[str, Any], source: str) -> ModelShape:
    """The shape that flags of pretrain_gpt.py describe; `source` is named in errors."""
    if "num-experts" in keys:
        raise ValueError(f"{source}: num-experts: the simulator has no experts yet; give a dense model")
    check_keys(source, keys, KNOWN, NEEDED)
    for key in NEEDED:
        if not (isinstance(keys[key], int) and keys[key] > 0):
            raise ValueError(f"{source}: {key} = {keys[key]!r}: give a positive integer")
    hidden, heads = keys["hidden-size"], keys["num-attention-heads"]
    learned = keys.get("position-embedding-type", "learned_absolute") == "learned_absolute"
    return ModelShape(
        name=name,
        num_layers=keys["num-layers"],
        hidden=hidden,
        ffn_hidden=keys.get("ffn-hidden-size", 4 * hidden),
        heads=heads,
        query_groups=keys.get("num-query-groups", heads) if keys.get("group-query-attention") else heads,
        channels=keys.get("kv-channels", hidden // heads),
        vocab=keys["vocab-size"],
        positions=keys.get("max-position-embeddings", 0) if learned else 0,
        swiglu=keys.get("swiglu", False),
        biases=not keys.get("disable-bias-linear", False),
        rms_norm=keys.get("normalization", "LayerNorm") == "RMSNorm",
        tied_embeddings=not keys.get("untie-embeddings-and-output-weights", False),
        dropout=keys.get("hidden-dropout", 0.1) > 0,
        vocab_multiple=keys.get("make-vocab-size-divisible-by", 128),
    )
