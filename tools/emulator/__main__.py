"""An emulated cluster on this machine: real processes, real collectives, links as slow as one says.

python -m tools.emulator run --nodes 2 --ranks-per-node 2 --link-mbit 500 -- SCRIPT.py ARGS
python -m tools.emulator run --scenario emulated_two_regions -- SCRIPT.py ARGS   # uneven links, by data
python -m tools.emulator run --user --link-mbit 500 -- SCRIPT.py ARGS       # no privilege: shaped in the processes
python -m tools.emulator run --launcher slurm --link-mbit 500 -- SCRIPT.py ARGS   # a Slurm of these nodes, sbatch
python -m tools.emulator status                     # what runs, and what its nodes have sent
python -m tools.emulator shell NODE                 # a shell on a node of what runs
python -m tools.emulator cut NODE --seconds 5       # cut a node's link for a while
python -m tools.emulator down                       # end all of it
python -m tools.emulator tc --scenario case3 --host 0 --interface ens3   # commands that shape a real host
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from argparse import REMAINDER, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path

from tools.command_line import ToolArgumentParser, positive_int, run_tool
from tools.emulator.following import FollowedJob
from tools.emulator.launch import Job
from tools.emulator.namespaces import enter_words
from tools.emulator.network import EmulatedNetwork, congestion_control, cut_link
from tools.emulator.phases import PhaseCounter
from tools.emulator.running import find_node, find_switch, status_lines, take_down
from tools.emulator.shaping import link_classes, real_host_commands
from tools.emulator.slurm_cluster import SlurmCluster, check_slurm
from tools.emulator.slurm_job import SlurmJob
from tools.emulator.user_mode import run_user_mode
from tools.scenario_files import Scenario, read_scenario, uniform_scenario


def scenario_of(options: Namespace) -> Scenario:
    """The network that the flags describe.

    Raises:
        ValueError: flags of a uniform network beside --scenario, or none at all.
    """
    uniform = {name: getattr(options, name) for name in ("nodes", "ranks_per_node", "link_mbit", "delay_ms")}
    given = [f"--{name.replace('_', '-')}" for name, value in uniform.items() if value is not None]
    if options.scenario:
        if given:
            raise ValueError(f"{given[0]} with --scenario: the scenario says it; drop one of the two")
        return read_scenario(options.scenario)
    if options.link_mbit is None:
        raise ValueError("how fast are the links? Give --link-mbit RATE or --scenario NAME")
    delay = (options.delay_ms or 0.0) * 1e-3
    return uniform_scenario(options.nodes or 2, options.ranks_per_node or 2, options.link_mbit * 1e6, delay)


def run(options: Namespace) -> None:
    """Build the network, run the script, take it down; the exit code is the script's."""
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not words:
        raise ValueError("what is to run? Give it behind '--': run --link-mbit 500 -- SCRIPT.py ARGS")
    scenario = scenario_of(options)
    if options.user and options.launcher != "torchrun":
        raise ValueError(f"--launcher {options.launcher} with --user, which has no nodes: drop one of the two")
    if options.launcher == "slurm":
        check_slurm()
    if options.user:
        sys.exit(run_user_mode(scenario, words))
    with EmulatedNetwork(scenario) as network, tempfile.TemporaryDirectory(prefix="emulator-") as folder:
        for note in network.notes():
            _say(note)
        sizes = f"{len(network.nodes)} nodes, {scenario.num_devices} ranks"
        _say(f"{sizes}, {describe_links(scenario)}, TCP by {congestion_control()}")
        sys.exit(_follow(network, _start(network, options.launcher, words, Path(folder))))


def _start(network: EmulatedNetwork, launcher: str, words: list[str], folder: Path) -> FollowedJob:
    logs = folder / "logs"
    logs.mkdir()
    if launcher == "torchrun":
        return Job(network, words, logs)
    cluster = SlurmCluster(network, folder / "slurm")
    job = SlurmJob(cluster, words, logs)
    _say(f"Slurm job {job.number}; in 'shell NODE', say export SLURM_CONF={cluster.config} for squeue and others")
    return job


def _follow(network: EmulatedNetwork, job: FollowedJob) -> int:
    counter = PhaseCounter(network.sent)

    def show(line: str) -> None:
        print(line, flush=True)
        counter.line(line)

    code = job.run(show)
    if code:
        print(job.tails(), file=sys.stderr)
        _say(f"the script failed with exit code {code}; above, the last lines of every rank beside rank 0")
    else:
        counter.finish()
        print(counter.table([host.num_devices for host in network.scenario.hosts]), flush=True)
    return code


