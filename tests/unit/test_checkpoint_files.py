"""Checkpoint folders: what is complete, what is damaged, and what a crash at any moment leaves behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from megatron.training import checkpoint_files
from megatron.training.checkpoint_files import (
    checkpoint_folder,
    commit,
    find,
    iterations,
    partial_folder,
    prepare,
    write_atomically,
)
from megatron.training.errors import UserError


def write(root: Path, iteration: int, weights: str) -> None:
    """What megatron-core does between ``prepare`` and ``commit``."""
    folder = partial_folder(root, iteration)
    (folder / "common.pt").write_text("common")
    (folder / "metadata.json").write_text("{}")
    (folder / "__0_0.distcp").write_text(weights)


def save(root: Path, iteration: int, weights: str = "weights") -> None:
    prepare(root, iteration)
    write(root, iteration, weights)
    commit(root, iteration)


def weights_of(root: Path, iteration: int) -> str:
    return (checkpoint_folder(root, iteration) / "__0_0.distcp").read_text()


def refused(root: Path, step: int | None = None) -> str:
    with pytest.raises(UserError) as raised:
        find(root, step)
    return str(raised.value)


def test_a_folder_without_checkpoints_gives_none(tmp_path):
    assert find(tmp_path, None) is None
    assert find(tmp_path / "not there", None) is None


def test_the_newest_is_found_and_any_other_by_its_iteration(tmp_path):
    save(tmp_path, 2)
    save(tmp_path, 10)
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == "10"
    assert (find(tmp_path, None), find(tmp_path, 2), iterations(tmp_path)) == (10, 2, [2, 10])


def test_a_step_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    save(tmp_path, 2)
    save(tmp_path, 4)
    assert "--ckpt-step 3" in refused(tmp_path, 3) and "2, 4" in refused(tmp_path, 3)


def test_a_tracker_that_names_a_missing_checkpoint_is_refused_with_those_that_are_there(tmp_path):
    save(tmp_path, 2)
    save(tmp_path, 4)
    shutil.rmtree(checkpoint_folder(tmp_path, 4))
    sentence = refused(tmp_path)
    assert all(part in sentence for part in ("iteration 4", "latest_checkpointed_iteration.txt", "--ckpt-step: 2"))


def test_a_tracker_without_an_iteration_is_refused_with_what_it_holds(tmp_path):
    save(tmp_path, 2)
    (tmp_path / checkpoint_files.TRACKER).write_text("release")
    assert "'release'" in refused(tmp_path) and "--ckpt-step" in refused(tmp_path)
    assert find(tmp_path, 2) == 2


@pytest.mark.parametrize("name", ["common.pt", "metadata.json", "__0_0.distcp"])
def test_a_truncated_file_is_named_and_the_checkpoint_before_it_offered(tmp_path, name):
    for iteration in (2, 4, 6):
        save(tmp_path, iteration)
    os.truncate(checkpoint_folder(tmp_path, 6) / name, 1)
    sentence = refused(tmp_path)
    assert all(part in sentence for part in ("iter_0000006", f"{name} has 1 bytes instead of", "--ckpt-step 4"))
    assert find(tmp_path, 4) == 4


def test_a_missing_file_is_named_and_a_damaged_one_before_is_not_offered(tmp_path):
    for iteration in (2, 4, 6):
        save(tmp_path, iteration)
    (checkpoint_folder(tmp_path, 6) / "__0_0.distcp").unlink()
    os.truncate(checkpoint_folder(tmp_path, 4) / "common.pt", 0)
    assert "__0_0.distcp is missing" in refused(tmp_path) and "--ckpt-step 2" in refused(tmp_path)
    shutil.rmtree(checkpoint_folder(tmp_path, 2))
    assert "no whole one before it" in refused(tmp_path)


def test_a_truncated_list_of_sizes_is_damage_too(tmp_path):
    save(tmp_path, 2)
    os.truncate(checkpoint_folder(tmp_path, 2) / checkpoint_files.FILE_SIZES, 5)
    assert "file_sizes.json" in refused(tmp_path)


def test_a_checkpoint_of_another_program_needs_what_every_checkpoint_has(tmp_path):
    save(tmp_path, 2)
    (checkpoint_folder(tmp_path, 2) / checkpoint_files.FILE_SIZES).unlink()
    assert find(tmp_path, None) == 2
    (checkpoint_folder(tmp_path, 2) / "common.pt").unlink()
    assert "common.pt is missing" in refused(tmp_path)


def test_what_a_crash_left_is_no_checkpoint_and_goes_with_the_next_save(tmp_path):
    save(tmp_path, 2)
    prepare(tmp_path, 4)
    write(tmp_path, 4, "half")
    assert (find(tmp_path, None), iterations(tmp_path)) == (2, [2])
    save(tmp_path, 6)
    assert not partial_folder(tmp_path, 4).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "iter_0000002",
        "iter_0000006",
        "latest_checkpointed_iteration.txt",
    ]


def test_writing_fails_without_touching_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_atomically(file, "old")
    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(Killed):
        write_atomically(file, "new")
    assert file.read_text() == "old"


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing cleans up after it."""


