"""Pipelines over uneven links: Megatron's blocking 1F1B, and DT-FM's all-forward-all-backward with overlap."""

from __future__ import annotations

import numpy as np

from tools.simulator.heterogeneous_network import Network

# Whether the two messages of an exchange travel at once or in turns. NCCL sends both ways at once. gloo says that it is
# ready to receive over the connection on which it sends, behind its own message: the other way has to wait.
AT_ONCE, IN_TURNS = 1.0, 2.0


def exchange_time(network: Network, stages: np.ndarray, num_bytes: float, serial: float = AT_ONCE) -> np.ndarray:
    """Seconds of a blocking exchange over each boundary, activations one way and their gradients the other.

    Args:
        stages: devices, int [stages, pipelines].
        num_bytes: of one of the two messages.
        serial: from ``AT_ONCE`` to ``IN_TURNS``. While a message waits, others use a queue that several share.

    Returns:
        [stages - 1, pipelines].
    """
    here, there = stages[:-1], stages[1:]
    busy, alone = [], []
    for senders, receivers in ((here, there), (there, here)):
        shared = network.sharing(senders.ravel(), receivers.ravel()).reshape(here.shape)
        busy.append(network.message_time(senders.ravel(), receivers.ravel(), num_bytes).reshape(here.shape))
        alone.append(busy[-1] / shared)
    delay = np.maximum(network.delay[here, there], network.delay[there, here])
    in_turn = np.maximum(*alone) + (serial - 1) * np.minimum(*alone)
    return np.maximum(np.maximum(*busy), in_turn) + network.constants.delay_factor * delay


def one_forward_one_backward(
    compute: np.ndarray, exchange: np.ndarray, micro_batches: int, serial: float = AT_ONCE
) -> np.ndarray:
    """Seconds of a 1F1B schedule whose exchanges block, [pipelines].

    In the steady state a stage computes forward and backward and exchanges with both neighbours in turn; the stage that
    takes longest sets the pace. The first micro-batch passes all stages, there and back, and meets no other.

    Args:
        compute: forward and backward of one micro-batch, [stages, pipelines].
        exchange: of the boundaries, [stages - 1, pipelines].
        serial: with which the exchanges were reckoned.
    """
    none = np.zeros((1, compute.shape[1]))
    cycle = compute + np.vstack([none, exchange]) + np.vstack([exchange, none])
    passage = compute.sum(axis=0) + 2 / serial * exchange.sum(axis=0)
    return (micro_batches - 1) * cycle.max(axis=0) + passage


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
