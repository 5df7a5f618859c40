"""Published tables as runs: ``python -m tools.sweep list|show|emit|check|submit|local TABLE [RUN ...]``.

``list`` prints a table's runs, ``show`` the exact torchrun command of each, ``emit`` its Slurm scripts (``--write``
puts them into scripts/slurm). ``check`` sends every run through the trainer's validation and builds its model without
memory. ``submit`` hands the scripts to sbatch; ``local`` trains what fits this machine, scaled down.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from argparse import Namespace

from tools.atomic_files import atomic_files
from tools.command_line import ToolArgumentParser, run_tool
from tools.sweep.batch_scripts import FOLDER, batch_script, batch_scripts, written_scripts
from tools.sweep.commands import SUMMARY_HEAD, summary, torchrun_command
from tools.sweep.runs import Run, runs
from tools.sweep.sweep_file import read_sweep, sweep_names


def chosen_runs(table: str, names: list[str]) -> list[Run]:
    """The runs of a table, or those with these identifiers.

    Raises:
        ValueError: the table, or a run, is unknown.
    """
    known = {run.id: run for run in runs(read_sweep(table))}
    absent = [name for name in names if name not in known]
    if absent:
        raise ValueError(f"{table} has no run '{absent[0]}'; say `python -m tools.sweep list {table}`")
    return [known[name] for name in names] if names else list(known.values())


def list_runs(options: Namespace) -> None:
    """Print the tables, or the runs of one."""
    if options.table is None:
        for name in sweep_names():
            print(f"{name:20} {read_sweep(name).title}")
        return
    rows = [SUMMARY_HEAD, *map(summary, chosen_runs(options.table, options.runs))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(SUMMARY_HEAD))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def show(options: Namespace) -> None:
    """Print the command of every run."""
    for run in chosen_runs(options.table, options.runs):
        print(f"# {run.id}" + (f": {run.note}" if run.note else ""))
        print(f"# cannot run: {run.obstacle}\n" if run.obstacle else f"{torchrun_command(run)}\n")


def emit(options: Namespace) -> None:
    """Print, or write, the Slurm scripts of a table; print one for each of the runs that are named."""
    if options.runs:
        for run in chosen_runs(options.table, options.runs):
            print(f"# {run.id} cannot run: {run.obstacle}" if run.obstacle else batch_script([run], "SCRIPT"))
        return
    scripts = batch_scripts(chosen_runs(options.table, []))
    if not options.write:
        print("\n".join(f"# {name}\n{text}" for name, text in scripts.items()))
        return
    for name in written_scripts(options.table).keys() - scripts.keys():
        (FOLDER / name).unlink()
    for name, text in scripts.items():
        with atomic_files(FOLDER / name) as [temporary]:
            temporary.write_text(text)
    print(f"{len(scripts)} scripts in {FOLDER}")


def check(options: Namespace) -> None:
    """Check every run of a table, or of all tables, and print what the largest needs."""
    from tools.sweep.meta_models import MetaModels

    models = MetaModels()
    for table in [options.table] if options.table else sweep_names():
        able = [run for run in chosen_runs(table, options.runs) if not run.obstacle]
        # Repeats of a run, such as a row for each seed, differ in nothing that is checked.
        alike: dict[tuple, Run] = {}
        for run in able:
            alike.setdefault((run.num_ranks, *run.words()[:-1]), run)
        found = {run.id: models.estimate(run.arguments()) for run in alike.values()}
        largest = max(found, key=lambda name: found[name].memory_bytes)
        estimate = found[largest]
        print(
            f"{table}: {len(able)} runs are well-formed; {largest} takes most memory, "
            f"{estimate.memory_bytes / 2**30:.1f} GiB for {estimate.parameters:,} parameters of a rank",
            flush=True,
        )


def submit(options: Namespace) -> None:
    """Hand every script of a table to sbatch, or the named runs alone.

    Raises:
        ValueError: there is no Slurm here, it refuses a script, or nothing is for it.
    """
    scripts = batch_scripts(chosen_runs(options.table, options.runs))
    if not scripts:
        raise ValueError(f"{options.table}: none of these runs is for Slurm; say `local`, or `list` to see why")
    if shutil.which("sbatch") is None:
        raise ValueError("sbatch is not found: submit where Slurm is, or say `local`")
    for name, text in scripts.items():
        if subprocess.run(["sbatch"], input=text, text=True).returncode:
            raise ValueError(f"sbatch has refused {name}, for the reason above; what came before it is submitted")


def local(options: Namespace) -> None:
    """Train what fits this machine."""
    from tools.sweep.local import local_runs, train_all

    train_all([run for run in local_runs(read_sweep(options.table)) if not options.runs or run.id in options.runs])


def main() -> None:
    """The command line."""
    actions = {"list": list_runs, "show": show, "emit": emit, "check": check, "submit": submit, "local": local}
    parser = ToolArgumentParser(__doc__.splitlines()[0])
    parser.add_argument("action", choices=list(actions))
    parser.add_argument("table", nargs="?", help="a file of configs/sweeps; `list` and `check` do without")
    parser.add_argument("runs", nargs="*", help="these runs alone")
    parser.add_argument("--write", action="store_true", help="emit: write the scripts into scripts/slurm")
    options = parser.parse_args(sys.argv[1:])
    if options.table is None and options.action not in ("list", "check"):
        parser.error(f"{options.action} needs a table; there are: {', '.join(sweep_names())}")
    actions[options.action](options)


if __name__ == "__main__":
    run_tool(main)
