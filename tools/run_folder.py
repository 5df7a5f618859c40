"""The folder of one training run: its metrics, and ``run.json`` with what was run on which machine. Standard library.

``python -m tools.run_folder end FOLDER CODE`` is what a batch script says when the run has ended.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from argparse import Namespace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from megatron.training.arguments import parse_args
from tools.atomic_files import atomic_files
from tools.command_line import ToolArgumentParser, run_tool

RECORD = "run.json"
METRICS = "metrics.jsonl"
# Where the settings of a run name its own folder: a run that was moved is still the same.
_PATHS = {"metrics_file", "save", "load", "tensorboard_dir"}


def settings(words: list[str]) -> dict[str, Any]:
    """What a command line sets to something else than the default: the same settings give the same run."""
    defaults, given = (vars(parse_args(line)) for line in ([], words))
    # Through JSON, since these are compared with what was read from a file.
    return json.loads(json.dumps({k: v for k, v in given.items() if v != defaults[k] and k != "config"}))


def differences(made: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """The settings, but for paths, in which two runs differ."""
    return sorted(key for key in made | wanted if key not in _PATHS and made.get(key) != wanted.get(key))


def begin(folder: Path, words: list[str], args: Namespace, **further: Any) -> None:
    """Write the record of a run that is about to start, or to go on: its settings and this machine.

    Raises:
        ValueError: the folder holds a run with other settings.
        OSError: the folder cannot be written.
    """
    wanted = settings(words)
    earlier = read_record(folder)
    other = differences(earlier["settings"], wanted) if earlier else []
    if other:
        raise ValueError(f"{folder} holds a run with another {', '.join(other)}: remove it, or give another folder")
    iterations = min(args.train_iters, args.exit_interval or args.train_iters)
    record = {
        "run": folder.name,
        "settings": wanted,
        "iterations": iterations,
        "ranks": args.world_size,
        "machine": machine(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "starts": (earlier or {}).get("starts", 0) + 1,
        **further,
    }
    _write(folder, record)


def end(folder: Path, code: int) -> None:
    """Add to the record how the run has ended and, from its logs, the most memory that rank 0 has held."""
    record = read_record(folder)
    if record is None:
        raise ValueError(f"{folder} has no {RECORD}: no run was begun there")
    logs = "".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.log")))
    peaks = re.findall(r"peak memory of rank 0: ([\d,]+) MiB", logs)
    memory = {"memory_mib": int(peaks[-1].replace(",", ""))} if peaks else {}
    _write(folder, record | memory | {"exit_code": code, "ended": time.strftime("%Y-%m-%d %H:%M:%S")})


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of the run in ``folder``, or None where none was begun.

    Raises:
        ValueError: the file is not a record.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_text())
        return record if {"run", "settings", "iterations", "ranks", "machine"} <= record.keys() else _not_a_record(path)
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, AttributeError, UnicodeDecodeError):
        return _not_a_record(path)


def _not_a_record(path: Path) -> None:
    raise ValueError(f"{path} is damaged: remove it and run again, or take the run's folder away")


def _write(folder: Path, record: dict[str, Any]) -> None:
    with atomic_files(folder / RECORD) as [temporary]:
        temporary.write_text(json.dumps(record, indent=1) + "\n")


def machine() -> str:
    """This machine's GPUs, or its processor, and the version of torch."""
    try:
        torch = f"torch {version('torch')}"
    except PackageNotFoundError:
        torch = "torch in a container"
    return f"{_gpus() or f'{_processor()}, {os.cpu_count()} cores'}, {torch}"


def _gpus() -> str:
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.split("\n")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    names = [name.strip() for name in names if name.strip()]
    return f"{len(names)} x {names[0]} a node" if names else ""


def _processor() -> str:
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def main() -> None:
    """The command line."""
    parser = ToolArgumentParser(__doc__.splitlines()[0])
    parser.add_argument("action", choices=["end"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("code", type=int, help="exit code of the run")
    options = parser.parse_args(sys.argv[1:])
    end(options.folder, options.code)


if __name__ == "__main__":
    run_tool(main)
