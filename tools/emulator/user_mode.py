"""`run --user`: torchrun on this machine alone, every rank of it shaped by tools/emulator/token_bucket.py."""

from __future__ import annotations

import json
import os
import runpy
import socket
import sys
import tempfile
from pathlib import Path

from tools.child_process import run_python, torchrun
from tools.emulator.shaping import link_classes
from tools.scenario_files import Scenario

_VARIABLE = "SDP4BIT_EMULATOR_LINKS"
MIB = 2**20


def run_user_mode(scenario: Scenario, words: list[str]) -> int:
    """Run `words` on as many processes as the scenario has devices; the exit code is torchrun's."""
    if scenario.delay.any():
        print("emulator: --user has rates alone: delays are left out", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="emulator-") as folder:
        description = {"folder": folder, "node_of_rank": scenario.host_of_device.tolist()}
        description["classes"] = [
            [[link.bandwidth, list(link.hosts)] for link in link_classes(scenario, host)]
            for host in range(len(scenario.hosts))
        ]
        os.environ[_VARIABLE] = json.dumps(description)
        code = run_python(*torchrun(scenario.num_devices), "-m", "tools.emulator.user_mode", *words)
        print("MiB sent to other nodes, counted in the processes")
        for host in range(len(scenario.hosts)):
            sent = sum(link.sent_bytes for link in set(_links(description, host)) - {None})
            print(f"  node{host}{sent / MIB:12.3f}", flush=True)
    return code


def _links(description: dict, host: int) -> list:
    """By node: the link from `host` to it; nodes of one class share theirs."""
    from tools.emulator.token_bucket import SharedLink

    links: list[SharedLink | None] = [None] * len(description["classes"])
    for number, (bandwidth, others) in enumerate(description["classes"][host]):
        shared = SharedLink(Path(description["folder"]) / f"link_{host}_{number}", bandwidth)
        for other in others:
            links[other] = shared
    return links


def main() -> None:
    """One rank: shape torch.distributed, name the node, then be the script."""
    from tools.emulator.token_bucket import shape_collectives

    description = json.loads(os.environ[_VARIABLE])
    node = description["node_of_rank"][int(os.environ["RANK"])]
    socket.gethostname = lambda: f"node{node}"
    shape_collectives(_links(description, node), description["node_of_rank"])
    is_module = sys.argv[1] == "-m"
    sys.argv = sys.argv[2:] if is_module else sys.argv[1:]
    if is_module:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
