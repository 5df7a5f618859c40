"""The picture of DUO's distance: what it reads, what it says about growth, and what it refuses."""

from __future__ import annotations

import json

import pytest

from tools.plot_duo_distance import draw, read_distances, table


def _write(path, distances):
    path.write_text("".join(json.dumps({"iteration": 1, "duo_distance_per_lr": value}) + "\n" for value in distances))
    return path


def test_growth_shows_in_the_ratio_and_a_steady_distance_does_not(tmp_path):
    steady = read_distances(_write(tmp_path / "steady", [2.0] * 100))
    growing = read_distances(_write(tmp_path / "growing", range(100)))
    rows = [line.split("|")[-2].strip() for line in table({"steady": steady, "growing": growing}).splitlines()]
    assert rows[2:] == ["1.00", "6.52"]
    draw({"steady": steady, "growing": growing}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_duo_and_a_cut_file_are_refused(tmp_path):
    (tmp_path / "other").write_text('{"iteration": 1}\n')
    with pytest.raises(ValueError, match="duo_distance_per_lr of 0 steps: give a run of 10 or more with a duo preset"):
        read_distances(tmp_path / "other")
    (tmp_path / "cut").write_text('{"iteration": 1')
    with pytest.raises(ValueError, match="not a whole metrics file"):
        read_distances(tmp_path / "cut")
