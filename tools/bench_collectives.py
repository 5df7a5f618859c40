"""Measure the quantized collectives against plain ones, interleaved in one run: several processes on this machine.

``python tools/bench_collectives.py`` starts the processes itself, on gloo; `--node-size` ranks in a row stand for a
node. The rows take turns; a ratio is the median over rounds of a peer's time to ours in the same round, where a time is
that of the slowest rank. The bytes that ours send are counted as they are handed to torch.distributed, and have to be
what the formulas of sdp4bit_patches/wire.py say.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

# Run as a file, Python looks for modules beside it; the package stands in the folder above.
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
import torch.distributed as dist
from tqdm import tqdm

from sdp4bit_patches import wire
from sdp4bit_patches.codec import best_instruction_set
from sdp4bit_patches.collectives import LinkBytes
from sdp4bit_patches.config import PRESETS, CommConfig
from sdp4bit_patches.topology import Topology
from tools.child_process import run_python, torchrun
from tools.collective_rows import OURS, Peer, Quantized, Tensors, all_gather_peers, reduce_scatter_peers
from tools.command_line import ToolArgumentParser, positive_int, run_tool
from tools.link_bytes import sent_bytes

# Under the names that megatron-core calls them by, which torch 2.13 is about to replace.
warnings.filterwarnings("ignore", message=r"`torch.distributed.\w+` is deprecated", category=FutureWarning)


def measure(rows: list[Peer], num_rounds: int) -> list[list[float]]:
    """Seconds of every row in every round, each that of the slowest rank; every round begins with another row."""
    shown = dist.get_rank() == 0 and sys.stderr.isatty()
    seconds = torch.zeros(len(rows), num_rounds)
    for row in rows:
        row.run()
    for number in tqdm(range(num_rounds), desc="rounds", disable=not shown):
        for turn in range(len(rows)):
            index = (number + turn) % len(rows)
            dist.barrier()
            begun = time.perf_counter()
            rows[index].run()
            seconds[index, number] = time.perf_counter() - begun
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
    return seconds.tolist()


def results(rows: list[Peer], seconds: list[list[float]]) -> list[dict[str, Any]]:
    """A row of the table each."""
    own = {row.kind: times for row, times in zip(rows, seconds, strict=True) if row.name == OURS[row.kind]}
    table = []
    for row, times in zip(rows, seconds, strict=True):
        ratio = statistics.median(other / mine for other, mine in zip(times, own[row.kind], strict=True))
        entry = {"kind": row.kind, "name": row.name, "ms": statistics.median(times) * 1e3, "ratio": ratio}
        table.append(entry | {"at_least": row.at_least})
    return table


def formula(config: CommConfig, topology: Topology, shard: int) -> dict[str, LinkBytes]:
    """What wire.py says that a rank sends, for nodes of equal size and shards of `shard` elements."""
    nodes, local = len(topology.nodes), len(topology.nodes[0])
    multiple = max(config.gq_group_size_intra, config.gq_group_size_inter)
    [*pieces] = wire.split_shards([shard], config.gradient_alltoall_pipeline, multiple)
    intra, inter = (
        sum(form.num_bytes(piece.num_elements) for [piece] in pieces)
        for form in (config.intra_format, config.inter_format)
    )
    weights = config.weight_format.num_bytes(shard)
    return {
        "reduce-scatter": LinkBytes((local - 1) * nodes * intra, (nodes - 1) * inter),
        "all-gather": LinkBytes((local - 1) * nodes * weights, (nodes - 1) * weights),
    }


def count_bytes(quantized: Quantized, node_size: int) -> list[dict[str, Any]]:
    """Bytes of one run of each, counted and by formula, and bits that an element costs between nodes.

    Raises:
        ValueError: the two differ.
    """
    expected = formula(quantized.config, quantized.topology, quantized.tensors.shard)
    crossing = len(quantized.topology.nodes) - 1
    rows = []
    for kind, run in (("reduce-scatter", quantized.run_reduce_scatter), ("all-gather", quantized.run_all_gather)):
        with sent_bytes(node_size) as sent:
            run()
        counted = LinkBytes(sent.intra, sent.inter)
        if counted != expected[kind]:
            raise ValueError(f"{OURS[kind]} sends {counted}, but wire.py says {expected[kind]}")
        bits = 8 * counted.inter / (crossing * quantized.tensors.shard)
        limit = {"reduce-scatter": 4.27, "all-gather": 4.02}[kind]
        row = {"kind": kind, "intra_bytes": counted.intra, "inter_bytes": counted.inter, "num_calls": sent.num_calls}
        rows.append(row | {"inter_bits_per_element": bits, "at_most": limit})
    return rows


def print_results(header: dict[str, Any], table: list[dict[str, Any]], traffic: list[dict[str, Any]]) -> None:
    """Both tables."""
    print(", ".join(f"{key} {value}" for key, value in header.items()))
    print(f"\n{'':50}{'ms':>9}  {'ours is faster by':>18}  at least")
    for row in table:
        name = OURS[row["kind"]] if row["name"] == OURS[row["kind"]] else f"  {row['name']}"
        ratio = "" if row["name"] == OURS[row["kind"]] else f"{row['ratio']:.2f}x"
        missed = row["at_least"] is not None and row["ratio"] < row["at_least"]
        at_least = "" if row["at_least"] is None else f"{row['at_least']:.1f}x{' MISSED' if missed else ''}"
        print(f"{name:50}{row['ms']:9.1f}  {ratio:>18}  {at_least}".rstrip())
    head = f"{'bytes sent by a rank, counted':36}{'in its node':>14}{'to other nodes':>16}{'bits an element':>17}"
    print(f"\n{head}  at most")
    for row in traffic:
        sizes = f"{row['intra_bytes']:14,}{row['inter_bytes']:16,}"
        missed = " MISSED" if row["inter_bits_per_element"] > row["at_most"] else ""
        print(f"{OURS[row['kind']]:36}{sizes}{row['inter_bits_per_element']:17.4f}  {row['at_most']:.2f}{missed}")


def run_rank(args: Namespace) -> None:
    """One process of the measurement."""
    dist.init_process_group("gloo")
    preset = PRESETS["sdp4bit"] | {"node_size": args.node_size, "gradient_alltoall_pipeline": args.chunks}
    tensors = Tensors(args.mebibytes * 2**18)
    quantized = Quantized(tensors, CommConfig(**preset, quantization_rounding=args.rounding))
    traffic = count_bytes(quantized, args.node_size)
    rows = [Peer("reduce-scatter", OURS["reduce-scatter"], quantized.run_reduce_scatter)]
    rows += [*reduce_scatter_peers(tensors), Peer("all-gather", OURS["all-gather"], quantized.run_all_gather)]
    rows += all_gather_peers(tensors)
    num_rounds = 9 if args.quick else args.rounds
    table = results(rows, measure(rows, num_rounds))
    if dist.get_rank() == 0:
        header = {"processes": dist.get_world_size(), "nodes": quantized.topology.description, "backend": "gloo"}
        header |= {"MiB of fp32": args.mebibytes, "rounds": num_rounds, "chunks": args.chunks}
        header |= {"rounding": args.rounding, "codec": best_instruction_set(), "torch": torch.__version__}
        print_results(header, table, traffic)
        if args.json:
            Path(args.json).write_text(json.dumps(header | {"rows": table, "traffic": traffic}, indent=1) + "\n")
    dist.barrier()
    dist.destroy_process_group()


def launch(args: Namespace) -> None:
    """Start the ranks and pass their exit code on."""
    if args.nproc_per_node % args.node_size:
        raise ValueError(f"--nproc-per-node {args.nproc_per_node} is not a multiple of --node-size {args.node_size}")
    sys.exit(run_python(*torchrun(args.nproc_per_node), __file__, *sys.argv[1:]))


def parse_arguments() -> Namespace:
    """The command line."""
    parser = ToolArgumentParser(__doc__.splitlines()[0])
    parser.add_argument("--nproc-per-node", type=positive_int, default=4, help="processes")
    parser.add_argument("--node-size", type=positive_int, default=2, help="processes that stand for a node")
    parser.add_argument("--mebibytes", type=positive_int, default=64, help="size of the bucket in fp32")
    parser.add_argument("--chunks", type=positive_int, default=1, help="as --gradient-alltoall-pipeline")
    parser.add_argument("--rounding", choices=("stochastic", "nearest"), default="stochastic", help="of all codes")
    parser.add_argument("--rounds", type=positive_int, default=21, help="times that every row is measured")
    parser.add_argument("--quick", action="store_true", help="9 rounds")
    parser.add_argument("--json", help="write the rows to this file, too")
    return parser.parse_args()


if __name__ == "__main__":
    run_tool(lambda: (run_rank if "RANK" in os.environ else launch)(parse_arguments()))
