"""The house rules that a reader relies on: who may import whom, and that README's map names every file."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STANDARD_LIBRARY = set(sys.stdlib_module_names)
NATIVE = {"sdp4bit_patches._cpu", "sdp4bit_patches._cuda"}

# Room -> what its modules must never import, by prefix of the module's full name.
NEVER = {
    "sdp4bit_patches/reference.py": NATIVE,
    "sdp4bit_patches/codec.py": {"torch.distributed", "megatron"},
    "sdp4bit_patches/topology.py": {"megatron", "sdp4bit_patches.codec"},
    "sdp4bit_patches/collectives.py": {"megatron"},
    "sdp4bit_patches/bucket_messages.py": {"megatron"},
    "sdp4bit_patches/duo.py": {"megatron"},
    "sdp4bit_patches/adamw.py": {"megatron", "torch.distributed"},
    "sdp4bit_patches/adamw_reference.py": {"megatron", "torch.distributed", "sdp4bit_patches.codec", *NATIVE},
    "sdp4bit_patches/progress.py": {"megatron", "torch.distributed"},
    "sdp4bit_patches/session.py": {"megatron"},
    "sdp4bit_patches/weight_difference.py": {"megatron"},
    "sdp4bit_patches/exact_slices.py": {"megatron"},
    "sdp4bit_patches/bucket_group.py": {"sdp4bit_patches.optimizer"},
    "sdp4bit_patches/optimizer.py": {"sdp4bit_patches.collectives", "sdp4bit_patches.bucket_group"},
    "tools/simulator": {"torch", "megatron"},
    "tools/scheduler": {"torch", "megatron"},
}
# Modules that import nothing but the standard library (and each other): a mistake in a flag is told before torch loads.
LIGHT = """
sdp4bit_patches/__init__.py sdp4bit_patches/config.py sdp4bit_patches/wire.py
megatron/training/compression.py megatron/training/arguments.py megatron/training/flags.py
megatron/training/validation.py megatron/training/validation_layout.py
megatron/training/validation_schedule.py megatron/training/ranges.py megatron/training/unused_flags.py
megatron/training/layout.py
megatron/training/checkpoint_files.py megatron/training/metrics_file.py megatron/training/output_paths.py
tools/atomic_files.py tools/cluster_files.py tools/command_line.py tools/launch.py tools/run_folder.py
tools/toml_files.py
tools/sweep/batch_scripts.py tools/sweep/cells.py tools/sweep/commands.py tools/sweep/runs.py tools/sweep/sweep_file.py
""".split()
# What the trainer may use of the method.
FACE = {"sdp4bit_patches", "sdp4bit_patches.config", "sdp4bit_patches.cpu_device"}


def _imports(source: str, top_level_only: bool = False) -> set[str]:
    """Full names of everything that ``source`` imports; ``from a import b`` counts as ``a`` and ``a.b``."""
    tree = ast.parse(source)
    names: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _files(room: str) -> list[Path]:
    place = ROOT / room
    return sorted(place.rglob("*.py")) if place.is_dir() else [place] if place.exists() else []


def _forbidden(source: str, never: set[str]) -> set[str]:
    return {name for name in _imports(source) for prefix in never if name == prefix or name.startswith(prefix + ".")}


@pytest.mark.parametrize("room", NEVER)
def test_no_room_imports_what_it_must_not(room: str) -> None:
    found = {str(file): _forbidden(file.read_text(), NEVER[room]) for file in _files(room)}
    assert not any(found.values()), found


def test_the_check_of_imports_sees_a_forbidden_one() -> None:
    assert _forbidden("from torch import distributed", {"torch.distributed"}) == {"torch.distributed"}
    assert _forbidden("import megatron.core.utils", {"megatron"}) == {"megatron.core.utils"}
    assert not _forbidden("import torch", {"torch.distributed"})


@pytest.mark.parametrize("file", LIGHT)
def test_a_light_module_imports_the_standard_library_and_light_modules_only(file: str) -> None:
    light = {name.removesuffix(".py").replace("/", ".") for name in LIGHT} | {
        "megatron.training.errors",
        "sdp4bit_patches",
    }
    for path in _files(file):
        modules = {name for name in _imports(path.read_text(), top_level_only=True) if name not in STANDARD_LIBRARY}
        outside = {name for name in modules if name.split(".")[0] not in STANDARD_LIBRARY and name not in light}
        assert not {name for name in outside if name.rpartition(".")[0] not in light}


def test_the_trainer_uses_only_the_face_of_the_method() -> None:
    for file in _files("megatron/training"):
        used = {name for name in _imports(file.read_text()) if name.split(".")[0] == "sdp4bit_patches"}
        assert used <= FACE, file


def test_megatron_stays_a_namespace_that_megatron_core_shares() -> None:
    assert not (ROOT / "megatron" / "__init__.py").exists()


def test_only_seams_assigns_into_megatron_core() -> None:
    """An assignment to an attribute of something imported from megatron.core, anywhere but in seams.py."""
    for file in [*_files("sdp4bit_patches"), *_files("megatron/training")]:
        if file.name != "seams.py":
            assert not _assigned_into_megatron_core(file.read_text()), file


def test_the_check_of_assignments_sees_one() -> None:
    source = "from megatron.core import optimizer\noptimizer.DistributedOptimizer = None\n"
    assert _assigned_into_megatron_core(source) == {"optimizer"}
    assert _assigned_into_megatron_core("import megatron.core.utils as u\nu.x.y = 1\n") == {"u"}


def _assigned_into_megatron_core(source: str) -> set[str]:
    tree = ast.parse(source)
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {a.asname or a.name.split(".")[0] for a in node.names if a.name.startswith("megatron.core")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("megatron.core"):
            modules |= {alias.asname or alias.name for alias in node.names}
    targets = [t for node in ast.walk(tree) if isinstance(node, ast.Assign) for t in node.targets]
    roots = set()
    for target in targets:
        while isinstance(target, ast.Attribute):
            target = target.value
            if isinstance(target, ast.Name):
                roots.add(target.id)
    return roots & modules


def test_readmes_map_names_every_file() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: no list of the project's files")
    tracked = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split()
    tree = _tree((ROOT / "README.md").read_text())
    missing = [file for file in tracked if not _is_named(file, tree) and file != "README.md"]
    assert not missing
    stale = [path for path in tree if "*" not in path and not (ROOT / path).exists()]
    assert not stale


def _tree(readme: str) -> set[str]:
    """The paths in README's map: a line that ends in ``/`` is a folder, indented lines below are its files."""
    block = readme.split("## Where things are", 1)[1].split("```")[1]
    paths, folder = set(), ""
    for line in block.strip("\n").splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") and len(line.split()) == 1 else ""
            paths |= set() if folder else {name}
        else:
            paths.add(folder + name)
    return paths


def _is_named(file: str, tree: set[str]) -> bool:
    pattern = f"{Path(file).parent}/*{Path(file).suffix}"
    return file in tree or pattern in tree
