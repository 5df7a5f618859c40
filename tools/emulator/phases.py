"""Traffic by phase: where a run stands is told by what rank 0 prints, in Megatron's words."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from tools.emulator.counters import Traffic

MIB = 2**20
_ITERATION = re.compile(r"iteration\s+(\d+)/\s*\d+")
_OTHERS = {"validation": re.compile(r"validation loss"), "checkpoint": re.compile(r"saved|successfully saved")}
_TO_OTHER_NODES = re.compile(r"(a step sends from this rank|behind the next step).* and ([\d.]+) MiB to other nodes")


@dataclass(frozen=True)
class Phase:
    """What every node sent while `name` lasted, which was `num_iterations` training steps (0: something else)."""

    name: str
    sent: list[Traffic]
    num_iterations: int = 0


class PhaseCounter:
    """Follows rank 0's lines; `sent()` gives what every node has sent so far."""

    def __init__(self, sent: Callable[[], list[Traffic]]) -> None:
        self._sent, self._before = sent, sent()
        self._iteration: int | None = None
        self._predicted: list[float] = []
        self.phases: list[Phase] = []

    def line(self, text: str) -> None:
        """One line: it may end a phase, or say what a step sends."""
        iteration, predicted = _ITERATION.search(text), _TO_OTHER_NODES.search(text)
        if predicted:
            self._predicted.append(float(predicted[2]) * MIB)
        elif iteration:
            self._end_of_iterations(int(iteration[1]))
        elif self._iteration is not None:
            for name, pattern in _OTHERS.items():
                if pattern.search(text):
                    self._end(name)

    def _end_of_iterations(self, number: int) -> None:
        if self._iteration is None:
            self._end(f"start-up, to iteration {number}")
        else:
            self._end(f"iterations {self._iteration + 1}-{number}", number - self._iteration)
        self._iteration = number

    def _end(self, name: str, num_iterations: int = 0) -> None:
        now = self._sent()
        sent = [after - before for after, before in zip(now, self._before, strict=True)]
        self.phases.append(Phase(name, sent, num_iterations))
        self._before = now

    def finish(self) -> None:
        """The run is over."""
        self._end("the rest" if self._iteration is not None else "the whole run")

    @property
    def predicted_bytes(self) -> float | None:
        """What wire.py says that rank 0 sends to other nodes in a step; None where the run has not said it."""
        return sum(self._predicted) if self._predicted else None

    def per_iteration(self) -> list[float] | None:
        """Payload that every node sent in a step, mean over the counted iterations; None where none was counted."""
        steps = sum(phase.num_iterations for phase in self.phases)
        if not steps:
            return None
        counted = [phase.sent for phase in self.phases if phase.num_iterations]
        return [sum(sent.payload_bytes for sent in node) / steps for node in zip(*counted, strict=True)]

    def table(self, ranks_by_node: list[int]) -> str:
        """What people read: MiB by phase and node, and wire.py's prediction beside the kernel's count."""
        head = [f"{'MiB sent to other nodes, counted by the kernel':48}"]
        rows = ["".join(head + [f"{f'node{number}':>12}" for number in range(len(ranks_by_node))])]
        for phase in self.phases:
            rows.append(f"  {phase.name:46}" + "".join(f"{sent.num_bytes / MIB:12.3f}" for sent in phase.sent))
        measured = self.per_iteration()
        if measured is not None:
            rows.append(f"{'a step, without packet headers':48}" + "".join(f"{n / MIB:12.3f}" for n in measured))
            rows += self._beside_prediction(measured, ranks_by_node)
        return "\n".join(rows)

    def _beside_prediction(self, measured: list[float], ranks_by_node: list[int]) -> list[str]:
        if self.predicted_bytes is None:
            return ["  (nothing is compressed: how much gloo sends is not predicted)"]
        if not self.predicted_bytes:
            return ["  (nothing that is compressed leaves its node: how much gloo sends is not predicted)"]
        if len(set(ranks_by_node)) > 1:
            return [f"  (wire.py says {self.predicted_bytes / MIB:.3f} MiB of rank 0; nodes differ in their ranks)"]
        predicted = [ranks * self.predicted_bytes for ranks in ranks_by_node]
        differences = [f"{got / said - 1:+12.1%}" for got, said in zip(measured, predicted, strict=True)]
        row = f"{'  wire.py says':48}" + "".join(f"{n / MIB:12.3f}" for n in predicted)
        return [row, f"{'  difference':48}" + "".join(differences)]
