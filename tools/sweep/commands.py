"""A run as people read it: a line of the list, and the command that starts it without Slurm. Standard library only."""

from __future__ import annotations

import shlex

from tools.sweep.batch_scripts import flag_groups
from tools.sweep.runs import Run

_LINE_LENGTH = 110


def torchrun_command(run: Run) -> str:
    """What to type on every node, wrapped; HEAD is the first node, NODE this one's number from 0 on."""
    launcher = ["torchrun", "--nnodes", str(run.num_nodes), "--nproc-per-node", str(run.ranks_per_node or "GPUS")]
    place = ["--node-rank", "NODE", "--master-addr", "HEAD"] if run.num_nodes > 1 else []
    variables = [f"{key}={shlex.quote(value)}" for key, value in run.sweep.environment.items()]
    pieces = [" ".join([*variables, *launcher, *place, "pretrain_gpt.py"])]
    pieces += [shlex.join(group) for group in flag_groups(run.words())]
    lines = [pieces[0]]
    for piece in pieces[1:]:
        if len(lines[-1]) + len(piece) >= _LINE_LENGTH:
            lines.append(f"   {piece}")
        else:
            lines[-1] += f" {piece}"
    return " \\\n".join(lines)


def summary(run: Run) -> list[str]:
    """The cells of the run's line in the list."""
    flags = run.flags
    sizes = [flags.get(f"{kind}-parallel-size", 1) for kind in ("tensor-model", "context", "pipeline-model")]
    return [
        run.id,
        run.model,
        run.scheme,
        f"{run.num_nodes} x {run.ranks_per_node or 'uneven'} {run.cluster}",
        " x ".join(map(str, sizes)),
        str(flags.get("micro-batch-size", "")),
        str(flags.get("global-batch-size", "")),
        str(flags.get("seq-length", "")),
        run.cell.get("status", ""),
        f"cannot run: {run.obstacle}" if run.obstacle else run.note,
    ]


SUMMARY_HEAD = ["run", "model", "scheme", "nodes", "TP x CP x PP", "micro", "global", "sequence", "published", "note"]
