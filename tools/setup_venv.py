"""Make .venv: the pinned packages of constraints.txt and this package in editable form. Standard library only.

What stands is reused: a stamp in .venv holds the hash of everything that the installation depends on.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "setup.stamp"
LOG = VENV / "setup.log"
BUILD_TOOLS = ("setuptools", "pybind11")  # installed by us, so that building fetches nothing that is not pinned
NUM_LOG_LINES_SHOWN = 15


class SetupError(Exception):
    """A step failed: one sentence with the remedy."""


def inputs_hash() -> str:
    """The hash of what the environment is made from: this Python, the pins, the package's metadata and its sources."""
    digest = hashlib.sha256(f"{sys.version}\n{ROOT}\n".encode())
    files = [ROOT / name for name in ("constraints.txt", "pyproject.toml", "setup.py")]
    sources = (path for path in (ROOT / "csrc").rglob("*") if path.is_file())
    for path in [*files, *sorted(sources)]:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def pinned(package: str) -> str:
    """``package==version`` as constraints.txt has it."""
    found = re.search(rf"^{re.escape(package)}==\S+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if found is None:
        raise SetupError(f"constraints.txt has no line {package}==VERSION; add it")
    return found[0]


def make_venv() -> None:
    """A fresh .venv, unless the one that stands is of this very Python."""
    if _venv_version() == sys.version:
        return
    if VENV.exists():
        print("setup: .venv is of another Python or damaged; making it anew")
        shutil.rmtree(VENV)
    made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True)
    if made.returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        print(made.stdout + made.stderr, file=sys.stderr)
        raise SetupError(
            f"{sys.executable} can't make a virtual environment; install its venv module "
            "(on Debian and Ubuntu: apt install python3-venv) and start again"
        )


def _venv_version() -> str | None:
    """sys.version of .venv's Python, or None where there is none that runs with pip."""
    try:
        command = [str(VENV / "bin/python"), "-c", "import pip, sys; print(sys.version, end='')"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def pip_install(title: str, *words: str) -> None:
    """``pip install`` with the pins, its output in .venv/setup.log.

    Raises:
        SetupError: pip failed; the end of its output has been printed.
    """
    constraints = ["-c", str(ROOT / "constraints.txt")]
    command = [str(VENV / "bin/python"), "-m", "pip", "install", "--disable-pip-version-check", *constraints, *words]
    begun = time.monotonic()
    print(f"setup: installing {title} ...", flush=True)
    last: deque[str] = deque(maxlen=NUM_LOG_LINES_SHOWN)
    with LOG.open("a") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in _lines(process):
            log.write(line)
            last.append(line)
            _show_progress(line, begun)
    _clear_progress()
    if process.returncode:
        sys.stderr.write("".join(last))
        raise SetupError(f"pip could not install {title} (the whole output: {LOG}); mend what it says and start again")
    print(f"setup: installed {title} in {time.monotonic() - begun:.0f} s", flush=True)


def _lines(process: subprocess.Popen) -> Iterator[str]:
    """The output of ``process``, line by line, until it has ended; it does not outlive an interruption."""
    assert process.stdout is not None
    try:
        yield from process.stdout
        process.wait()
    finally:
        process.kill()
        process.wait()


def _show_progress(line: str, begun: float) -> None:
    """pip's latest line in place, on a terminal."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 12
        print(f"\r\033[K  {time.monotonic() - begun:4.0f} s  {line.strip()[:width]}", end="", flush=True)


def _clear_progress() -> None:
    if sys.stdout.isatty():
        print("\r\033[K", end="")


def native_report() -> str:
    """What of the native codec was built; setup.py says why something was not, which pip keeps to itself."""
    names = {"_cpu": "C++ kernels", "_cuda": "CUDA kernels"}
    built = [bool(list((ROOT / "sdp4bit_patches").glob(f"{module}.*.so"))) for module in names]
    words = [f"{text} {'built' if found else 'not built'}" for text, found in zip(names.values(), built, strict=True)]
    return f"setup: native codec: {', '.join(words)}"


def set_up() -> None:
    """Make or complete .venv.

    Raises:
        SetupError: a step failed.
    """
    begun = time.monotonic()
    wanted = inputs_hash()
    if STAMP.is_file() and STAMP.read_text() == wanted:
        print("setup: .venv stands and is up to date")
        return
    print(f"setup: making .venv with Python {sys.version.split()[0]}", flush=True)
    STAMP.unlink(missing_ok=True)
    make_venv()
    # By itself and first: where an index offers torch for the CPU or another CUDA, the pin alone decides.
    pip_install(pinned("torch"), pinned("torch"))
    pip_install("build tools", *BUILD_TOOLS)
    pip_install("this package and its dependencies", "--no-build-isolation", "-e", ".[dev]")
    print(native_report())
    partial = STAMP.with_suffix(".partial")
    partial.write_text(wanted)
    partial.replace(STAMP)
    print(f"setup: done in {time.monotonic() - begun:.0f} s")


def main() -> None:
    """Set up; an error is one sentence and exit code 1."""
    try:
        set_up()
    except (SetupError, OSError) as error:
        sys.exit(f"setup: error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nsetup: stopped; start it again to continue")


if __name__ == "__main__":
    main()
