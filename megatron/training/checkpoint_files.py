"""Checkpoint folders on disk: names, the tracker file, and whether a checkpoint is whole. Standard library only.

``SAVE/iter_0000100/`` holds one checkpoint, ``SAVE/latest_checkpointed_iteration.txt`` the newest one's iteration
(Megatron-LM's names). A checkpoint is written under another name and renamed when it is complete; the tracker comes
last. ``file_sizes.json`` inside lets a later run tell a truncated file from a good one.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from megatron.training.errors import UserError

TRACKER = "latest_checkpointed_iteration.txt"
FILE_SIZES = "file_sizes.json"
_PARTIAL = ".partial"
_REPLACED = ".replaced"


def checkpoint_folder(root: str | Path, iteration: int) -> Path:
    """The folder of the checkpoint at ``iteration``."""
    return Path(root) / f"iter_{iteration:07d}"


def partial_folder(root: str | Path, iteration: int) -> Path:
    """The folder a checkpoint is written in until it is complete."""
    folder = checkpoint_folder(root, iteration)
    return folder.with_name(folder.name + _PARTIAL)


def prepare(root: str | Path, iteration: int) -> None:
    """Make an empty partial folder; what crashes left behind, of this or another iteration, is removed."""
    for left_over in (*Path(root).glob(f"iter_*{_PARTIAL}"), *Path(root).glob(f"iter_*{_REPLACED}")):
        shutil.rmtree(left_over, ignore_errors=True)
    partial_folder(root, iteration).mkdir(parents=True)


def commit(root: str | Path, iteration: int) -> None:
    """Turn the partial folder into the checkpoint and point the tracker at it."""
    partial, folder = partial_folder(root, iteration), checkpoint_folder(root, iteration)
    write_atomically(partial / FILE_SIZES, json.dumps(_sizes(partial), indent=1) + "\n")
    replaced = folder.with_name(folder.name + _REPLACED)
    if folder.exists():
        _point_elsewhere(root, iteration)
        os.replace(folder, replaced)
    os.replace(partial, folder)
    write_atomically(Path(root) / TRACKER, str(iteration))
    shutil.rmtree(replaced, ignore_errors=True)


def _point_elsewhere(root: str | Path, iteration: int) -> None:
    """Make the tracker name another checkpoint than ``iteration``, or none, while that one is being replaced."""
    others = [other for other in iterations(root) if other != iteration and not find_damage(root, other)]
    if others:
        write_atomically(Path(root) / TRACKER, str(others[-1]))
    else:
        (Path(root) / TRACKER).unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by a file with ``text``: a reader sees the old or the new one, never a part."""
    partial = path.with_name(path.name + _PARTIAL)
    with partial.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.stat().st_size for file in files}


def iterations(root: str | Path) -> list[int]:
    """Iterations of the checkpoints in ``root``, oldest first."""
    names = [folder.name for folder in Path(root).glob("iter_*") if folder.is_dir()]
    return sorted(int(name[5:]) for name in names if name[5:].isdigit())


def find(root: str | Path, step: int | None) -> int | None:
    """The iteration to load from ``root``: ``step``, or the newest; None where there is no checkpoint at all.

    Raises:
        UserError: ``step`` is not there, or the chosen checkpoint is damaged.
    """
    iteration = step if step is not None else _newest(root)
    if iteration is None:
        return None
    if not checkpoint_folder(root, iteration).is_dir():
        there = ", ".join(str(found) for found in iterations(root)) or "none"
        source = f"--ckpt-step {step}" if step is not None else f"{Path(root) / TRACKER}"
        raise UserError(
            f"there is no checkpoint of iteration {iteration}, which {source} names, in {root}; choose one of those "
            f"there with --ckpt-step: {there}"
        )
    damage = find_damage(root, iteration)
    if damage:
        raise UserError(
            f"the checkpoint {checkpoint_folder(root, iteration)} is damaged: {damage}; {remedy(root, iteration)}"
        )
    return iteration


def _newest(root: str | Path) -> int | None:
    tracker = Path(root) / TRACKER
    if not tracker.exists():
        # A crash may have come between the first checkpoint's last rename and the tracker.
        return max(iterations(root), default=None)
    text = tracker.read_text().strip()
    if not text.isdigit():
        raise UserError(f"{tracker} holds '{text}', not an iteration; choose a checkpoint with --ckpt-step")
    return int(text)


def find_damage(root: str | Path, iteration: int) -> str | None:
    """What is wrong with a checkpoint's files, or None. A checkpoint of another program has no sizes to compare."""
    folder = checkpoint_folder(root, iteration)
    record = folder / FILE_SIZES
    if not record.exists():
        missing = [name for name in ("metadata.json", "common.pt") if not (folder / name).is_file()]
        return f"{missing[0]} is missing" if missing else None
    try:
        sizes = json.loads(record.read_text())
    except ValueError:
        return f"{FILE_SIZES} is cut short"
    for name, expected in sizes.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected:
            return f"{name} has {file.stat().st_size} bytes instead of {expected}"
    return None


def remedy(root: str | Path, iteration: int) -> str:
    """What to do about a damaged checkpoint: load the newest whole one before ``iteration``."""
    whole = [before for before in iterations(root) if before < iteration and not find_damage(root, before)]
    return (
        f"load the one before it with --ckpt-step {whole[-1]}"
        if whole
        else "there is no whole one before it, so start anew without --load"
    )
