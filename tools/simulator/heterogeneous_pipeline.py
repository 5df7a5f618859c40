"""Pipelines over uneven links: Megatron's blocking 1F1B, and DT-FM's all-forward-all-backward with overlap."""

from __future__ import annotations

import numpy as np

from tools.simulator.heterogeneous_network import Network


def exchange_time(network: Network, stages: np.ndarray, num_bytes: float, serial: float = 1.0) -> np.ndarray:
    """Seconds of a blocking exchange over each boundary, activations one way and their gradients the other.

    Args:
        stages: devices, int [stages, pipelines].
        num_bytes: of one of the two messages.
        serial: 1 where both travel at once; more where they wait for each other. A queue that several messages share is
            busy with others' meanwhile.

    Returns:
        [stages - 1, pipelines].
    """
    here, there = stages[:-1], stages[1:]
    times = []
    for senders, receivers in ((here, there), (there, here)):
        shared = network.sharing(senders.ravel(), receivers.ravel()).reshape(here.shape)
        busy = network.message_time(senders.ravel(), receivers.ravel(), num_bytes).reshape(here.shape)
        times.append(busy / shared * np.maximum(shared, serial))
    delay = np.maximum(network.delay[here, there], network.delay[there, here])
    return np.maximum(*times) + network.constants.delay_factor * delay


def one_forward_one_backward(compute: np.ndarray, exchange: np.ndarray, micro_batches: int) -> np.ndarray:
    """Seconds of a 1F1B schedule whose exchanges block, [pipelines].

    In the steady state a stage computes forward and backward and exchanges with both neighbours in turn; the stage that
    takes longest sets the pace. The first micro-batch passes all stages, there and back.

    Args:
        compute: forward and backward of one micro-batch, [stages, pipelines].
        exchange: of the boundaries, [stages - 1, pipelines].
    """
    none = np.zeros((1, compute.shape[1]))
    cycle = compute + np.vstack([none, exchange]) + np.vstack([exchange, none])
    return (micro_batches - 1) * cycle.max(axis=0) + compute.sum(axis=0) + 2 * exchange.sum(axis=0)


def gpipe_phase(
    compute: float, transfer: np.ndarray, delay: np.ndarray, micro_batches: int, exposed: float
) -> np.ndarray:
    """Seconds in which all micro-batches pass all stages in one direction while transfers overlap, [pipelines].

    Equal jobs through stations in a row take one passage and, for each further job, the slowest station's time.

    Args:
        compute: of one micro-batch on one stage.
        transfer, delay: of one micro-batch over each boundary, [stages - 1, pipelines].
        exposed: share of the shorter of compute and transfer that the longer does not hide.
    """
    slowest = transfer.max(axis=0, initial=0.0)
    cadence = np.maximum(compute, slowest) + exposed * np.minimum(compute, slowest)
    passage = (len(transfer) + 1) * compute + transfer.sum(axis=0) + delay.sum(axis=0)
    return passage + (micro_batches - 1) * cadence
