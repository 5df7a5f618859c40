"""Seconds of one iteration for every published system, from its run: the formulas, one system after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tools.simulator.heterogeneous_network import Network
from tools.simulator.heterogeneous_pipeline import exchange_time, gpipe_phase, one_forward_one_backward
from tools.simulator.heterogeneous_runs import Run
from tools.simulator.heterogeneous_work import FP16_BYTES, GPT_XL_HIDDEN

BACKWARD = 3  # a backward pass with recomputation, in forward passes
ZERO3_MICRO_BATCH = 4


@dataclass(frozen=True)
class Parts:
    """Seconds of one iteration by part."""

    pipeline: float
    data_parallel: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.pipeline + self.data_parallel


def dtfm(run: Run, order: np.ndarray) -> Parts:
    """DT-FM: all pipelines run all forwards, wait for each other, and run all backwards; then gradients are chained.

    Args:
        order: device of every rank; a pipeline's stages are neighbours in rank.
    """
    network, known = run.network, run.network.constants
    stages = order.reshape(run.replicas, run.stages).T
    senders, receivers = stages[:-1], stages[1:]
    slower = 1.0 if network.same_host[senders, receivers].all() else known.dtfm_compute_factor
    forward = run.work.layers / run.stages * run.layer_time() * slower
    phases = [(forward, senders, receivers), (BACKWARD * forward, receivers, senders)]
    steps = _accumulation_steps(run)
    pipeline = sum(_dtfm_phase(run, *phase) for phase in phases)
    return Parts(steps * pipeline, _chain_reduce_and_broadcast(run, stages))


def _accumulation_steps(run: Run) -> int:
    nominal = run.settings[
        "sequences-per-step-of-wide-models" if run.work.hidden > GPT_XL_HIDDEN else "sequences-per-step"
    ]
    return max(1, round(run.work.batch / (nominal * run.replicas)))


def _dtfm_phase(run: Run, compute: float, senders: np.ndarray, receivers: np.ndarray) -> float:
    network = run.network
    transfer = network.message_time(senders.ravel(), receivers.ravel(), run.work.activation_bytes, overhead=0.0)
    times = gpipe_phase(
        compute,
        transfer.reshape(senders.shape),
        network.delay[senders, receivers],
        run.sequences_per_step,
        network.constants.dtfm_exposed,
    )
    return float(times.max())


def _chain_reduce_and_broadcast(run: Run, stages: np.ndarray) -> float:
    """fp16 gradients along the ranks of every stage to the first, and back; the slowest link sets the pace."""
    back, forth = (stages[:, 1:], stages[:, :-1]), (stages[:, :-1], stages[:, 1:])
    return float((_chain_time(run, *back) + _chain_time(run, *forth)).max())


def _chain_time(run: Run, senders: np.ndarray, receivers: np.ndarray) -> np.ndarray:
    """[stages] seconds in which a stage's gradients pass all its links in a row, in pieces."""
    network = run.network
    delay = network.delay[senders, receivers]
    rate = network.rate(senders.ravel(), receivers.ravel()).reshape(senders.shape)
    per_bit = 1 / rate + 2 * delay / (network.constants.dtfm_window_gbit * 1e9)
    bits = 8 * _stage_gradient_bytes(run, len(senders))
    return bits * per_bit.max(axis=1, initial=0.0) + delay.sum(axis=1)


def _stage_gradient_bytes(run: Run, stages: int) -> np.ndarray:
    sizes = [run.work.stage_parameters(stages, first=stage == 0) for stage in range(stages)]
    return FP16_BYTES * np.array(sizes)


def megatron(run: Run, order: np.ndarray, stages: int, tensor: int, micro_batch: int, serial: float = 1.0) -> Parts:
    """Megatron-LM of 2022: blocking 1F1B, fp16 all-reduce at the end, the loss reduced in every micro-batch.

    Args:
        order: device of every rank, tensor ranks next to each other, then replicas, then stages.
        serial: see :class:`Exchange`.
    """
    network = run.network
    placement = order.reshape(stages, -1, tensor)
    replicas = placement.shape[1]
    compute = (1 + BACKWARD) * run.work.layers / stages * run.layer_time(micro_batch) / tensor
    busy = np.full((stages, replicas), compute) + _tensor_parallel_time(run, placement, micro_batch)
    busy[-1] += _loss_time(network, placement[-1, :, 0]) if serial == 1.0 else 0.0
    lanes = placement.reshape(stages, -1)
    exchange = exchange_time(network, lanes, micro_batch * run.work.activation_bytes / tensor, serial)
    micro_batches = run.work.batch // (replicas * micro_batch)
    pipeline = one_forward_one_backward(busy, exchange.slowest_tensor_rank(tensor), micro_batches).max()
    groups = placement.transpose(0, 2, 1).reshape(-1, replicas)
    sizes = np.repeat(_stage_gradient_bytes(run, stages) / tensor, tensor)
    return Parts(float(pipeline), float(network.ring_time(groups, sizes, passes=2).max()))


