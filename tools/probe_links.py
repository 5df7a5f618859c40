"""The ranks of `python -m tools.scheduler probe`: ping-pong and bulk messages between every pair of hosts."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from tools.command_line import run_tool
from tools.scheduler.measured_scenario import Measured, write_scenario

PINGS = 11
SMALLEST_BYTES, LARGEST_BYTES = 2**18, 2**30
TIMEOUT_S = 300


def rounds(hosts: int, one_at_a_time: bool) -> Iterator[list[tuple[int, int]]]:
    """Every pair of hosts once: as a tournament in which each host meets one other at a time, or pair by pair."""
    if one_at_a_time:
        yield from ([(a, b)] for a in range(hosts) for b in range(a + 1, hosts))
        return
    seats = [*range(hosts), *([-1] if hosts % 2 else [])]
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        pairs = zip(seats[:half], reversed(seats[half:]), strict=True)
        yield [(min(pair), max(pair)) for pair in pairs if -1 not in pair]
        seats = [seats[0], seats[-1], *seats[1:-1]]


class Link:
    """Messages between this rank and another, both of which call the same methods in the same order."""

    def __init__(self, other: int, device: torch.device, seconds: float) -> None:
        self.other, self.device, self.seconds = other, device, seconds
        self.first = dist.get_rank() < other

    def delay(self) -> float:
        """Seconds one way: half the shortest round trip."""
        token = torch.zeros(1, device=self.device)
        return min(self._round_trip(token) for _ in range(PINGS)) / 2

    def _round_trip(self, token: torch.Tensor) -> float:
        begin = time.perf_counter()
        for send in (self.first, not self.first):
            (dist.send if send else dist.recv)(token, self.other)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    def bandwidth(self, send: bool, delay: float) -> float:
        """bit/s in one direction, told by the sender: from the size on at which a message takes long enough."""
        size = SMALLEST_BYTES
        while True:
            seconds = self._timed_message(size, send) - 2 * delay
            enough = torch.tensor([float(seconds >= self.seconds or size >= LARGEST_BYTES)], device=self.device)
            (dist.send if send else dist.recv)(enough, self.other)
            if enough.item():
                return 8 * size / max(seconds, 1e-9)
            size *= 2

    def _timed_message(self, size: int, send: bool) -> float:
        message = torch.zeros(size, dtype=torch.uint8, device=self.device)
        done = torch.zeros(1, device=self.device)
        begin = time.perf_counter()
        (dist.send if send else dist.recv)(message, self.other)
        (dist.recv if send else dist.send)(done, self.other)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin


def measure(args: argparse.Namespace, device: torch.device) -> Measured:
    """What every host measured, on every rank."""
    members = _ranks_by_host(args.host_size)
    count = len(members)
    delay, bandwidth = np.zeros((count, count)), np.zeros((count, count))
    progress = tqdm(list(rounds(count, args.one_at_a_time)), desc="links", unit="round", disable=dist.get_rank() != 0)
    for pairs in progress:
        for a, b in pairs:
            _measure_pair(members[a][0], members[b][0], (a, b), delay, bandwidth, args, device)
        dist.barrier()
    for host, ranks in enumerate(members):
        bandwidth[host, host] = _inside(ranks, args, device)
    return Measured(_summed(delay), _summed(bandwidth), [len(ranks) for ranks in members])


def _ranks_by_host(host_size: int | None) -> list[list[int]]:
    names: list[object] = [None] * dist.get_world_size()
    name = socket.gethostname() if host_size is None else dist.get_rank() // host_size
    dist.all_gather_object(names, name)
    return [[rank for rank, other in enumerate(names) if other == host] for host in dict.fromkeys(names)]


def _measure_pair(
    first: int,
    second: int,
    place: tuple[int, int],
    delay: np.ndarray,
    bandwidth: np.ndarray,
    args: argparse.Namespace,
    device: torch.device,
) -> None:
    """Fill in what this rank, if it is one of the two, has measured: delay by the first, bandwidth by the sender."""
    rank = dist.get_rank()
    if rank not in (first, second):
        return
    link = Link(second if rank == first else first, device, args.seconds_per_link)
    one_way = link.delay()
    for sender, row, column in ((first, *place), (second, *reversed(place))):
        rate = link.bandwidth(rank == sender, one_way)
        if rank == sender:
            bandwidth[row, column], delay[row, column] = rate, one_way


def _inside(ranks: list[int], args: argparse.Namespace, device: torch.device) -> float:
    """bit/s between the first two ranks of a host, told by the first; 0 on other ranks, inf for a lone one."""
    rank = dist.get_rank()
    if rank not in ranks[:2]:
        return 0.0
    if len(ranks) == 1:
        return np.inf
    link = Link(ranks[1] if rank == ranks[0] else ranks[0], device, args.seconds_per_link)
    rate = link.bandwidth(rank == ranks[0], link.delay())
    return rate if rank == ranks[0] else 0.0


def _summed(values: np.ndarray) -> np.ndarray:
    """Every entry was measured by one rank and is 0 on the others."""
    gathered: list[np.ndarray | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, values)
    return np.sum(gathered, axis=0)


def main() -> None:
    """One rank of the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--seconds-per-link", type=float, required=True)
    parser.add_argument("--host-size", type=int)
    parser.add_argument("--one-at-a-time", action="store_true")
    args = parser.parse_args()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if args.backend == "nccl" else torch.device("cpu")
    dist.init_process_group(args.backend, timeout=timedelta(seconds=TIMEOUT_S))
    measured = measure(args, device)
    if dist.get_rank() == 0:
        write_scenario(args.out, measured, f"measured over {args.backend}, {dist.get_world_size()} ranks")
        print(f"{args.out}: {len(measured.num_devices)} hosts, {dist.get_world_size()} ranks")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    run_tool(main)
