"""``torchrun pretrain_gpt.py`` as a user starts it, for the tests of what only the launcher shows."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[1]
_ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)}


@dataclass
class Job:
    """A started job: its process and the file that takes what all of its processes print."""

    process: subprocess.Popen
    output: Path

    def text(self) -> str:
        """What was printed so far."""
        return self.output.read_text(errors="replace")

    def workers(self) -> list[psutil.Process]:
        """The ranks, in the order in which torchrun has started them."""
        children = psutil.Process(self.process.pid).children()
        ranks = {child.environ().get("RANK"): child for child in children}
        return [ranks[rank] for rank in sorted(rank for rank in ranks if rank is not None)]

    def wait(self, seconds: float) -> int:
        """The exit code of torchrun; an assertion with its output if it takes longer."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s:\n{self.text()}") from None

    def wait_until(self, condition: object, seconds: float = 120.0) -> None:
        """Return as soon as ``condition()`` is true; an assertion if the job ends before."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"ended too soon:\n{self.text()}"
            assert time.monotonic() < deadline, f"not so after {seconds} s:\n{self.text()}"
            time.sleep(0.05)


@contextmanager
def torchrun(world_size: int, words: list[str], script: str = "pretrain_gpt.py") -> Iterator[Job]:
    """Start ``torchrun --nproc-per-node world_size script words``; at the end nothing of it is left running."""
    with tempfile.NamedTemporaryFile(prefix="torchrun_", suffix=".txt") as output:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
        process = subprocess.Popen(
            [*launcher, script, *words], stdout=output, stderr=output, cwd=REPOSITORY, env=_ENVIRONMENT
        )
        try:
            yield Job(process, Path(output.name))
        finally:
            _end(process)


def _end(process: subprocess.Popen) -> None:
    if process.poll() is not None:
        return
    for child in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        child.kill()
    process.wait()
