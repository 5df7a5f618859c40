"""The published models and their work: parameters, activations and floating-point operations."""

from __future__ import annotations

from dataclasses import dataclass

VOCABULARY = 28_996  # BERT's, cased
SEQUENCE = 2048
FP16_BYTES = 2


@dataclass(frozen=True)
class Work:
    """One iteration of a GPT; by default with a classification head, which is no output layer to speak of.

    layers, hidden: the transformer. batch: sequences of the iteration. sequence: tokens of one. tied_embedding: whether
    the output layer on the last stage shares the token embedding of the first.
    """

    layers: int
    hidden: int
    batch: int
    sequence: int = SEQUENCE
    vocabulary: int = VOCABULARY
    tied_embedding: bool = False

    @property
    def layer_parameters(self) -> int:
        """12 h^2 + 13 h of attention, MLP, biases and norms."""
        return 12 * self.hidden**2 + 13 * self.hidden

    @property
    def embedding_parameters(self) -> int:
        """Tokens and positions; they lie on the first stage."""
        return (self.vocabulary + self.sequence) * self.hidden

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return self.layers * self.layer_parameters + self.embedding_parameters

    @property
    def layer_forward_flops(self) -> float:
        """Of one layer and one sequence: (24 h^2 + 4 s h) a token."""
        return (24 * self.hidden**2 + 4 * self.sequence * self.hidden) * self.sequence

    @property
    def activation_bytes(self) -> int:
        """fp16 activations of one sequence at a boundary between stages."""
        return self.sequence * self.hidden * FP16_BYTES

    def stage_parameters(self, stages: int, first: bool = True) -> float:
        """Of one stage; the first has the embeddings."""
        return self.layers / stages * self.layer_parameters + (self.embedding_parameters if first else 0)


MODELS = {"GPT3-6.7B": (32, 4096), "GPT3-13B": (40, 5120)}
GPT_XL_HIDDEN = 2048


def published_work(model: str, layers: str, batch: int) -> Work:
    """The work of a published row.

    Raises:
        ValueError: a model that is not among the published ones.
    """
    if model == "gpt-xl" and layers:
        return Work(int(layers), GPT_XL_HIDDEN, batch)
    if model not in MODELS:
        raise ValueError(f"model '{model}' is not one of the published: gpt-xl (with layers), {', '.join(MODELS)}")
    return Work(*MODELS[model], batch)