def stop(*_args) -> None:
    raise Killed


# Everything by which a save changes the disk.
CHANGES = [(os, "replace"), (os, "fsync"), (shutil, "rmtree"), (Path, "unlink"), (Path, "mkdir"), (Path, "write_text")]


def save_until(root: Path, iteration: int, weights: str, number: int, before: bool) -> bool:
    """Save, but be killed at change ``number`` (before or after it is made); False where there are fewer changes."""
    left = [number]

    def counted(change):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0 and before:
                raise Killed
            result = change(*args, **kwargs)
            if left[0] == 0:
                raise Killed
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in CHANGES:
            patch.setattr(owner, name, counted(getattr(owner, name)))
        try:
            save(root, iteration, weights)
        except Killed:
            return True
    return False


def assert_a_whole_checkpoint_is_found(root: Path, expected: dict[int, set[str]]) -> None:
    """The one that is loaded without further flags is whole and one of ``expected`` (iteration: possible weights)."""
    found = find(root, None)
    assert weights_of(root, found) in expected[found]


@pytest.mark.parametrize("before", [True, False])
def test_killed_at_any_moment_of_a_save_the_newest_checkpoint_is_whole(tmp_path, before):
    number = 0
    killed = True
    while killed:
        number += 1
        root = tmp_path / str(number)
        save(root, 2, "two")
        killed = save_until(root, 4, "four", number, before)
        assert_a_whole_checkpoint_is_found(root, {2: {"two"}, 4: {"four"}})
        save(root, 4, "four again")
        assert_a_whole_checkpoint_is_found(root, {4: {"four again"}})
    assert number > 8 and find(root, None) == 4


@pytest.mark.parametrize("before", [True, False])
def test_killed_while_the_newest_is_replaced_a_whole_checkpoint_is_found(tmp_path, before):
    number = 0
    killed = True
    while killed:
        number += 1
        root = tmp_path / str(number)
        save(root, 2, "two")
        save(root, 4, "old")
        killed = save_until(root, 4, "new", number, before)
        assert_a_whole_checkpoint_is_found(root, {2: {"two"}, 4: {"old", "new"}})
        save(root, 4, "newest")
        assert_a_whole_checkpoint_is_found(root, {4: {"newest"}})
        assert not [path.name for path in root.iterdir() if "." in path.name.removesuffix(".txt")]
    assert number > 8 and weights_of(root, 4) == "newest"


@pytest.mark.parametrize("before", [True, False])
def test_killed_during_the_first_save_there_is_no_checkpoint_or_a_whole_one(tmp_path, before):
    number = 0
    killed = True
    while killed:
        number += 1
        root = tmp_path / str(number)
        killed = save_until(root, 4, "four", number, before)
        if find(root, None) is not None:
            assert_a_whole_checkpoint_is_found(root, {4: {"four"}})
    assert find(root, None) == 4


def test_the_tests_of_killed_saves_can_fail(tmp_path, monkeypatch):
    """Negative control: with the tracker written first, some moment leaves it naming what isn't there."""

    def tracker_first(root, iteration):
        write_atomically(Path(root) / checkpoint_files.TRACKER, str(iteration))
        os.replace(partial_folder(root, iteration), checkpoint_folder(root, iteration))

    monkeypatch.setitem(globals(), "commit", tracker_first)
    with pytest.raises(UserError, match="no checkpoint of iteration 4"):
        test_killed_at_any_moment_of_a_save_the_newest_checkpoint_is_whole(tmp_path, True)
