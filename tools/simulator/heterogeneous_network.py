"""Links between devices as the iteration-time simulation sees them: who shares a link with whom."""

from __future__ import annotations

import numpy as np

from tools.scenario_files import Scenario
from tools.simulator.heterogeneous_constants import NCCL_BUFFER_BYTES, Constants


class Network:
    """Delays, bandwidths and queues between the devices of a scenario.

    delay: [devices, devices], seconds. bandwidth: the same in bit/s, as if alone. host: int [devices].
    queue: int [devices, devices]; flows of one number share its bandwidth. What a host sends over links of one delay
    and rate is one queue (that of a shaping rule, or of the network card); a link that a scenario calls shared is one
    queue for all hosts of the region; inside a host every pair has its own.
    """

    def __init__(self, scenario: Scenario, constants: Constants) -> None:
        host = scenario.host_of_device
        self.num_devices, self.host = len(host), host
        self.constants = constants
        self.same_host = host[:, None] == host
        self.delay = scenario.device_delay
        self.bandwidth = np.where(self.same_host, constants.host_link_factor, 1.0) * scenario.device_bandwidth
        self.queue = _queues(scenario)

    def sharing(self, senders: np.ndarray, receivers: np.ndarray) -> np.ndarray:
        """For flows that run at once, int [flows] each: how many share each one's queue."""
        _, inverse, counts = np.unique(self.queue[senders, receivers], return_inverse=True, return_counts=True)
        return counts[inverse].reshape(np.shape(senders))

    def rate(self, senders: np.ndarray, receivers: np.ndarray) -> np.ndarray:
        """bit/s of each of the flows that run at once, as streams."""
        return self.bandwidth[senders, receivers] / self.sharing(senders, receivers)

    def message_time(
        self, senders: np.ndarray, receivers: np.ndarray, num_bytes: float, overhead: float | None = None
    ) -> np.ndarray:
        """Seconds for which each of the messages sent at once keeps its queue busy, delay left out.

        overhead: of a message that does not fit into NCCL's buffer; that of a blocking one by default.
        """
        known = self.constants
        alone = self.bandwidth[senders, receivers]
        if num_bytes > NCCL_BUFFER_BYTES:
            within = self.same_host[senders, receivers]
            alone = np.where(within, alone, np.minimum(alone, known.socket_gbps * 1e9))
            each = (known.message_overhead if overhead is None else overhead) + 8 * num_bytes / alone
        else:
            each = 8 * num_bytes / alone
        return self.sharing(senders, receivers) * each

    def ring_time(self, groups: np.ndarray, num_bytes: np.ndarray | float, passes: int) -> np.ndarray:
        """Seconds of ring collectives that run at once, one in each row of ``groups``, int [groups, ranks].

        num_bytes: of the whole vector, [groups]. passes: 2 for an all-reduce, 1 for a reduce-scatter or all-gather.
        """
        size = groups.shape[1]
        if size == 1:
            return np.zeros(len(groups))
        senders, receivers = groups, np.roll(groups, -1, axis=1)
        slowest = self.rate(senders.ravel(), receivers.ravel()).reshape(groups.shape).min(axis=1)
        hop = self.delay[senders, receivers] + self.constants.hop_overhead * ~self.same_host[senders, receivers]
        return passes * (size - 1) * (8 * np.asarray(num_bytes) / size / slowest + hop.mean(axis=1))

    def direct_time(self, senders: np.ndarray, receivers: np.ndarray, num_bytes: np.ndarray | float) -> float:
        """Seconds until messages sent at once from everybody to everybody else have arrived; [flows] each."""
        if not len(senders):
            return 0.0
        _, inverse = np.unique(self.queue[senders, receivers], return_inverse=True)
        busy = np.bincount(inverse, 8 * np.asarray(num_bytes) / self.bandwidth[senders, receivers])
        return float((busy[inverse] + self.delay[senders, receivers]).max())


def _queues(scenario: Scenario) -> np.ndarray:
    """See :class:`Network`."""
    host = scenario.host_of_device
    number = len(host)
    kinds: dict[tuple, int] = {}
    queue = np.empty((number, number), dtype=np.int64)
    for source in range(number):
        for target in range(number):
            a, b = host[source], host[target]
            if a == b:
                key: tuple = ("pair", source, target)
            elif scenario.shared is not None and scenario.shared[a, b]:
                key = ("link", scenario.hosts[a].region, scenario.hosts[b].region)
            else:
                key = ("host", a, scenario.delay[a, b], scenario.bandwidth[a, b])
            queue[source, target] = kinds.setdefault(key, len(kinds))
    return queue
