"""Cyclic moves between the groups of a partition: the local search inside the genetic one.

A cycle moves a device from a start group to another, one from there to the next, and so on until a last one takes the
free place in the start group, so that every group keeps its size. Two measures of what a move gains are published.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

MOST_CYCLES = 8

# (labels [devices], one-hot labels [devices, groups]) -> (gain [devices, groups], rank of who is nominated [devices]).
Measure = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def fast_link_measure(activation_time: np.ndarray) -> Measure:
    """DT-FM's: who has the fastest link in its group leaves it, for that link serves a pipeline better.

    The cost of a group's gradients is set by its slowest member, which misses nothing.
    """
    without_self = activation_time.copy()
    np.fill_diagonal(without_self, 0.0)

    def measure(labels: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        together = labels[:, None] == labels
        np.fill_diagonal(together, False)
        own = np.where(together, activation_time, np.inf).min(axis=1, initial=np.inf)
        return without_self @ member / member.sum(axis=0) - own[:, None], -own

    return measure


def kernighan_lin_measure(activation_time: np.ndarray, gradient_time: np.ndarray) -> Measure:
    """The baseline after Kernighan and Lin: what the summed link times change by; any device may move."""
    difference = activation_time - gradient_time
    np.fill_diagonal(difference, 0.0)

    def measure(labels: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        toward = difference @ member
        gain = toward - toward[np.arange(len(labels)), labels][:, None]
        elsewhere = np.where(member > 0, -np.inf, gain)
        return gain, elsewhere.max(axis=1)

    return measure


@dataclass
class _State:
    """A partition in the middle of a search: labels, the same one-hot, and who has moved already."""

    labels: np.ndarray
    member: np.ndarray
    locked: np.ndarray

    def move(self, device: int, group: int) -> None:
        self.member[device, self.labels[device]] = 0.0
        self.member[device, group] = 1.0
        self.labels[device] = group


def improve(labels: np.ndarray, num_groups: int, measure: Measure) -> np.ndarray:
    """Up to ``MOST_CYCLES`` cycles of moves, of which the first so many are kept that gain most; int [devices]."""
    state = _State(labels.copy(), np.eye(num_groups)[labels], np.zeros(len(labels), dtype=bool))
    total, best_total, best = 0.0, 0.0, labels
    received: set[int] = set()
    for _ in range(MOST_CYCLES):
        gain, groups = _cycle(state, measure)
        if not groups:
            break
        total, received = total + gain, received | groups
        if total > best_total:
            best_total, best = total, state.labels.copy()
        if len(received) == num_groups:
            break
    return best


def _cycle(state: _State, measure: Measure) -> tuple[float, set[int]]:
    """One cycle, made in ``state``: what it gains, and the groups that received a device; none if no move is left."""
    start, moves, closings = None, [], []
    visited: set[int] = set()
    while start is None or len(visited) < state.member.shape[1]:
        gain, rank = measure(state.labels, state.member)
        nominees = _nominees(state, rank)
        if start is None:
            start = _best_start(state, gain, nominees)
        here = moves[-1][2] if moves else start
        device = nominees[here] if here is not None else -1
        if device < 0:
            break
        closings.append((sum(move[3] for move in moves) + gain[device, start], device) if moves else (-np.inf, device))
        visited.add(here)
        target = _best_target(gain[device], visited - {start} if moves else visited)
        if target is None or target == start:
            break
        moves.append((device, here, target, gain[device, target]))
        state.move(device, target)
        state.locked[device] = True
    return _keep_best_prefix(state, start, moves, closings)


def _nominees(state: _State, rank: np.ndarray) -> np.ndarray:
    """The unlocked device of highest rank in each group; -1 where all are locked."""
    ranks = np.where((state.member > 0) & ~state.locked[:, None], rank[:, None], -np.inf)
    return np.where(np.isneginf(ranks.max(axis=0)), -1, ranks.argmax(axis=0))


def _best_start(state: _State, gain: np.ndarray, nominees: np.ndarray) -> int | None:
    """The group whose nominee gains most by leaving it."""
    best = [
        np.where(np.arange(len(nominees)) == group, -np.inf, gain[device]).max() if device >= 0 else -np.inf
        for group, device in enumerate(nominees)
    ]
    return None if np.isneginf(max(best)) else int(np.argmax(best))


def _best_target(gain: np.ndarray, closed: set[int]) -> int | None:
    open_gain = gain.copy()
    open_gain[list(closed)] = -np.inf
    return None if np.isneginf(open_gain.max()) else int(open_gain.argmax())


def _keep_best_prefix(
    state: _State, start: int | None, moves: list[tuple], closings: list[tuple[float, int]]
) -> tuple[float, set[int]]:
    """Undo the moves after the prefix that gains most with its closing move, and make that one."""
    if len(closings) < 2:
        for device, here, _, _ in moves:
            state.move(device, here)
        return 0.0, set()
    last = max(range(1, len(closings)), key=lambda index: closings[index][0])
    for device, here, _, _ in reversed(moves[last:]):
        state.move(device, here)
        state.locked[device] = False
    gain, device = closings[last]
    state.move(device, start)
    state.locked[device] = True
    return gain, {move[2] for move in moves[:last]} | {start}
