"""What the kernel counts: on the links of an emulated cluster, and of the time of its processors."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

# Ethernet 14, IPv4 20, TCP 20, its timestamps 12: what a packet has beside its payload. The kernel counts a large
# packet that a network card would cut into many as one, with one header.
HEADER_BYTES = 66


@dataclass(frozen=True)
class Traffic:
    """Bytes and packets of an interface since it exists."""

    num_bytes: int = 0
    num_packets: int = 0

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(self.num_bytes - other.num_bytes, self.num_packets - other.num_packets)

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.num_bytes + other.num_bytes, self.num_packets + other.num_packets)

    @property
    def payload_bytes(self) -> int:
        """What TCP carried: the bytes without the packets' headers."""
        return self.num_bytes - HEADER_BYTES * self.num_packets


def processor_seconds() -> float:
    """For how long all processors of the machine have worked since it started, the kernel included: what it does when a
    packet arrives is in no process's time."""
    user, nice, system, _idle, _iowait, irq, softirq = Path("/proc/stat").read_text().split()[1:8]
    return sum(map(int, (user, nice, system, irq, softirq))) / os.sysconf("SC_CLK_TCK")


def read_counters(pid: int | str = "self") -> dict[str, tuple[Traffic, Traffic]]:
    """(received, sent) of every interface in the network namespace of a process."""
    counters = {}
    for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]:
        name, _, values = line.partition(":")
        numbers = [int(value) for value in values.split()]
        counters[name.strip()] = Traffic(*numbers[0:2]), Traffic(*numbers[8:10])
    return counters
