"""What decides whether an installation is made again, and what a failed one says."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tools import setup_venv

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("constraints.txt", "pyproject.toml", "setup.py"):
        (tmp_path / name).write_text(f"# {name}\n")
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "codec.cc").write_text("int x;")
    monkeypatch.setattr(setup_venv, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["constraints.txt", "pyproject.toml", "setup.py", "csrc/codec.cc", "csrc/new.cc"])
def test_a_changed_or_new_input_asks_for_a_new_installation(project: Path, name: str) -> None:
    before = setup_venv.inputs_hash()
    assert setup_venv.inputs_hash() == before
    (project / name).write_text("changed")
    assert setup_venv.inputs_hash() != before


def test_a_changed_document_asks_for_nothing(project: Path) -> None:
    before = setup_venv.inputs_hash()
    (project / "README.md").write_text("changed")
    assert setup_venv.inputs_hash() == before


def test_the_version_of_torch_comes_from_the_constraints(project: Path) -> None:
    (project / "constraints.txt").write_text("torchvision==9.9\ntorch==2.13.0\nnumpy==1\n")
    assert setup_venv.pinned("torch") == "torch==2.13.0"
    with pytest.raises(setup_venv.SetupError, match="no line jax==VERSION"):
        setup_venv.pinned("jax")


@pytest.mark.parametrize("python", ["no-such-python", "old-python"])
def test_setup_names_the_python_it_needs(tmp_path: Path, python: str) -> None:
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.10.4\nexit 1\n')
    old.chmod(0o755)
    environment = os.environ | {"PYTHON": python, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run([ROOT / "scripts/setup.sh"], env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "3.11 or newer" in result.stderr
