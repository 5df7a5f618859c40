"""Measure latency and bandwidth between all hosts of a running cluster, and write them as a scenario file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.child_process import run_python
from tools.command_line import positive_int

WORKER = Path(__file__).resolve().parents[1] / "probe_links.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `probe`."""
    parser.add_argument("--out", type=Path, required=True, help="scenario file NAME.toml to write, on rank 0's host")
    parser.add_argument("--backend", choices=("gloo", "nccl"), default="gloo", help="of torch.distributed")
    parser.add_argument("--host-size", type=positive_int, help="ranks of a host; told from the host names by default")
    parser.add_argument("--seconds-per-link", type=float, default=0.5, help="a message takes at least so long")
    parser.add_argument("--one-at-a-time", action="store_true", help="one pair of hosts after the other")
    parser.add_argument("torchrun", nargs="*", help="torchrun's own words after `--`, the same on every host")


def run(args: argparse.Namespace) -> None:
    """Start this host's ranks and wait for them.

    Raises:
        ValueError: a flag without meaning.
    """
    if args.out.suffix != ".toml":
        raise ValueError(f"--out {args.out}: a scenario file is called NAME.toml")
    if not args.seconds_per_link > 0:
        raise ValueError(f"--seconds-per-link {args.seconds_per_link:g}: use a positive number of seconds")
    words = ["-m", "torch.distributed.run", *(args.torchrun or ["--standalone", "--nproc-per-node", "1"])]
    words += [str(WORKER), "--out", str(args.out), "--backend", args.backend]
    words += ["--seconds-per-link", str(args.seconds_per_link)]
    words += ["--host-size", str(args.host_size)] if args.host_size else []
    words += ["--one-at-a-time"] if args.one_at_a_time else []
    sys.exit(run_python(*words))
