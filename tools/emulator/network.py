"""The network of an emulated cluster: a namespace a node, each with a shaped link to a bridge in one of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from tools.emulator.cores import cores_by_node
from tools.emulator.counters import Traffic, read_counters
from tools.emulator.namespaces import NetworkNamespace, ProcessNamespace, check_privilege, enter_words
from tools.emulator.shaping import emulated_commands, link_classes
from tools.scenario_files import Scenario

MAX_NODES = 64
DEVICE, BRIDGE = "eth0", "bridge0"
# What the process that holds a node is called: by this, running clusters are found.
HOLDER, SWITCH_HOLDER = "sdp4bit-emulated-node", "sdp4bit-emulated-switch"
# Two processes of one machine hand each other no more than about 7 Gbit/s this way; beyond this, it is not the link.
MAX_BANDWIDTH = 2e9


def congestion_control() -> str:
    """By which rule TCP sends on this machine, and so on its emulated nodes: `cubic` or `bbr` say, which differ in how
    many packets a message becomes. `unknown` where the kernel does not tell."""
    try:
        return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    except OSError:
        return "unknown"


class EmulatedNetwork:
    """Builds the network that `scenario` describes, one node a host; it lasts as long as the context.

    Raises:
        ValueError: not permitted, or more nodes than an emulated cluster can have.
        OSError: the kernel refused an interface or a qdisc.
    """

    def __init__(self, scenario: Scenario) -> None:
        if len(scenario.hosts) > MAX_NODES:
            raise ValueError(f"{len(scenario.hosts)} hosts: an emulated cluster has at most {MAX_NODES} nodes")
        check_privilege()
        self.scenario = scenario
        self.has_netem = _kernel_has_netem()
        self.addresses = [f"10.77.0.{number + 1}" for number in range(len(scenario.hosts))]
        self.cores = cores_by_node(len(scenario.hosts), sorted(os.sched_getaffinity(0)))
        self.processes = ProcessNamespace()
        try:
            self.switch = NetworkNamespace(self.processes, "switch", words=(SWITCH_HOLDER, str(os.getpid())))
            self.nodes = [self._make_node(number) for number in range(len(scenario.hosts))]
            self._connect()
            self.shape(scenario)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> EmulatedNetwork:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End every process in it; the kernel removes the rest."""
        self.processes.close()

    def _make_node(self, number: int) -> NetworkNamespace:
        names = [f"{address} node{other}" for other, address in enumerate(self.addresses)]
        hosts = "\\n".join(["127.0.0.1 localhost", *names, *(f"::ffff:{name}" for name in names), ""])
        # Over the machine's own, in this mount namespace alone, and from memory: no file is left behind.
        script = f"mount -t tmpfs tmpfs /mnt && printf '{hosts}' > /mnt/hosts"
        script += " && mount --bind /mnt/hosts /etc/hosts && umount -l /mnt"
        words = (HOLDER, str(os.getpid()), str(number), self.addresses[number])
        return NetworkNamespace(self.processes, f"node{number}", script, words)

    def _connect(self) -> None:
        lines = [f"link add {BRIDGE} type bridge mcast_snooping 0", f"link set {BRIDGE} up"]
        for number, node in enumerate(self.nodes):
            lines.append(f"link add node{number} type veth peer name {DEVICE} netns {node.pid}")
            lines += [f"link set node{number} master {BRIDGE}", f"link set node{number} up"]
        self.switch.ip(lines)
        for node, address in zip(self.nodes, self.addresses, strict=True):
            node.ip([f"address add {address}/24 dev {DEVICE}", f"link set {DEVICE} up"])

    def shape(self, scenario: Scenario) -> None:
        """Give every link the rate and delay of `scenario`, which has as many hosts."""
        self.scenario = scenario
        for number, node in enumerate(self.nodes):
            subprocess.run(node.words("tc", "qdisc", "del", "dev", DEVICE, "root"), capture_output=True)
            classes = link_classes(scenario, number)
            if classes:
                node.tc(emulated_commands(DEVICE, classes, self.addresses, self.has_netem))

    def sent(self) -> list[Traffic]:
        """What each node has sent to others since the network exists."""
        counters = read_counters(self.switch.pid)
        return [counters[f"node{number}"][0] for number in range(len(self.nodes))]

    def notes(self) -> list[str]:
        """What of the scenario is not emulated, in sentences."""
        notes = []
        if self.scenario.delay.any() and not self.has_netem:
            notes.append("this kernel has no netem: delays are left out, links have their rates alone")
        if self.scenario.shared is not None and self.scenario.shared.any():
            notes.append("links that all hosts of a region share are shaped for each of its hosts alone")
        others = [b for row in range(len(self.nodes)) for c, b in enumerate(self.scenario.bandwidth[row]) if c != row]
        if others and max(others) > MAX_BANDWIDTH:
            fastest = f"{max(others) / 1e9:g} Gbit/s"
            notes.append(f"a link of {fastest}: above {MAX_BANDWIDTH / 1e9:g} Gbit/s it is this machine that limits")
        if len(self.nodes) > 1 and self.cores[0] == self.cores[1]:
            notes.append("fewer cores than nodes: they share all of them, and what one computes slows the others")
        return notes


@contextlib.contextmanager
def cut_link(switch_pid: int, node: int) -> Iterator[None]:
    """Within the context, the link of `node` is cut at the switch: what it sends, and what is sent to it, is lost.

    Raises:
        ValueError: the cluster has ended, before or meanwhile.
    """
    _set_link(switch_pid, node, "down")
    try:
        yield
    finally:
        _set_link(switch_pid, node, "up")


def _set_link(switch_pid: int, node: int, state: str) -> None:
    words = [*enter_words(switch_pid), "ip", "link", "set", f"node{node}", state]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"node{node}'s link cannot be set {state} ({done.stderr.strip()}): has its cluster ended?")


def _kernel_has_netem() -> bool:
    words = ["unshare", "--net", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
    return subprocess.run(words, capture_output=True).returncode == 0
