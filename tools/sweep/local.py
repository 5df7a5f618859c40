"""Runs of a sweep, scaled down by its table [local] and trained on this machine."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

from tqdm import tqdm

from tools.child_process import run_python, torchrun
from tools.run_folder import METRICS, begin, differences, end, read_record, settings
from tools.sweep.runs import MACHINE, Run, runs
from tools.sweep.sweep_file import ROOT, Sweep


def local_runs(sweep: Sweep) -> list[Run]:
    """The runs that [local] names, scaled to this machine, which go to ``runs/TABLE_local``; or those made for it.

    Raises:
        ValueError: the sweep has neither, or [local] names a run that is not there.
    """
    known = {run.id: run for run in runs(sweep)}
    if sweep.local is None:
        if not all(run.cluster == MACHINE for run in known.values()):
            raise ValueError(f"{sweep.path} has no table [local]: nothing of it can be run on one machine")
        return list(known.values())
    absent = [name for name in sweep.local.runs if name not in known]
    if absent:
        raise ValueError(f"{sweep.path}, local: there is no run '{absent[0]}'")
    return [scaled(known[name]) for name in sweep.local.runs]


def scaled(run: Run) -> Run:
    """``run`` by the numbers of its sweep's table [local]."""
    local = run.sweep.local
    sweep = dataclasses.replace(run.sweep, name=f"{run.sweep.name}_local", skipped_iterations=local.skipped_iterations)
    return dataclasses.replace(
        run, sweep=sweep, model=local.model, cluster=MACHINE, num_nodes=1, num_ranks=local.ranks,
        flags=run.flags | local.flags,
    )  # fmt: skip


def train_all(chosen: list[Run]) -> None:
    """Train every run that has not finished; one that fails is told, and the others go on.

    Raises:
        ChildProcessError: at the end, if any has failed.
    """
    os.chdir(ROOT)
    for run in chosen:
        run.arguments()
    failed = []
    for run in tqdm(chosen, unit="run", disable=not sys.stderr.isatty()):
        if finished(run):
            print(f"{run.folder} is complete; remove it to train anew", flush=True)
        elif train(run):
            failed.append(run.folder)
    if failed:
        raise ChildProcessError(
            f"{len(failed)} of {len(chosen)} runs have failed: {', '.join(failed)}; see their run.log"
        )


def finished(run: Run) -> bool:
    """Whether the run's folder holds it, with the same settings, to its end."""
    record = read_record(Path(run.folder))
    same = record is not None and not differences(record["settings"], settings(run.words()))
    return same and record.get("exit_code") == 0


def train(run: Run) -> int:
    """Train one run with processes of this machine; return their exit code."""
    folder = Path(run.folder)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"training {run.folder} with {run.num_ranks} processes", flush=True)
    (folder / METRICS).unlink(missing_ok=True)
    begin(folder, run.words(), run.arguments(), nodes=run.num_nodes, cluster=run.cluster)
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    code = run_python(*torchrun(run.num_ranks), "pretrain_gpt.py", *run.words(), log=folder / "run.log")
    end(folder, code)
    return code
