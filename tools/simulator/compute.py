"""What one rank computes for one micro-batch: matrix products, attention and element-wise kernels.

Counts come from the model and the layout, rates from the device and the constants. Times in seconds, bytes in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import NamedTuple

from tools.simulator.constants import Constants
from tools.simulator.job import Job
from tools.simulator.machine import Device

# Kernels of a layer's forward pass, and of its backward pass: it cannot be faster than their launches.
FORWARD_KERNELS, BACKWARD_KERNELS = 18, 30
# Flash attention's backward pass has 2.5 times the FLOPs of the forward pass and reaches about 0.85 of its rate
# (Dao 2023, arXiv 2307.08691, figures 5 and 6).
FLASH_BACKWARD = 2.5 / 0.85
MAIN_GRADIENT_BYTES = 8  # an fp32 main gradient is read and written
TILE = (128, 256)  # of a large matrix product on a multiprocessor


class Matrix(NamedTuple):
    """A matrix product [rows, inputs] x [inputs, outputs]."""

    rows: float
    outputs: float
    inputs: float

    @property
    def flops(self) -> float:
        """A multiply and an add count as two."""
        return 2.0 * self.rows * self.outputs * self.inputs

    def num_bytes(self, element: int) -> float:
        """Both operands read, the result written."""
        rows, outputs, inputs = self
        return element * (rows * outputs + rows * inputs + outputs * inputs)


class Pass(NamedTuple):
    """Seconds of a forward or a backward pass of one micro-batch."""

    matrices: float
    attention: float
    elementwise: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.matrices + self.attention + self.elementwise

    def times(self, factor: float) -> Pass:
        """As often."""
        return Pass(*(factor * part for part in self))

    def plus(self, other: Pass) -> Pass:
        """Both, one after the other."""
        return Pass(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Counts:
    """What a layer's forward pass does for one micro-batch on one rank, whatever the machine."""

    matrices: tuple[Matrix, ...]
    attention_flops: float
    keys: float
    scores: float
    elementwise_bytes: float


@lru_cache(maxsize=4096)
def layer_counts(job: Job) -> Counts:
    """Counts of one transformer layer.

    Causal attention has 2 s a c / t FLOPs a token. Element-wise bytes of a token at two bytes an element: two norms
    (read and write) and two residual additions, 24 h over the ranks of sequence parallelism; the activation's input
    and output, and rotary embeddings of queries and keys, over TP.
    """
    model, tokens, tp = job.model, job.tokens, job.tp
    matrices = tuple(
        Matrix(tokens, outputs / tp, inputs) if split else Matrix(tokens, outputs, inputs / tp)
        for outputs, inputs, split in model.matrices
    )
    rotary = 0 if model.positions else 2 * (model.heads + model.query_groups) * model.channels
    split = (3 if model.swiglu else 2) * model.ffn_hidden + rotary
    whole = 12 * model.hidden / job.activation_split
    return Counts(
        matrices=matrices,
        attention_flops=2.0 * job.seq * tokens * model.heads * model.channels / tp,
        keys=job.seq / job.cp,
        scores=0.0 if job.flash_attention else job.seq * tokens * model.heads / tp,
        elementwise_bytes=job.cluster.device.parameter_bytes * tokens * (whole + split / tp),
    )


def matrix_seconds(matrix: Matrix, device: Device, constants: Constants, gradient: bool = False) -> float:
    """Roofline of a product: arithmetic or memory, whichever takes longer, and a launch.

    `gradient`: the product of a weight's gradient, [inputs, rows] x [rows, outputs], whose result is added to the fp32
    main gradient in the same kernel.
    """
    shape = (matrix.inputs, matrix.outputs) if gradient else (matrix.rows, matrix.outputs)
    arithmetic = matrix.flops / (device.gemm_flops * constants.sustained_clock * wave_efficiency(*shape, device))
    num_bytes = matrix.num_bytes(device.parameter_bytes)
    if gradient:
        num_bytes += MAIN_GRADIENT_BYTES * matrix.outputs * matrix.inputs
    return max(arithmetic, num_bytes / device.bytes_per_s) + device.launch_us * 1e-6


def wave_efficiency(rows: float, columns: float, device: Device) -> float:
    """The share of multiprocessors that tiles of a [rows, columns] result keep busy, over all their waves.

    A result with fewer tiles than there are multiprocessors is split along the inner dimension instead.
    """
    waves = ceil(rows / TILE[0]) * ceil(columns / TILE[1]) / device.multiprocessors
    return waves / ceil(waves) if waves > 1 else 1.0


def layer_passes(job: Job, constants: Constants) -> tuple[Pass, Pass]:
    """One layer's forward and backward pass; the backward pass with what recompute adds."""
    counts, device = layer_counts(job), job.cluster.device
    products = sum(matrix_seconds(matrix, device, constants) for matrix in counts.matrices)
    gradients = sum(matrix_seconds(matrix, device, constants, gradient=True) for matrix in counts.matrices)
    passes = 1.0 if job.transformer_engine else constants.local_passes
    elementwise = passes * counts.elementwise_bytes / device.bytes_per_s
    attention, attention_backward = _attention(job, counts, constants)
    forward = _floored(Pass(products, attention, elementwise), device, FORWARD_KERNELS)
    work = Pass(products + gradients, attention_backward, 2 * elementwise)
    backward = _floored(work, device, BACKWARD_KERNELS)
    return forward, backward.plus(forward) if job.recompute == "full" else backward


def _attention(job: Job, counts: Counts, constants: Constants) -> tuple[float, float]:
    """Seconds forward and backward. Unfused attention computes all scores, passes over them in memory several times,
    and does that again in the backward pass where recompute is selective."""
    device = job.cluster.device
    if job.flash_attention:
        forward = counts.attention_flops / (device.attention_flops(counts.keys) * constants.sustained_clock)
        return forward, FLASH_BACKWARD * forward
    arithmetic = 2 * counts.attention_flops / (device.gemm_flops * constants.sustained_clock)
    forward = arithmetic + counts.scores * constants.score_bytes / device.bytes_per_s
    return forward, (3 if job.recompute == "selective" else 2) * forward


def _floored(work: Pass, device: Device, kernels: int) -> Pass:
    """`work`, but not faster than the launches of its kernels."""
    missing = kernels * device.launch_us * 1e-6 - work.seconds
    return work if missing <= 0 else work._replace(elementwise=work.elementwise + missing)


def head_passes(job: Job, constants: Constants) -> tuple[Pass, Pass]:
    """Output layer and loss on the last stage; the fp32 logits are written once and read twice, in each pass."""
    device = job.cluster.device
    product = Matrix(job.tokens, job.model.padded_vocab(job.tp) / job.tp, job.model.hidden)
    loss = 3 * 4 * product.rows * product.outputs / device.bytes_per_s
    seconds = matrix_seconds(product, device, constants)
    gradient = matrix_seconds(product, device, constants, gradient=True)
    return Pass(seconds, 0.0, loss), Pass(seconds + gradient, 0.0, loss)