def _loss_time(network: Network, last: np.ndarray) -> float:
    """The loss averaged over the last stage: the hops of a tree, which its longest way holds up."""
    hops = network.constants.loss_hops * np.log2(len(last)) / np.log2(8)
    return float(hops * network.delay[np.ix_(last, last)].max())


def _tensor_parallel_time(run: Run, placement: np.ndarray, micro_batch: int) -> np.ndarray:
    """Six all-reduces of the activations in every layer: two each in forward, recomputation and backward."""
    stages, replicas, tensor = placement.shape
    bytes_each = micro_batch * run.work.activation_bytes
    each = run.network.ring_time(placement.reshape(-1, tensor), bytes_each, passes=2)
    return 6 * run.work.layers / stages * each.reshape(stages, replicas)


def zero3(run: Run) -> Parts:
    """ZeRO-3 over all devices: parameters gathered and gradients scattered around one ring in every micro-step."""
    network, known = run.network, run.network.constants
    ring = np.arange(network.num_devices)
    following = np.roll(ring, -1)
    slowest = network.rate(ring, following).min()
    hops = network.delay[ring, following] + known.hop_overhead * ~network.same_host[ring, following]
    around = float(hops.sum()) + known.zero3_round_overhead
    streamed = max(0.0, run.work.parameters - known.zero3_resident_parameters) / run.work.layer_parameters
    compute = (1 + BACKWARD) * run.work.layers * run.layer_time(ZERO3_MICRO_BATCH)
    transfer = known.zero3_passes * 8 * FP16_BYTES * run.work.parameters / slowest
    step = compute + transfer + known.zero3_rounds_per_layer * streamed * around
    return Parts(run.work.batch / (ZERO3_MICRO_BATCH * network.num_devices) * step, 0.0)


def _deepspeed_pipeline(run: Run) -> Parts:
    seed = run.settings.get("deepspeed-random-seed")
    order = np.arange(run.network.num_devices) if seed is None else run.shuffled_devices(seed)
    serial = run.network.constants.deepspeed_serial
    return megatron(run, order, run.stages, 1, run.settings["deepspeed-micro-batch"], serial)


def _megatron_pipeline(run: Run, random: bool) -> Parts:
    order = run.shuffled_devices(run.seed) if random and run.seed is not None else np.arange(run.network.num_devices)
    return megatron(run, order, run.stages, 1, run.settings["megatron-micro-batch"])


def _megatron_of(stages: int, tensor: int) -> Callable[[Run], Parts]:
    def predict(run: Run) -> Parts:
        return megatron(run, np.arange(run.network.num_devices), stages, tensor, 1)

    return predict


def _in_order(run: Run) -> np.ndarray:
    return np.arange(run.network.num_devices)


# Column of the published table -> its iteration. A DT-FM device runs the rank that the permutation gives it, a Megatron
# rank the device.
SYSTEMS: dict[str, Callable[[Run], Parts]] = {
    "megatron_p8": lambda run: _megatron_pipeline(run, random=run.settings["megatron-p8-random"]),
    "megatron_p8_default": lambda run: _megatron_pipeline(run, random=False),
    "megatron_p8_random": lambda run: _megatron_pipeline(run, random=True),
    "megatron_t8": _megatron_of(1, 8),
    "megatron_p2t4": _megatron_of(2, 4),
    "megatron_p4t2": _megatron_of(4, 2),
    "dtfm_scheduled": lambda run: dtfm(run, _in_order(run)),
    "dtfm_random": lambda run: dtfm(run, np.argsort(run.shuffled_devices(run.seed))),
    "dtfm_random_gpus": lambda run: dtfm(run, np.argsort(run.shuffled_devices(run.seed))),
    "dtfm_random_hosts": lambda run: dtfm(run, run.shuffled_hosts(run.seed)),
    "zero3": zero3,
    "deepspeed_pp": _deepspeed_pipeline,
}
