"""Seconds of one exchange between two nodes over gloo: each way alone, both, with receives posted first, all-to-alls.

`python -m tools.emulator run --scenario emulated_two_regions -- tools/bench_exchange.py`: rank 0 and the first rank of
the second half. What takes as long as both ways together was sent in turns.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from torch import Tensor

from sdp4bit_patches.all_to_all import AllToAll
from tools.command_line import ToolArgumentParser, positive_int, run_tool

# What a rank does with its message, the space for the other's, and its place among the two.
Exchange = Callable[[Tensor, Tensor, int], None]


def posted(*orders: list[str]) -> Exchange:
    """By place, the operations in the order in which Megatron's pipeline posts them."""

    def exchange(message: Tensor, space: Tensor, place: int) -> None:
        kinds = {"send": (dist.isend, message), "receive": (dist.irecv, space)}
        other = other_rank(place)
        for work in dist.batch_isend_irecv([dist.P2POp(*kinds[operation], other) for operation in orders[place]]):
            work.wait()

    return exchange


def other_rank(place: int) -> int:
    """The rank that the one in `place` exchanges with."""
    return 0 if place else dist.get_world_size() // 2


def exchanges(group: dist.ProcessGroup) -> dict[str, Exchange]:
    """What is measured; `group` has the two ranks."""

    def splits(place: int, elements: int) -> list[int]:
        return [elements, 0] if place else [0, elements]

    def of_torch(message: Tensor, space: Tensor, place: int) -> None:
        parts = splits(place, message.numel())
        dist.all_to_all_single(space, message, parts, parts, group=group)

    def of_ours(message: Tensor, space: Tensor, place: int) -> None:
        parts = splits(place, message.numel())
        AllToAll(space, parts, group).send(message, parts).wait()

    both = ["send", "receive"]
    return {
        "one way": posted(["send"], ["receive"]),
        "the other way": posted(["receive"], ["send"]),
        "both, sends posted first": posted(both, both),
        "both, receives posted first": posted(both[::-1], both[::-1]),
        "both, torch's all-to-all": of_torch,
        "both, all_to_all.py": of_ours,
    }


def seconds_of(exchange: Exchange, num_bytes: int, repeats: int) -> float:
    """Median over exchanges in a row, each as long as the slower of the two ranks; the first is not counted."""
    message, space = torch.zeros(2, num_bytes, dtype=torch.uint8)
    half = dist.get_world_size() // 2
    place, is_away = divmod(dist.get_rank(), half)
    taken = []
    for _ in range(1 + repeats):
        dist.barrier()
        begin = time.perf_counter()
        if not is_away:
            exchange(message, space, place)
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
    group = dist.new_group([0, dist.get_world_size() // 2])
    for name, exchange in exchanges(group).items():
        seconds = seconds_of(exchange, args.bytes, args.repeats)
        if dist.get_rank() == 0:
            print(f"{name:30}{seconds:8.3f} s", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    run_tool(main)
