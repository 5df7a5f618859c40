"""Seconds of one exchange between two nodes over gloo: each way alone, both, with receives posted first, all-to-alls.

`python -m tools.emulator run --scenario emulated_two_regions -- tools/bench_exchange.py`: rank 0 and the first rank of
the second half. What takes as long as both ways together was sent in turns. Beside it, for how long all processors of
the machine worked for a megabyte that was sent: meaningful from megabytes on, with nothing else running. The last row
is what the kernel takes of that by itself: a thread sends and another receives, over one connection without gloo.
"""

from __future__ import annotations

import functools
import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from torch import Tensor

from sdp4bit_patches.all_to_all import AllToAll
from tools.command_line import ToolArgumentParser, positive_int, run_tool
from tools.emulator.counters import processor_seconds

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
        "both, sockets without gloo": of_sockets(group),
    }


def connect(group: dist.ProcessGroup) -> socket.socket:
    """A connection between the two ranks of `group`, to the address by which the ranks of the job have met."""
    address: list[Any] = [None]
    if group.rank() == 1:
        dist.broadcast_object_list(address, group=group, group_src=0)
        return socket.create_connection(address[0])
    with socket.create_server((os.environ["MASTER_ADDR"], 0)) as server:
        dist.broadcast_object_list([server.getsockname()], group=group, group_src=0)
        return server.accept()[0]


def of_sockets(group: dist.ProcessGroup) -> Exchange:
    """Both ways over one connection, which the first exchange makes."""
    connected = functools.cache(functools.partial(connect, group))

    def exchange(message: Tensor, space: Tensor, _place: int) -> None:
        sender = threading.Thread(target=connected().sendall, args=(memoryview(message.numpy()),))
        sender.start()
        awaited = memoryview(space.numpy())
        while awaited:
            awaited = awaited[connected().recv_into(awaited) :]
        sender.join()

    return exchange


class Cost(NamedTuple):
    """Of one exchange: its seconds, and for how long all processors of the machine worked meanwhile."""

    seconds: float
    processor_seconds: float


def cost_of(exchange: Exchange, num_bytes: int, repeats: int) -> Cost:
    """Of exchanges in a row, each as long as the slower of the two ranks, the median; of the processors, the mean."""
    message, space = torch.zeros(2, num_bytes, dtype=torch.uint8)
    place, is_away = divmod(dist.get_rank(), dist.get_world_size() // 2)

    def seconds() -> float:
        dist.barrier()
        begin = time.perf_counter()
        if not is_away:
            exchange(message, space, place)
        slowest = torch.tensor(time.perf_counter() - begin)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        return slowest.item()

    seconds()  # connects
    worked = processor_seconds()
    taken = [seconds() for _ in range(repeats)]
    return Cost(statistics.median(taken), (processor_seconds() - worked) / repeats)


def main() -> None:
    """One rank; the first prints."""
    parser = ToolArgumentParser(__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=positive_int, default=131_072, help="of one message")
    parser.add_argument("--repeats", type=positive_int, default=9, help="counted exchanges of each kind")
    args = parser.parse_args()
    dist.init_process_group("gloo")
    group = dist.new_group([0, dist.get_world_size() // 2])
    for name, exchange in exchanges(group).items():
        cost = cost_of(exchange, args.bytes, args.repeats)
        sent = args.bytes * (2 if name.startswith("both") else 1) / 1e6
        if dist.get_rank() == 0:
            work = cost.processor_seconds * 1e3 / sent
            print(f"{name:30}{cost.seconds:8.3f} s{work:8.2f} ms of the processors a MB", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    run_tool(main)
