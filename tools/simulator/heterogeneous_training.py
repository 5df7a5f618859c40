"""Seconds of one iteration of this project's trainer on an uneven network: 1F1B, and what travels at how many bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sdp4bit_patches.config import PRESETS, CommConfig
from tools.simulator.heterogeneous_exchange import GRADIENT_BYTES, baseline_time, compressed_time, slow_sync_time
from tools.simulator.heterogeneous_network import Network
from tools.simulator.heterogeneous_pipeline import AT_ONCE, exchange_time, one_forward_one_backward
from tools.simulator.heterogeneous_work import Work

FORWARDS = 4  # forward, recomputation, and a backward pass of twice the work


@dataclass(frozen=True)
class Scheme:
    """What travels between data-parallel ranks: a preset, and perhaps other bits inside nodes (32: exact)."""

    preset: str
    intra_bits: int | None = None

    @property
    def config(self) -> CommConfig:
        """The method's configuration."""
        intra = {} if self.intra_bits is None else {"gradient_quantization_bits_intra": self.intra_bits}
        return CommConfig(**(PRESETS[self.preset] | intra))

    @property
    def name(self) -> str:
        """In words."""
        return self.preset if self.intra_bits is None else f"{self.preset} with {self.intra_bits} bits inside nodes"


# From the most exact on: of schemes that take the same time, the first is meant.
SCHEMES = (Scheme("baseline"), Scheme("duo4bit", 32), Scheme("duo4bit"), Scheme("sdp4bit", 32), Scheme("sdp4bit"))


@dataclass(frozen=True)
class Device:
    """What a device does and holds: forward TFLOP/s on a transformer layer, and bytes."""

    teraflops: float
    memory_bytes: float


@dataclass(frozen=True)
class Trainer:
    """One job: the network, the work of an iteration, the devices, and which of them form a node for compression.

    serial: whether pipeline stages exchange at once or in turns, see :class:`Exchange`.
    """

    network: Network
    work: Work
    device: Device
    node: np.ndarray
    serial: float = AT_ONCE

    def layer_time(self, micro_batch: int) -> float:
        """Seconds of one layer's forward pass."""
        return micro_batch * self.work.layer_forward_flops / (self.device.teraflops * 1e12)

    def pipeline_time(self, placement: np.ndarray, micro_batch: int) -> float:
        """Compute and what it waits for.

        Args:
            placement: devices, int [stages, replicas, tensor ranks].
        """
        stages, replicas, tensor = placement.shape
        compute = np.full(
            (stages, replicas), FORWARDS * self.work.layers / stages * self.layer_time(micro_batch) / tensor
        )
        activation_bytes = micro_batch * self.work.activation_bytes
        if tensor > 1:
            each = self.network.ring_time(placement.reshape(-1, tensor), activation_bytes, passes=2)
            compute += 6 * self.work.layers / stages * each.reshape(stages, replicas)
        lanes = placement.reshape(stages, -1)
        exchange = exchange_time(self.network, lanes, activation_bytes / tensor, self.serial)
        micro_batches = self.work.batch // (replicas * micro_batch)
        return float(one_forward_one_backward(compute, exchange.slowest_tensor_rank(tensor), micro_batches).max())

    def sync_time(self, placement: np.ndarray, scheme: Scheme, hidden: float = 0.0) -> float:
        """Gradients and parameters between replicas, with DUO what its second sync exceeds ``hidden`` seconds by.

        A tied embedding is summed exactly between the first and the last stage first.
        """
        return self._embedding_time(placement) + self._replicas_time(placement, scheme, hidden)

    def _embedding_time(self, placement: np.ndarray) -> float:
        if not self.work.tied_embedding or len(placement) == 1:
            return 0.0
        num_bytes = self.work.vocabulary * self.work.hidden / placement.shape[2] * GRADIENT_BYTES
        ends = np.stack([placement[0].ravel(), placement[-1].ravel()], axis=1)
        return float(self.network.ring_time(ends, num_bytes, passes=2).max())

    def _replicas_time(self, placement: np.ndarray, scheme: Scheme, hidden: float) -> float:
        stages, replicas, tensor = placement.shape
        if replicas == 1:
            return 0.0
        groups = placement.transpose(0, 2, 1).reshape(-1, replicas)
        sizes = [self.work.stage_parameters(stages, first=stage == 0) / tensor for stage in range(stages)]
        parameters = np.repeat(sizes, tensor)
        config = scheme.config
        if config.is_baseline:
            return baseline_time(self.network, groups, parameters)
        fast = compressed_time(self.network, groups, parameters, self.node, config)
        if not config.fast_slow_grad_reduce:
            return fast
        return fast + max(0.0, slow_sync_time(self.network, groups, parameters) - hidden)

    def memory_bytes(self, placement: np.ndarray, micro_batch: int, scheme: Scheme) -> float:
        """Of the fullest device: weights, gradients, sharded optimizer, checkpointed activations, one layer's work."""
        stages, replicas, tensor = placement.shape
        parameters = self.work.stage_parameters(stages) / tensor
        duo = 4 if scheme.config.fast_slow_grad_reduce else 0
        state = parameters * (2 + 4 + (12 + duo) / replicas)
        in_flight = min(stages, self.work.batch // (replicas * micro_batch))
        kept = in_flight * self.work.layers / stages * micro_batch * self.work.activation_bytes
        return state + kept + self._layer_bytes(micro_batch) / tensor

    def _layer_bytes(self, micro_batch: int) -> float:
        """Activations inside a layer, s b h (34 + 5 a s / h) (Korthikanti et al., 2022), heads of 128."""
        heads = self.work.hidden / 128
        tokens = self.work.sequence * micro_batch
        return tokens * self.work.hidden * (34 + 5 * heads * self.work.sequence / self.work.hidden)
