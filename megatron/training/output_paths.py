"""Whether a run can write what it was asked to write, asked before it has trained for hours. Standard library only."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from megatron.training.errors import require


def check_output_paths(args: argparse.Namespace) -> None:
    """Make the folders of ``--save``, ``--tensorboard-dir`` and ``--metrics-file``, and check that they take files.

    Raises:
        UserError: a folder cannot be made or written.
    """
    for flag, path in (("--save", args.save), ("--tensorboard-dir", args.tensorboard_dir)):
        if path is not None:
            _check_folder(f"{flag} {path}", Path(path))
    if args.metrics_file is not None:
        path = Path(args.metrics_file)
        require(not path.is_dir(), f"--metrics-file {path} is a folder; give the name of a file")
        _check_folder(f"--metrics-file {path}", path.parent)


def _check_folder(what: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
        problem = None if writable else "it is not writable"
    except OSError as error:
        problem = error.strerror
    require(problem is None, f"{what}: cannot write to {folder}: {problem}; give another path or mend this one")
