"""What a batch script is told before it starts anything, and the record that a run leaves in its folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.training.arguments import parse_args
from megatron.training.validation import validate_args
from tools import run_folder
from tools.launch import container_words, launch_table
from tools.sweep.sweep_file import ROOT

MODEL = (
    "--num-layers 2 --hidden-size 64 --num-attention-heads 4 --seq-length 32 --max-position-embeddings 32 --lr 1e-3 "
    "--micro-batch-size 1 --train-iters 10 --mock-data --vocab-size 127"
).split()


def launch(options: str, words: list[str], **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tools.launch", *options.split(), "--", *words],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "CLUSTER": "", **environment},
    )  # fmt: skip


def evaluated(answer: str, expression: str) -> str:
    """What a shell makes of ``expression`` after it has evaluated the answer."""
    return subprocess.check_output(["bash", "-c", f'eval "$1"; printf %s "{expression}"', "bash", answer], text=True)


def test_the_answer_is_shell_that_has_folder_words_and_the_clusters_variables(tmp_path: Path) -> None:
    words = [*MODEL, "--data-cache-path", "a b'c", "--save", str(tmp_path / "checkpoints")]
    ran = launch(f"--nodes 2 --folder {tmp_path}/run", words, CLUSTER="local_slurm")
    assert ran.returncode == 0, ran.stderr
    assert evaluated(ran.stdout, "$folder") == f"{tmp_path}/run"
    assert evaluated(ran.stdout, "$processes $resumes $MASTER_ADDR $GLOO_SOCKET_IFNAME") == "2 yes 127.0.0.1 lo"
    told = evaluated(ran.stdout, "${words[*]}")
    added = f"--node-size 2 --metrics-file {tmp_path}/run/metrics.jsonl --load {tmp_path}/checkpoints"
    assert told == " ".join([*words, added])
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert (record["ranks"], record["nodes"], record["cluster"]) == (4, 2, "local_slurm")


def test_where_nodes_differ_each_takes_the_ranks_that_slurm_gives_it(tmp_path: Path) -> None:
    ran = launch(f"--nodes 3 --ranks 8 --folder {tmp_path}/run", MODEL, CLUSTER="local_slurm")
    assert evaluated(ran.stdout, "[$processes]") == "[]"
    assert json.loads((tmp_path / "run/run.json").read_text())["ranks"] == 8


def test_the_cluster_is_also_told_by_the_run_file(tmp_path: Path) -> None:
    for name, text in {"first": 'cluster = "local_slurm"\n', "second": 'base = "first"\n'}.items():
        (tmp_path / f"{name}.toml").write_text(text)
    configs = tmp_path / "runs"
    configs.mkdir()
    (tmp_path / "clusters").symlink_to(ROOT / "configs/clusters")
    for name in ("first", "second"):
        (tmp_path / f"{name}.toml").rename(configs / f"{name}.toml")
    ran = launch(f"--nodes 1 --folder {tmp_path}/run", ["--config", str(configs / "second.toml"), *MODEL])
    assert "export GLOO_SOCKET_IFNAME=lo" in ran.stdout, ran.stderr


@pytest.mark.parametrize(
    ("options", "words", "cluster", "sentence"),
    [
        ("--nodes 2", MODEL, "absent", "there is no cluster 'absent'"),
        ("--nodes 2", MODEL, "", "how many processes a node has is not known: ask for GPUs"),
        (
            "--nodes 3 --processes 1",
            [*MODEL, "--tensor-model-parallel-size", "2"],
            "",
            "the world size 3 is not divisible",
        ),
        ("--nodes 1 --processes 1", [*MODEL, "--hiden-size", "3"], "", "unknown flag --hiden-size; did you mean"),
        ("--nodes 0 --processes 1", MODEL, "", "0 is not a positive number"),
    ],
)
def test_what_cannot_run_is_one_sentence_before_anything_starts(tmp_path, options, words, cluster, sentence) -> None:
    ran = launch(f"{options} --folder {tmp_path}/run", words, CLUSTER=cluster)
    assert ran.returncode == 2 and sentence in ran.stderr and ran.stderr.count("\n") == 1
    assert not ran.stdout and not (tmp_path / "run").exists()


def test_containers_are_srun_options_or_a_program_in_front() -> None:
    pyxis = {"runtime": "pyxis", "image": "nvcr.io#nvidia/pytorch", "mounts": ["/data:/data"]}
    options, prefix = container_words(pyxis, gpus=True)
    assert options[0] == "--container-image=nvcr.io#nvidia/pytorch" and not prefix
    assert options[1] == f"--container-mounts={Path.cwd()}:{Path.cwd()},/data:/data"
    options, prefix = container_words({"runtime": "apptainer", "image": "a.sif"}, gpus=True)
    assert not options and prefix == ["apptainer", "exec", "--nv", "--bind", str(Path.cwd()), "a.sif"]
    assert "--nv" not in container_words({"runtime": "apptainer", "image": "a.sif"}, gpus=False)[1]
    assert container_words({}, gpus=True) == ([], [])


def test_mistakes_in_a_clusters_launch_table_are_one_sentence() -> None:
    for table, sentence in [
        ({"enviroment": {}}, "unknown key 'enviroment'"),
        ({"device": "tpu"}, "device = 'tpu' has to be gpu or cpu"),
        ({"container": {"runtime": "docker", "image": "x"}}, "runtime has to be pyxis or apptainer"),
        ({"container": {"runtime": "pyxis"}}, "'image' is missing"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            launch_table("here", {"launch": table})


def test_every_clusters_launch_table_is_well_formed() -> None:
    from tools.cluster_files import FOLDER, read_cluster

    for path in FOLDER.glob("*.toml"):
        launch_table(path.stem, read_cluster(path.stem))


def begin(folder: Path, *further: str) -> None:
    words = [*MODEL, *further]
    run_folder.begin(folder, words, validate_args(parse_args(words), 1))


def test_a_folder_takes_a_run_again_but_no_other_run(tmp_path: Path) -> None:
    begin(tmp_path, "--save", "here")
    run_folder.end(tmp_path, 143)
    begin(tmp_path, "--save", "there")
    record = run_folder.read_record(tmp_path)
    assert record["starts"] == 2 and "exit_code" not in record
    with pytest.raises(ValueError, match="holds a run with another hidden_dropout: remove it"):
        begin(tmp_path, "--hidden-dropout", "0.2")


def test_the_end_of_a_run_is_recorded_with_its_memory(tmp_path: Path) -> None:
    begin(tmp_path, "--exit-interval", "5")
    (tmp_path / "node_0.log").write_text(" peak memory of rank 0: 1,234 MiB; 4 s in all\n")
    run_folder.end(tmp_path, 0)
    record = run_folder.read_record(tmp_path)
    assert (record["memory_mib"], record["exit_code"], record["iterations"]) == (1234, 0, 5)
    assert "torch 2" in record["machine"]


def test_a_damaged_record_is_one_sentence(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"run": "x"}'):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(ValueError, match="run.json is damaged: remove it"):
            run_folder.read_record(tmp_path)
    with pytest.raises(ValueError, match="no run was begun there"):
        run_folder.end(tmp_path / "absent", 0)
