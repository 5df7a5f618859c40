"""Seconds of one exchange between pipeline stages over gloo: each way alone, both, and with receives posted first.

`python -m tools.emulator run --scenario emulated_two_regions -- tools/bench_exchange.py`: rank 0 and the first rank of
the second half. What takes as long as both ways together was sent in turns.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist

from tools.command_line import ToolArgumentParser, positive_int, run_tool

# What is measured -> what the two ranks do, in order.
EXCHANGES = {
    "one way": (["send"], ["receive"]),
    "the other way": (["receive"], ["send"]),
    "both, sends posted first": (["send", "receive"], ["send", "receive"]),
    "both, receives posted first": (["receive", "send"], ["receive", "send"]),
}


def exchange(message: torch.Tensor, space: torch.Tensor, operations: list[str], other: int) -> None:
    """Post the operations in order, as Megatron does, and wait for all of them."""
    kinds = {"send": (dist.isend, message), "receive": (dist.irecv, space)}
    for work in dist.batch_isend_irecv([dist.P2POp(*kinds[operation], other) for operation in operations]):
        work.wait()


def seconds_of(num_bytes: int, operations: tuple[list[str], list[str]], repeats: int) -> float:
    """Median over exchanges in a row, each as long as the slower of the two ranks; the first is not counted."""
    message, space = torch.zeros(2, num_bytes, dtype=torch.uint8)
    half = dist.get_world_size() // 2
    taken = []
    for _ in range(1 + repeats):
        dist.barrier()
        begin = time.perf_counter()
        if dist.get_rank() % half == 0:
            second = dist.get_rank() == half
            exchange(message, space, operations[second], 0 if second else half)
        slowest = torch.tensor(time.perf_counter() - begin)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        taken.append(slowest.item())
    return statistics.median(taken[1:])


def main() -> None:
    """One rank; the first prints."""
    parser = ToolArgumentParser(__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=positive_int, default=131_072, help="of one message")
    parser.add_argument("--repeats", type=positive_int, default=9, help="counted exchanges of each kind")
    args = parser.parse_args()
    dist.init_process_group("gloo")
    for name, operations in EXCHANGES.items():
        seconds = seconds_of(args.bytes, operations, args.repeats)
        if dist.get_rank() == 0:
            print(f"{name:30}{seconds:8.3f} s", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    run_tool(main)