def describe_links(scenario: Scenario) -> str:
    """The rates between hosts, in words."""
    rates = {link.bandwidth / 1e6 for host in range(len(scenario.hosts)) for link in link_classes(scenario, host)}
    if not rates:
        return "no links"
    slowest, fastest = min(rates), max(rates)
    return f"links of {slowest:g} Mbit/s" + (f" to {fastest:g} Mbit/s" if fastest > slowest else "")


def _say(sentence: str) -> None:
    print(f"emulator: {sentence}", file=sys.stderr, flush=True)


def shell(options: Namespace) -> None:
    """A shell on a node of the cluster that runs."""
    node = find_node(options.node)
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    command = words or [os.environ.get("SHELL", "/bin/sh")]
    sys.exit(subprocess.call([*enter_words(node.pid, "pid"), *command]))


def cut(options: Namespace) -> None:
    """Cut a node's link for some seconds, as a pulled cable would: what is sent meanwhile is lost."""
    node = find_node(options.node)
    with cut_link(find_switch(node.launcher), node.number):
        time.sleep(options.seconds)


def tc(options: Namespace) -> None:
    """Print what shapes a real host as `scenario` says."""
    scenario = read_scenario(options.scenario)
    if not 0 <= options.host < len(scenario.hosts):
        raise ValueError(f"--host {options.host}: {scenario.name} has hosts 0 to {len(scenario.hosts) - 1}")
    default = [f"10.0.{number // 250}.{number % 250 + 1}" for number in range(len(scenario.hosts))]
    addresses = options.addresses.split(",") if options.addresses else default
    if len(addresses) != len(scenario.hosts):
        raise ValueError(f"--addresses has {len(addresses)} of them, {scenario.name} {len(scenario.hosts)} hosts")
    for line in real_host_commands(options.interface, link_classes(scenario, options.host), addresses):
        print(f"tc {line}")


def status(_options: Namespace) -> None:
    """Print what runs."""
    print("\n".join(status_lines()))


def down(_options: Namespace) -> None:
    """End every emulated cluster."""
    launchers = take_down()
    print(f"ended: {', '.join(map(str, launchers))}" if launchers else "no emulated cluster runs")


class _CommandParser(ToolArgumentParser):
    """The parser of one command; argparse names it after the program and the command."""

    def __init__(self, description: str, prog: str) -> None:
        super().__init__(description)
        self.prog = prog


def parse_arguments() -> Namespace:
    """The command line."""
    parser = ToolArgumentParser(__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_CommandParser)

    def command(action: Callable[[Namespace], None]) -> ArgumentParser:
        made = commands.add_parser(action.__name__, help=action.__doc__.splitlines()[0], description=action.__doc__)
        made.set_defaults(action=action)
        return made

    _add_run_flags(command(run))
    in_shell = command(shell)
    in_shell.add_argument("node", type=int, help="its number, from 0")
    in_shell.add_argument("command", nargs=REMAINDER, help="what to run there instead of a shell")
    of_cut = command(cut)
    of_cut.add_argument("node", type=int, help="its number, from 0")
    of_cut.add_argument("--seconds", type=positive_float, default=5.0, help="for how long")
    for action in (status, down):
        command(action)
    of_tc = command(tc)
    of_tc.add_argument("--scenario", required=True, help="a file of configs/scenarios, or a path")
    of_tc.add_argument("--host", type=int, required=True, help="which of its hosts, from 0")
    of_tc.add_argument("--interface", default="eth0", help="of the real host")
    of_tc.add_argument("--addresses", help="of all hosts, in order, with commas; 10.0.0.1, 10.0.0.2, … by default")
    return parser.parse_args()


def _add_run_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--nodes", type=positive_int, help="how many; 2 by default")
    parser.add_argument("--ranks-per-node", type=positive_int, help="processes of each; 2 by default")
    parser.add_argument("--link-mbit", type=positive_float, help="what a node can send, in Mbit/s")
    parser.add_argument("--delay-ms", type=positive_float, help="of every link, one way, where the kernel has netem")
    parser.add_argument("--scenario", help="a file of configs/scenarios, or a path: uneven links")
    parser.add_argument("--launcher", choices=("torchrun", "slurm"), default="torchrun", help="what starts the ranks")
    parser.add_argument("--user", action="store_true", help="without privilege: shape within the processes instead")
    parser.add_argument("command", nargs=REMAINDER, help="-- SCRIPT.py ARGS, or -- -m MODULE ARGS")


def positive_float(text: str) -> float:
    """The argparse type of rates and times: a number above zero."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{value} is not a positive number")
    return value


if __name__ == "__main__":
    sys.argv[0] = "tools.emulator"
    options = parse_arguments()
    run_tool(lambda: options.action(options))
