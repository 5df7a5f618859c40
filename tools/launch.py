"""What scripts/slurm/train.sbatch asks before it starts anything: checks the flags, and prints shell variables.

``python -m tools.launch --nodes 2 -- --config X ...`` reads the table [launch] of the cluster: `CLUSTER` in the
environment, or what ``cluster = "NAME"`` in the run file says. Standard library only.
"""

from __future__ import annotations

import os
import shlex
import sys
import tomllib
from argparse import Namespace
from pathlib import Path
from typing import Any

from megatron.training.arguments import key_words, parse_args
from megatron.training.validation import validate_args
from tools.cluster_files import check_keys, read_cluster
from tools.command_line import ToolArgumentParser, positive_int, run_tool
from tools.run_folder import METRICS, begin

# Key of a cluster's table [launch] -> what it says.
LAUNCH_KEYS = {
    "device": "gpu (the default) or cpu: whether jobs ask Slurm for GPUs",
    "slurm": "further options of sbatch for every job, such as --partition=NAME",
    "environment": "variables of every rank: NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME and others",
    "container": "table: runtime (pyxis or apptainer), image, mounts (a list)",
}
_CONTAINER_KEYS = {"runtime", "image", "mounts"}


def launch_table(name: str, cluster: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The checked table [launch] of the cluster ``name``.

    Raises:
        ValueError: an unknown key or value.
    """
    table = cluster["launch"]
    check_keys(f"cluster {name}, [launch]", table, set(LAUNCH_KEYS))
    if table.get("device", "gpu") not in ("gpu", "cpu"):
        raise ValueError(f"cluster {name}, [launch]: device = {table['device']!r} has to be gpu or cpu")
    container = table.get("container", {})
    check_keys(
        f"cluster {name}, [launch.container]", container, _CONTAINER_KEYS, {"runtime", "image"} if container else set()
    )
    if container and container.get("runtime") not in ("pyxis", "apptainer"):
        raise ValueError(f"cluster {name}, [launch.container]: runtime has to be pyxis or apptainer")
    return table


def container_words(container: dict[str, Any], gpus: bool) -> tuple[list[str], list[str]]:
    """Options of srun, and words in front of the program, that run it in ``container`` (empty: in none)."""
    if not container:
        return [], []
    here, mounts = str(Path.cwd()), container.get("mounts", [])
    if container["runtime"] == "pyxis":
        places = ",".join([f"{here}:{here}", *mounts])
        return [f"--container-image={container['image']}", f"--container-mounts={places}"], []
    binds = [word for place in (here, *mounts) for word in ("--bind", place)]
    return [], ["apptainer", "exec", *(["--nv"] if gpus else []), *binds, container["image"]]


def cluster_of(words: list[str]) -> str:
    """The cluster that a run is for: `CLUSTER`, or the key ``cluster`` of its run file or of what that builds on."""
    if os.environ.get("CLUSTER"):
        return os.environ["CLUSTER"]
    path = Path(words[words.index("--config") + 1]) if "--config" in words[:-1] else None
    while path is not None and path.is_file():
        keys = tomllib.loads(path.read_text())
        if "cluster" in keys:
            return keys["cluster"]
        path = path.with_name(f"{keys['base']}.toml") if "base" in keys else None
    return ""


def cluster_flags(name: str, flags: dict[str, Any], words: list[str]) -> list[str]:
    """The flags that runs on the cluster always take, but for those that ``words`` give."""
    path = Path(f"configs/clusters/{name}.toml")
    return [word for key, value in flags.items() if f"--{key}" not in words for word in key_words(path, key, value)]


def shell_lines(options: Namespace, words: list[str]) -> list[str]:
    """Check the run, begin its folder, and return what the shell is to evaluate.

    Raises:
        ValueError: a flag is wrong, or it does not fit the nodes; the cluster is unknown or incomplete.
    """
    name = cluster_of(words)
    cluster = read_cluster(name) if name else {"launch": {}, "node": {}}
    table = launch_table(name, cluster)
    processes = options.processes or (None if options.ranks else cluster["node"].get("devices"))
    ranks = (processes or 0) * options.nodes or options.ranks
    if not ranks:
        raise ValueError(
            "how many processes a node has is not known: ask for GPUs (--gpus-per-node), set NPROC_PER_NODE, or name "
            "the cluster (CLUSTER=NAME of configs/clusters)"
        )
    words = [*words, *cluster_flags(name, cluster.get("flags", {}), words)]
    parsed = parse_args(words)
    folder = Path(parsed.metrics_file).parent if parsed.metrics_file else Path(options.folder)
    added = [] if parsed.metrics_file else ["--metrics-file", str(folder / METRICS)]
    added += ["--load", parsed.save] if parsed.save and not parsed.load else []
    words = [*words, *added]
    begin(folder, words, validate_args(parse_args(words), ranks), nodes=options.nodes, cluster=name)
    device = table.get("device", "gpu")
    srun, prefix = container_words(table.get("container", {}), device == "gpu")
    exports = [f"export {key}={shlex.quote(str(value))}" for key, value in table.get("environment", {}).items()]
    arrays = {"srun_words": srun, "prefix": prefix, "words": words}
    return [
        *exports,
        f"device={device}",
        f"inside={'python3' if table.get('container') else ''}",
        f"folder={shlex.quote(str(folder))}",
        f"processes={processes or ''}",
        f"resumes={'yes' if parsed.save else ''}",
        *(f"{key}=({' '.join(map(shlex.quote, value))})" for key, value in arrays.items()),
    ]


def main() -> None:
    """The command line: options of this tool, ``--``, the flags of pretrain_gpt.py."""
    parser = ToolArgumentParser(__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=positive_int, required=True, help="nodes of the job")
    parser.add_argument(
        "--processes", type=positive_int, help="processes of a node; the cluster's devices if not given"
    )
    parser.add_argument("--ranks", type=positive_int, help="processes in all, where nodes differ")
    parser.add_argument("--folder", default="runs/slurm/run", help="folder of a run without --metrics-file")
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    print("\n".join(shell_lines(parser.parse_args(sys.argv[1:cut]), sys.argv[cut + 1 :])))


if __name__ == "__main__":
    run_tool(main)
