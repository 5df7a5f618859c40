"""Which rate and delay a host's packets get by their destination, and the `tc` commands that do it.

Destinations of equal rate and delay share that rate, as the hosts of the published scenarios did: a cluster of equal
links has one class, which is each node's network card. Only what a host sends is shaped; a round trip takes the delays
of both directions.
"""

from __future__ import annotations

from dataclasses import dataclass

from tools.scenario_files import Scenario

# A larger burst lets small messages pass for free; a smaller one costs a timer for every few packets. A link so thin
# that the smaller limit would take it longer than SHORT_SECONDS has few packets: there it is that, or one of them.
BURST_SECONDS, BURST_BYTES = 2.5e-4, (16_384, 131_072)
SHORT_SECONDS, PACKET_BYTES = 1e-3, 1_600
# Of the Linux qdisc `prio`: one of them is for everything that is not shaped.
MAX_BANDS = 16


@dataclass(frozen=True)
class LinkClass:
    """Hosts that are reached with one rate (bit/s) and delay (seconds, one way)."""

    bandwidth: float
    delay: float
    hosts: tuple[int, ...]


def link_classes(scenario: Scenario, host: int) -> list[LinkClass]:
    """The classes of what `host` sends, fastest first."""
    classes: dict[tuple[float, float], list[int]] = {}
    for other in range(len(scenario.hosts)):
        if other != host:
            key = float(scenario.bandwidth[host, other]), float(scenario.delay[host, other])
            classes.setdefault(key, []).append(other)
    return [LinkClass(*key, tuple(classes[key])) for key in sorted(classes, reverse=True)]


def emulated_commands(device: str, classes: list[LinkClass], addresses: list[str], has_netem: bool) -> list[str]:
    """Arguments of `tc` that shape an emulated node: rates by htb, delays by netem where the kernel has it."""
    lines = [f"qdisc add dev {device} root handle 1: htb default 1"]
    for number, link in enumerate(classes, start=1):
        lines.append(f"class add dev {device} parent 1: classid 1:{number:x} {_htb(link.bandwidth)}")
        if has_netem and link.delay:
            lines.append(f"qdisc add dev {device} parent 1:{number:x} handle {number + 1:x}: {_netem(link, rate='')}")
        lines += _filters(device, f"1:{number:x}", link, addresses)
    return lines


def rate_change_command(device: str, bandwidth: float) -> str:
    """Arguments of `tc` that give an emulated node with equal links another rate; it may be run on the node itself."""
    return f"class change dev {device} parent 1: classid 1:1 {_htb(bandwidth)}"


def _htb(bandwidth: float) -> str:
    burst = burst_bytes(bandwidth)
    return f"htb rate {bandwidth:.0f}bit burst {burst} cburst {burst} quantum {max(BURST_BYTES) // 2}"


def burst_bytes(bandwidth: float) -> int:
    """What may pass at once, at this rate."""
    low, high = BURST_BYTES
    rate = bandwidth / 8
    low = min(low, max(rate * SHORT_SECONDS, PACKET_BYTES))
    return int(min(max(rate * BURST_SECONDS, low), high))


def real_host_commands(device: str, classes: list[LinkClass], addresses: list[str]) -> list[str]:
    """Arguments of `tc` that shape a real host, as the published scenarios were made: netem with delay and rate.

    Raises:
        ValueError: more distinct links than the qdisc `prio` has bands.
    """
    bands = len(classes) + 1
    if bands > MAX_BANDS:
        raise ValueError(
            f"{len(classes)} distinct links from one host; the qdisc prio has {MAX_BANDS - 1} bands for them"
        )
    lines = [f"qdisc add dev {device} root handle 1: prio bands {bands} priomap {' '.join(['0'] * 16)}"]
    for number, link in enumerate(classes, start=2):
        lines.append(f"qdisc add dev {device} parent 1:{number:x} handle {number:x}0: {_netem(link, _rate(link))}")
        lines += _filters(device, f"1:{number:x}", link, addresses)
    return lines


def _rate(link: LinkClass) -> str:
    return f" rate {link.bandwidth / 1e6:g}mbit"


def _netem(link: LinkClass, rate: str) -> str:
    """Its queue holds what is under way during the delay, in packets of 1,500 bytes and half as many again."""
    limit = max(1000, round(1.5 * link.bandwidth * link.delay / 8 / 1500))
    return f"netem delay {link.delay * 1e3:g}ms{rate} limit {limit}"


def _filters(device: str, flow: str, link: LinkClass, addresses: list[str]) -> list[str]:
    start = f"filter add dev {device} parent 1: protocol ip prio 1 u32 match ip dst"
    return [f"{start} {addresses[host]}/32 flowid {flow}" for host in link.hosts]
