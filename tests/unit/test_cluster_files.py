"""Cluster files: every table has a reader, and a run takes from them its flags alone."""

from __future__ import annotations

import pytest

from megatron.training.arguments import parse_args
from tools.cluster_files import FOLDER, TABLES, check_keys, read_cluster


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.toml")))
def test_every_cluster_has_tables_that_somebody_reads(name):
    assert set(read_cluster(name)) == set(TABLES)


def test_a_run_takes_the_flags_of_its_cluster(tmp_path):
    for folder in ("clusters", "runs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "clusters" / "small.toml").write_text("[flags]\nnode-size = 3\n[node]\nnics = 1\n")
    (tmp_path / "runs" / "run.toml").write_text('cluster = "small"\n')
    assert parse_args(["--config", str(tmp_path / "runs" / "run.toml")]).node_size == 3


def test_a_mistake_in_a_cluster_is_one_sentence(tmp_path):
    (tmp_path / "wrong.toml").write_text("[nodes]\nnics = 1\n")
    with pytest.raises(ValueError, match="'nodes' is not one of the tables"):
        read_cluster("wrong", tmp_path)
    with pytest.raises(ValueError, match="there is no cluster 'absent' in .*; there are: wrong"):
        read_cluster("absent", tmp_path)
    with pytest.raises(ValueError, match="here: unknown key 'nic'; known are: nics"):
        check_keys("here", {"nic": 1}, {"nics"})
    with pytest.raises(ValueError, match="here: 'nics' is missing"):
        check_keys("here", {}, {"nics"}, {"nics"})
