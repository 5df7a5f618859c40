"""From the rows of a table to runs: which flags on how many nodes of which cluster. Standard library only."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.training.arguments import key_words, parse_args
from megatron.training.validation import validate_args
from tools.cluster_files import read_cluster
from tools.sweep.cells import Cell, cells, matches
from tools.sweep.sweep_file import CONFIGS, ROOT, Result, Sweep

MACHINE = "this_machine"  # the cluster of runs that are made for the machine at hand
_NODE_KEYS = ("devices", "nics", "nic-gbps")


@dataclass(frozen=True)
class Run:
    """One row of a table. `flags`: what stands beside model, scheme and cluster. `obstacle`: why it cannot be run."""

    sweep: Sweep
    id: str
    cell: Cell
    model: str
    scheme: str
    cluster: str
    num_nodes: int
    num_ranks: int
    flags: dict[str, Any]
    note: str = ""
    obstacle: str = ""

    @property
    def ranks_per_node(self) -> int | None:
        """Processes of each node; None where nodes differ."""
        return self.num_ranks // self.num_nodes if self.num_ranks % self.num_nodes == 0 else None

    @property
    def folder(self) -> str:
        """Where the run's metrics, log and checkpoints go, from the repository's root."""
        return f"runs/{self.sweep.name}/{self.id}"

    def words(self) -> list[str]:
        """The flags of pretrain_gpt.py, as words of its command line."""
        words = ["--config", f"configs/models/{self.model}.toml", "--compression", self.scheme]
        for key, value in self.flags.items():
            words += key_words(self.sweep.path, key, value)
        checkpoints = f"{self.folder}/checkpoints"
        words += ["--save", checkpoints, "--load", checkpoints] if self.sweep.keeps_checkpoints else []
        return [*words, "--metrics-file", f"{self.folder}/metrics.jsonl"]

    def arguments(self) -> Namespace:
        """The checked arguments of the run.

        Raises:
            ValueError: a flag is wrong; the sentence names the run.
        """
        words = ["--config", str(ROOT / self.words()[1]), *self.words()[2:]]
        try:
            return validate_args(parse_args(words), self.num_ranks)
        except ValueError as error:
            raise ValueError(f"{self.sweep.path}, {self.id}: {error}") from error

    def has(self, result: Result) -> bool:
        """Whether ``result`` is a quantity of this row."""
        return matches(self.cell, result.of, self.sweep.path)


def runs(sweep: Sweep, configs: Path = CONFIGS) -> list[Run]:
    """Every row of the sweep's table as a run.

    Raises:
        ValueError: a row that can be run is contradictory, or a file it names is absent.
    """
    clusters: dict[str, dict[str, Any]] = {}
    return [_run(sweep, identifier, cell, configs, clusters) for identifier, cell in cells(sweep, configs).items()]


def _run(sweep: Sweep, identifier: str, cell: Cell, configs: Path, clusters: dict[str, dict[str, Any]]) -> Run:
    where = f"{sweep.path}, {identifier}"
    settings = _settings(sweep, cell)
    for key in ("model", "cluster"):
        if key not in settings:
            raise ValueError(f"{where}: no {key} follows from its columns; add a [[when]] that names it")
    name = settings["cluster"]
    if name not in clusters:
        clusters[name] = _checked_cluster(name, configs)
    devices = clusters[name]["node"]["devices"]
    num_nodes, num_ranks, obstacle = _size(cell, settings, devices)
    flags = clusters[name]["flags"] | settings["flags"] | _global_batch(cell, num_ranks)
    obstacle = settings.get("cannot-run", "") or obstacle or _layout_obstacle(flags, cell, num_ranks)
    if obstacle and _has_figure(sweep, cell) and "cannot-run" not in settings:
        raise ValueError(f"{where}: {obstacle}, yet the table has a figure for it; mend the row")
    return Run(
        sweep, identifier, cell, settings["model"], settings.get("scheme", "baseline"), name, num_nodes, num_ranks,
        flags, settings.get("note", ""), obstacle,
    )  # fmt: skip


def _settings(sweep: Sweep, cell: Cell) -> dict[str, Any]:
    """What the row's columns and every rule that matches it say, later rules over earlier ones."""
    settings: dict[str, Any] = {key: cell[key] for key in ("cluster", "nodes") if cell.get(key)}
    settings |= {"scheme": cell["method"]} if cell.get("method") else {}
    columns = {flag: _number(cell[column]) for column, flag in sweep.columns.items() if cell.get(column)}
    flags = sweep.flags | columns
    for rule in sweep.rules:
        if matches(cell, rule.matches, sweep.path):
            flags |= rule.settings.get("flags", {})
            settings |= {key: value for key, value in rule.settings.items() if key != "flags"}
    return settings | {"flags": flags}


def _number(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def _checked_cluster(name: str, configs: Path) -> dict[str, Any]:
    cluster = read_cluster(name, configs / "clusters")
    for key in _NODE_KEYS:
        if key not in cluster["node"]:
            raise ValueError(f"the cluster '{name}' has no {key} in its table [node]; say it there")
    return cluster


def _size(cell: Cell, settings: dict[str, Any], devices: int) -> tuple[int, int, str]:
    """Nodes and ranks of a row, and what is wrong with them."""
    num_ranks = int(cell["gpus"]) if cell.get("gpus") else int(settings.get("ranks", 0))
    num_nodes = int(settings.get("nodes", 0)) or -(-num_ranks // devices)
    num_ranks = num_ranks or num_nodes * devices
    whole = num_ranks == num_nodes * devices or "ranks" in settings
    return num_nodes, num_ranks, "" if whole else f"{num_ranks} GPUs are not whole nodes of {devices}"


def _global_batch(cell: Cell, num_ranks: int) -> dict[str, int]:
    """Global batch = micro-batch x data-parallel size x accumulation, where the row says how much is accumulated."""
    if not cell.get("accumulation"):
        return {}
    product = int(cell["tp"]) * int(cell["cp"]) * int(cell["pp"])
    return {"global-batch-size": int(cell["micro_batch"]) * (num_ranks // product) * int(cell["accumulation"])}


def _layout_obstacle(flags: dict[str, Any], cell: Cell, num_ranks: int) -> str:
    sizes = [flags.get(f"{kind}-parallel-size", 1) for kind in ("tensor-model", "context", "pipeline-model")]
    product = sizes[0] * sizes[1] * sizes[2]
    text = f"TP x CP x PP = {sizes[0]} x {sizes[1]} x {sizes[2]} = {product}"
    if num_ranks % product:
        return f"{text} does not divide its {num_ranks} GPUs"
    said = int(cell.get("dp") or 0)
    if said and said * product != num_ranks:
        return f"{text} times DP = {said} is not its {num_ranks} ranks"
    batch, step = flags.get("global-batch-size", 0), flags.get("micro-batch-size", 1) * (num_ranks // product)
    return f"its {step} samples at a time do not divide the global batch of {batch}" if batch % step else ""


def _has_figure(sweep: Sweep, cell: Cell) -> bool:
    """Whether a row is meant to be run: of a grid, published with a figure, or with one that is withheld."""
    return bool(sweep.grids) or cell.get("status") == "withheld" or any(cell.get(r.published) for r in sweep.results)
