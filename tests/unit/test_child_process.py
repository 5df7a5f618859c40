"""A program that a tool starts ends with the tool, and in an orderly way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ctrl_c import ctrl_c_is_heard

ROOT = Path(__file__).resolve().parents[2]

_CHILD = """
import signal, sys, time
def save(*_):
    open(sys.argv[1] + "/saved", "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
open(sys.argv[1] + "/started", "w").close()
time.sleep(60)
"""
_TOOL = "import sys; from tools.child_process import run_python; sys.exit(run_python('-c', sys.argv[1], sys.argv[2]))"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_tool_lets_the_program_save_and_end(tmp_path: Path, number: signal.Signals) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with ctrl_c_is_heard():
        tool = subprocess.Popen(
            [sys.executable, "-c", _TOOL, _CHILD, str(tmp_path)], env=environment, stderr=subprocess.DEVNULL
        )
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (tmp_path / "started").exists()
        tool.send_signal(number)
        tool.wait(timeout=30)
    finally:
        tool.kill()
    assert (tmp_path / "saved").exists()


def test_the_exit_code_is_passed_on() -> None:
    command = [sys.executable, "-c", _TOOL, "import sys; sys.exit(7)", "unused"]
    assert subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=30).returncode == 7
