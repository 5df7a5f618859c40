"""``--metrics-file``: one JSON line per iteration, for programs to read. Standard library only."""

from __future__ import annotations

import json
import math
import os
from itertools import count
from pathlib import Path
from typing import Any


class MetricsFile:
    """One JSON line per iteration, appended and flushed; a resumed run first drops what it will write again."""

    def __init__(self, path: str, iteration: int) -> None:
        """Open ``path`` for a run that continues after ``iteration`` (0: a new run; an older file is kept as .bak)."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists() and file.stat().st_size > 0:
            self._keep_until(file, iteration)
        self._stream = file.open("a")

    @staticmethod
    def _keep_until(file: Path, iteration: int) -> None:
        if iteration == 0:
            backup = _unused_backup(file)
            os.replace(file, backup)
            print(f" {file} holds an earlier run; moved to {backup}", flush=True)
            return
        kept = [line for line in file.read_text().splitlines() if _iteration_of(line) <= iteration]
        partial = file.with_name(file.name + ".partial")
        partial.write_text("".join(f"{line}\n" for line in kept))
        os.replace(partial, file)

    def write(self, values: dict[str, Any]) -> None:
        """Append one line; NaN and Inf become null, since JSON has neither."""
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        self._stream.write(json.dumps(finite) + "\n")
        self._stream.flush()


def _unused_backup(file: Path) -> Path:
    """``X.bak``, or ``X.bak2`` and so on: a job that fails at start again and again must not push out the first."""
    names = (f"{file.name}.bak{number if number > 1 else ''}" for number in count(1))
    return next(backup for backup in map(file.with_name, names) if not backup.exists())


def _iteration_of(line: str) -> float:
    """The iteration of a metrics line; infinity for a line that a crash cut in half."""
    try:
        return json.loads(line)["iteration"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf
