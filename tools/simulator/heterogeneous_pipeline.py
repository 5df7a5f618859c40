"""Pipelines over uneven links: Megatron's blocking 1F1B, and DT-FM's all-forward-all-backward with overlap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tools.simulator.heterogeneous_network import Network

# Whether the two messages of an exchange travel at once or in turns. NCCL sends both ways at once. gloo says that it is
# ready to receive over the connection on which it sends, behind its own message: the other way has to wait.
AT_ONCE, IN_TURNS = 1.0, 2.0


@dataclass(frozen=True)
class Exchange:
    """Seconds of a blocking exchange over each boundary, activations one way and their gradients the other.

    transfer, delay: on the wire and on the way, [stages - 1, pipelines]. serial: from ``AT_ONCE`` to ``IN_TURNS``.
    """

    transfer: np.ndarray
    delay: np.ndarray
    serial: float = AT_ONCE

    @property
    def total(self) -> np.ndarray:
        """Until the message of a neighbour that begins now has arrived."""
        return self.transfer + self.delay

    def slowest_tensor_rank(self, tensor: int) -> Exchange:
        """The exchange of lanes, [stages - 1, replicas * tensor], as that of their pipelines."""
        shape = (len(self.transfer), self.transfer.shape[1] // tensor, tensor)
        slowest = (part.reshape(shape).max(axis=2, initial=0.0) for part in (self.transfer, self.delay))
        return Exchange(*slowest, self.serial)


def exchange_time(network: Network, stages: np.ndarray, num_bytes: float, serial: float = AT_ONCE) -> Exchange:
    """The exchange over each boundary.

    Args:
        stages: devices, int [stages, pipelines].
        num_bytes: of one of the two messages.
        serial: see :class:`Exchange`. While a message waits, others use a queue that several share.
    """
    here, there = stages[:-1], stages[1:]
    busy, alone = [], []
    for senders, receivers in ((here, there), (there, here)):
        shared = network.sharing(senders.ravel(), receivers.ravel()).reshape(here.shape)
        busy.append(network.message_time(senders.ravel(), receivers.ravel(), num_bytes).reshape(here.shape))
        alone.append(busy[-1] / shared)
    delay = np.maximum(network.delay[here, there], network.delay[there, here])
    in_turn = np.maximum(*alone) + (serial - 1) * np.minimum(*alone)
    return Exchange(np.maximum(np.maximum(*busy), in_turn), network.constants.delay_factor * delay, serial)


def one_forward_one_backward(compute: np.ndarray, exchange: Exchange, micro_batches: int) -> np.ndarray:
    """Seconds of a 1F1B schedule whose exchanges block, [pipelines].

    The first micro-batch passes all stages, there and back, and meets no other; each further one takes a pace.

    Args:
        compute: forward and backward of one micro-batch, [stages, pipelines].
    """
    passage = compute.sum(axis=0) + 2 / exchange.serial * exchange.total.sum(axis=0)
    return (micro_batches - 1) * _pace(compute, exchange) + passage


def _pace(compute: np.ndarray, exchange: Exchange) -> np.ndarray:
    """Seconds from one micro-batch to the next in the steady state, [pipelines].

    A stage alternates between compute and exchanges with its two neighbours. It goes on when its own message has left,
    and its neighbour's has arrived. So whatever m stages in a row wait for comes back to them after m micro-batches: by
    then each has computed m times, every boundary between them was crossed up and down, delays included, and at both
    ends a message left. The slowest of all such rows sets the pace (the greatest mean over the cycles of the graph of
    events); a row of one stage is that stage's own work.
    """
    none = np.zeros((1, compute.shape[1]))
    below, above = np.vstack([none, exchange.transfer]), np.vstack([exchange.transfer, none])
    computed, crossed = (np.vstack([none, part.cumsum(axis=0)]) for part in (compute, exchange.total))
    first, last = np.triu_indices(len(compute))
    work = computed[last + 1] - computed[first] + 2 * (crossed[last] - crossed[first]) + below[first] + above[last]
    return (work / (last - first + 1)[:, None]).max(axis=0)


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
