"""What the low-bandwidth experiment has to show, and whether it did."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import bootstrap, trim_mean

Row = dict[str, Any]
# Rows of one cell, whose steps are held against each other.
Pair = tuple[Row, Row]
# Link rates (Mbit/s) that the collectives are judged at, and the one at which data-parallel traffic dominates.
COLLECTIVE_RATES, SLOWEST = {200, 1000}, 200
# Peers of tools/collective_rows.py -> by how much ours has to be faster.
FASTER = {
    "fp32 all_to_all + local sum": 6.0,
    "bf16 all_to_all + local fp32 sum": 3.0,
    "bfloat16 all_gather_into_tensor": 3.0,
}
STEP_TOLERANCE = 0.03
# The share of neighbouring steps at either end that does not count: stalls.
CUT_OFF = 0.1
# The schemes whose steps are held against SDP4Bit's, in these words.
JUDGED = {
    "duo4bit": "DUO4Bit's step, compute exceeds its slow sync",
    "duo4bit_adaptive": "DUO4Bit's step with the adaptive policy",
}
BYTES_TOLERANCE = 0.03
LOSS_TOLERANCE = 0.003
# The simulator has to be so near to so many configurations of scheme, link rate and accumulation.
SIMULATOR_TOLERANCE, SIMULATED = 0.15, 12
# Losses that are compared: the mean of the last so many steps that all schemes have made.
LOSS_STEPS = 8


@dataclass(frozen=True)
class Verdict:
    """A number that is demanded, beside the one that was measured.

    is_timed: another machine has another.
    measured_besides: what else was measured that may be why it does not hold.
    """

    what: str
    demanded: str
    measured: str
    holds: bool
    is_timed: bool = True
    measured_besides: str = ""


def judge(collectives: list[Row], steps: list[Row]) -> list[Verdict]:
    """Every demand of which something was measured."""
    return [*_collectives(collectives), *_steps(steps), *_duo(steps), *_simulator(steps), *_bytes(steps)]


def _collectives(rows: list[Row]) -> Iterator[Verdict]:
    for row in rows:
        demanded = FASTER.get(row["name"])
        if demanded and row["link_mbit"] in COLLECTIVE_RATES:
            what = f"{row['link_mbit']:g} Mbit/s: quantized {row['kind']} against {row['name']}"
            yield Verdict(what, f"≥ {demanded:g}x", f"{row['ratio']:.2f}x", row["ratio"] >= demanded)


class Cell(NamedTuple):
    """What the schemes that are compared have in common."""

    link_mbit: float
    seq_length: int
    accumulation: int
    device_ms: float

    @property
    def work(self) -> tuple[float, int]:
        """By which cells of one link rate are ordered: what there is to compute."""
        return self.device_ms, self.seq_length * self.accumulation

    @property
    def shape_words(self) -> str:
        """The shape, for people."""
        device = f", device {self.device_ms:g} ms" if self.device_ms else ""
        return f"sequence {self.seq_length}, accumulation {self.accumulation}{device}"

    @property
    def words(self) -> str:
        """The cell, for people."""
        return f"{self.link_mbit:g} Mbit/s, {self.shape_words}"


def cell_of(row: Row) -> Cell:
    """The cell that a row is in."""
    return Cell(row["link_mbit"], row["seq_length"], row["accumulation"], row["device_ms"])


def cells(steps: list[Row]) -> dict[Cell, dict[str, Row]]:
    """Rows by cell and scheme."""
    table: dict[Cell, dict[str, Row]] = {}
    for row in steps:
        table.setdefault(cell_of(row), {})[row["scheme"]] = row
    return table


def _logarithms(pairs: tuple[Pair, ...]) -> np.ndarray:
    """[blocks, steps of one]: of neighbouring steps, the logarithm of one row's time to the other's; what one has made
    more is left out."""
    blocks: list[list[float]] = []
    for row, other in pairs:
        steps = [math.log(mine / its) for mine, its in zip(row["steps_ms"], other["steps_ms"], strict=False)]
        length = row["steps_per_block"]
        blocks += [steps[begin : begin + length] for begin in range(0, len(steps), length)]
    return np.array(blocks)


def ratio(*pairs: Pair) -> float:
    """Geometric mean over the neighbouring steps of all `pairs` of rows, of the first one's time to the second one's,
    `CUT_OFF` of them left out at either end.

    Steps differ by a tenth, and not by outliers: a median would take half as many steps again for the same certainty.
    """
    return math.exp(trim_mean(_logarithms(pairs), CUT_OFF, axis=None))


def ratio_interval(*pairs: Pair) -> tuple[float, float]:
    """Between which values nine of ten such means lie when the blocks are drawn anew from those that were measured:
    what slows the machine lasts longer than a step, so steps of a block are no independent draws."""
    blocks = _logarithms(pairs)

    def mean(drawn: np.ndarray, axis: int) -> np.ndarray:
        return trim_mean(np.take(blocks, drawn, axis=0).reshape(*drawn.shape[:axis], -1), CUT_OFF, axis=axis)

    found = bootstrap((np.arange(len(blocks)),), mean, confidence_level=0.9, method="percentile", rng=0)
    low, high = np.exp(found.confidence_interval)
    return float(low), float(high)


def ratio_words(*pairs: Pair) -> str:
    """A ratio that is judged, and its interval in brackets; a single block has none."""
    if len(_logarithms(pairs)) == 1:
        return f"{ratio(*pairs):.3f} (one block)"
    low, high = ratio_interval(*pairs)
    return f"{ratio(*pairs):.3f} ({low:.3f} – {high:.3f})"


def loss(row: Row, rows: dict[str, Row]) -> float:
    """Mean training loss of the last steps that all schemes of a cell have made."""
    common = min(len(other["losses"]) for other in rows.values())
    return statistics.fmean(row["losses"][max(common - LOSS_STEPS, 0) : common])


def _steps(steps: list[Row]) -> Iterator[Verdict]:
    """At the slowest rate, the shape with the least to compute: there the traffic dominates."""
    slowest = [key for key, rows in cells(steps).items() if key.link_mbit == SLOWEST and "baseline" in rows]
    if not slowest:
        return
    key = min(slowest, key=lambda key: key.work)
    rows = cells(steps)[key]
    for other, demanded in (("baseline", 4.0), ("fp32_exchange", 3.0)):
        times = ratio((rows[other], rows["sdp4bit"]))
        what = f"{key.words}: SDP4Bit's step against {other}'s"
        yield Verdict(what, f"≥ {demanded:g}x", f"{times:.2f}x", times >= demanded)
    difference = loss(rows["sdp4bit"], rows) / loss(rows["baseline"], rows) - 1
    what = f"{key.words}: SDP4Bit's loss against the baseline's"
    yield Verdict(what, f"± {LOSS_TOLERANCE:.1%}", f"{difference:+.2%}", abs(difference) <= LOSS_TOLERANCE)


def _duo(steps: list[Row]) -> Iterator[Verdict]:
    """By shape, over its link rates: what a hidden second sync takes of a step does not depend on the link, and single
    cells are not known well enough."""
    shapes: dict[str, list[dict[str, Row]]] = {}
    for key, rows in cells(steps).items():
        shapes.setdefault(key.shape_words, []).append(rows)
    for shape_words, shape in shapes.items():
        for scheme, what in JUDGED.items():
            pairs = [(rows[scheme], rows["sdp4bit"]) for rows in shape if scheme in rows and _is_judged(rows[scheme])]
            if pairs:
                rates = ", ".join(f"{row['link_mbit']:g}" for row, _ in pairs)
                yield _within(f"{rates} Mbit/s, {shape_words}: {what}", pairs)


def _is_judged(row: Row) -> bool:
    """A second sync in every step may cost time where there is nothing to hide it."""
    return row["scheme"] != "duo4bit" or is_hidden(row)


def _within(what: str, pairs: list[Pair]) -> Verdict:
    holds = ratio(*pairs) <= 1 + STEP_TOLERANCE
    work = statistics.fmean(row["processor_ms"] - other["processor_ms"] for row, other in pairs)
    words = f"{work:+.0f} ms of work for all cores a step"
    return Verdict(what, f"≤ {1 + STEP_TOLERANCE:.2f} of SDP4Bit's", ratio_words(*pairs), holds, measured_besides=words)


def is_hidden(row: Row) -> bool:
    """Whether compute exceeds the slow sync, as the published table says."""
    return row["compute_ms"] > row["duo_slow_ms"]


def _simulator(steps: list[Row]) -> Iterator[Verdict]:
    """Predictions of rows that the simulator was not anchored on."""
    errors = [
        row["simulated_ms"] / row["step_ms"] - 1 for row in steps if row.get("simulated_ms") and not row["is_anchor"]
    ]
    if not errors:
        return
    near = sum(abs(error) <= SIMULATOR_TOLERANCE for error in errors)
    worst = max(errors, key=abs)
    what = f"steps that the simulator predicts within {SIMULATOR_TOLERANCE:.0%}, of {len(errors)}; the worst one"
    yield Verdict(what, f"≥ {SIMULATED}", f"{near}; {worst:+.1%}", near >= SIMULATED)


def _bytes(steps: list[Row]) -> Iterator[Verdict]:
    measured = [row["node_bytes"] / row["predicted_bytes"] - 1 for row in steps if row["predicted_bytes"]]
    if measured:
        worst = max(measured, key=abs)
        holds = abs(worst) <= BYTES_TOLERANCE
        what = "inter-node bytes that the kernel counted, without headers, against wire.py: the worst row"
        yield Verdict(what, f"± {BYTES_TOLERANCE:.0%}", f"{worst:+.2%}", holds, is_timed=False)
