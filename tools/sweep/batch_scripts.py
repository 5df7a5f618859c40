"""Slurm scripts of a sweep: an array of jobs for all runs that take equally many nodes. Standard library only."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from tools.cluster_files import read_cluster
from tools.launch import launch_table
from tools.sweep.runs import MACHINE, Run
from tools.sweep.sweep_file import CONFIGS, ROOT

FOLDER = ROOT / "scripts" / "slurm"


def flag_groups(words: list[str]) -> list[tuple[str, ...]]:
    """The words of a command line, each flag with its values."""
    groups: list[tuple[str, ...]] = []
    for word in words:
        if word.startswith("--"):
            groups.append((word,))
        else:
            groups[-1] += (word,)
    return groups


def batch_scripts(runs: list[Run], configs: Path = CONFIGS) -> dict[str, str]:
    """File name -> text of the scripts that run ``runs`` (of one sweep); what no Slurm can run is left out."""
    able = [run for run in runs if not run.obstacle and run.cluster != MACHINE]
    several = len({run.cluster for run in able}) > 1
    groups: dict[tuple[str, int, int], list[Run]] = {}
    for run in able:
        groups.setdefault((run.cluster, run.num_nodes, run.num_ranks), []).append(run)
    return {
        _name(group[0], several): batch_script(group, _name(group[0], several), configs) for group in groups.values()
    }


def _name(run: Run, several_clusters: bool) -> str:
    return ".".join([run.sweep.name, *([run.cluster] if several_clusters else []), f"{run.num_nodes}n", "sbatch"])


def batch_script(runs: list[Run], name: str, configs: Path = CONFIGS) -> str:
    """The script of ``runs``, which take the same nodes of the same cluster."""
    first = runs[0]
    table = launch_table(first.cluster, read_cluster(first.cluster, configs / "clusters"))
    groups = [flag_groups(run.words()) for run in runs]
    common = [group for group in groups[0] if all(group in other for other in groups)] if len(runs) > 1 else []
    lines = [
        "#!/usr/bin/env bash",
        f"# {first.sweep.title}.",
        f"# {len(runs)} of its runs: {_nodes(first)} of {first.cluster} each. One of them: sbatch --array=0 {name}",
        f"# Made by `python -m tools.sweep emit {first.sweep.name} --write`: change configs/sweeps, not this file.",
        *(f"#SBATCH {option}" for option in _options(runs, table)),
        f"export CLUSTER={first.cluster}",
        *(f"export {key}={shlex.quote(value)}" for key, value in first.sweep.environment.items()),
        *_ranks(first, table),
        "common=(",
        *(f"    {shlex.join(group)}" for group in common),
        ")",
        "runs=(",
        *(_row(run, group, common) for run, group in zip(runs, groups, strict=True)),
        ")",
        'read -r -a words <<< "${runs[SLURM_ARRAY_TASK_ID]}"',
        'exec bash scripts/slurm/train.sbatch "${common[@]}" "${words[@]}"',
    ]
    return "\n".join(lines) + "\n"


def _nodes(run: Run) -> str:
    return f"{run.num_nodes} node{'s' if run.num_nodes > 1 else ''}"


def _options(runs: list[Run], table: dict[str, Any]) -> list[str]:
    first = runs[0]
    gpus = f"--gpus-per-node={first.ranks_per_node}" if first.ranks_per_node else f"--gpus={first.num_ranks}"
    return [
        f"--job-name={first.sweep.name}",
        f"--nodes={first.num_nodes}",
        "--ntasks-per-node=1",
        *([gpus] if table.get("device", "gpu") == "gpu" else []),
        "--exclusive",
        f"--array=0-{len(runs) - 1}",
        "--requeue",
        "--open-mode=append",
        "--signal=B:USR1@180",
        *table.get("slurm", []),
    ]


def _ranks(run: Run, table: dict[str, Any]) -> list[str]:
    """On CPUs, Slurm does not say how many ranks a node takes."""
    return [f"export NPROC_PER_NODE={run.ranks_per_node}"] if table.get("device", "gpu") == "cpu" else []


def _row(run: Run, groups: list[tuple[str, ...]], common: list[tuple[str, ...]]) -> str:
    words = [word for group in groups if group not in common for word in group]
    if any(not word or set(word) & set('"$`\\ \t') for word in words):
        raise ValueError(f"{run.id}: a flag's value has a space or a quote, which its batch script cannot hold")
    note = f" {run.note}" if run.note else ""
    return f'    "{" ".join(words)}" # {run.id}{note}'


def written_scripts(sweep_name: str, folder: Path = FOLDER) -> dict[str, str]:
    """The scripts of a sweep that lie in ``folder``, as :func:`batch_scripts` returns them."""
    return {path.name: path.read_text() for path in sorted(folder.glob(f"{sweep_name}.*sbatch"))}
