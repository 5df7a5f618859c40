"""Published runs of a 1.3B GPT on CPU nodes (A64FX): configs/published/cpu_1p3b.csv."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from sdp4bit_patches.config import CommConfig
from tools.simulator.job import Job
from tools.simulator.machine import Cluster, load_cluster
from tools.simulator.model_shape import read_model
from tools.simulator.published import read_csv
from tools.simulator.step import Prediction, predict

COLUMNS = {"nodes", "node_clock_ghz", "dp", "tp", "pp", "micro_batch", "global_batch", "activation_recompute"}
MODEL, CLUSTER = "gpt_1p3b", "fugaku_a64fx"
# Not stated in the source; the published FLOP/s and seconds agree with samples of 1024 tokens.
SEQ = 1024
# The clock that the cluster file's rates hold for.
CLOCK_GHZ = 2.0


@dataclass(frozen=True)
class CpuRow:
    """One row, and what is predicted; None where the layout does not fill the nodes."""

    cells: dict[str, str]
    prediction: Prediction | None

    @property
    def predicted_tflops(self) -> float:
        """TFLOP/s of a node; the source counts recomputed forward passes too."""
        counted = 4 / 3 if self.prediction.job.recompute == "full" else 1.0
        return counted * self.prediction.tflops_per_gpu


def read_cpu_nodes(path: Path) -> list[CpuRow]:
    """All rows.

    Raises:
        ValueError: a cell is no number, or a layout makes no sense; the line is named.
    """
    _, rows = read_csv(path)
    return [CpuRow(cells, _prediction(f"{path}, line {line}", cells)) for line, cells in enumerate(rows, start=2)]


def _prediction(source: str, cells: dict[str, str]) -> Prediction | None:
    try:
        nodes, dp, tp, pp, micro, batch = (
            int(cells[name]) for name in ("nodes", "dp", "tp", "pp", "micro_batch", "global_batch")
        )
        cluster = clocked(load_cluster(CLUSTER), float(cells["node_clock_ghz"]))
        if nodes != dp * tp * pp:
            return None
        return predict(_job(cluster, dp, tp, pp, micro, batch, cells["activation_recompute"] == "yes"))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _job(cluster: Cluster, dp: int, tp: int, pp: int, micro: int, batch: int, recompute: bool) -> Job:
    if batch % (dp * micro):
        raise ValueError(f"global_batch = {batch} is no multiple of dp x micro_batch = {dp * micro}")
    return Job(
        read_model(MODEL), cluster, CommConfig(), tp=tp, pp=pp, dp=dp, micro_batch=micro,
        accumulation=batch // (dp * micro), seq=SEQ, sequence_parallel=False, flash_attention=False,
        recompute="full" if recompute else "none", transformer_engine=False, async_tensor_parallel=False,
        distributed_optimizer=False,
    )  # fmt: skip


def clocked(cluster: Cluster, ghz: float) -> Cluster:
    """The cluster with its cores at another clock: arithmetic follows it, memory does not."""
    device = dataclasses.replace(cluster.device, tflops=cluster.device.tflops * ghz / CLOCK_GHZ)
    return dataclasses.replace(cluster, device=device)
