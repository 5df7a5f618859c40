"""Published tables as runs: every row is one, each is well-formed, and a mistake in a table is one sentence."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.sweep.batch_scripts import FOLDER, batch_scripts, flag_groups, written_scripts
from tools.sweep.cells import cells
from tools.sweep.commands import torchrun_command
from tools.sweep.local import local_runs
from tools.sweep.runs import runs
from tools.sweep.sweep_file import CONFIGS, ROOT, read_sweep, sweep_names

# The tables, and how many rows each has as published (None: made of grids).
TABLES = {
    "sdp4bit_speed": 20, "sdp4bit_scaling": None, "sdp4bit_breakdown": None, "duo_scalability": 10,
    "duo_low_bandwidth": 36, "4d_a100_8k": 108, "4d_h100_8k": 102, "4d_h100_16k": 132, "cpu_1p3b": 16,
    "cpu_small": None, "accuracy": 38, "heterogeneous": 932, "slurm_trial": None,
}  # fmt: skip


def sweep_command(*words: str, timeout: float = 60.0) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tools.sweep", *words], cwd=ROOT, capture_output=True, text=True, timeout=timeout
    )


def test_every_published_table_is_there() -> None:
    assert sweep_names() == sorted(TABLES)


@pytest.mark.parametrize("name", [name for name, count in TABLES.items() if count])
def test_every_published_row_is_a_run(name: str) -> None:
    found = [run.id for run in runs(read_sweep(name))]
    assert len(found) == len(set(found)) == TABLES[name]


def test_every_run_passes_the_trainers_checks_and_its_model_is_built_without_memory() -> None:
    """What `check` does, within the two minutes that it may take."""
    ran = sweep_command("check", timeout=120.0)
    assert ran.returncode == 0, ran.stderr
    assert [line.split(":")[0] for line in ran.stdout.splitlines()] == sweep_names()
    # Of the accuracy runs none is split, so that the largest holds all of 1.3B.
    assert "accuracy: 38 runs are well-formed; accuracy-013" in ran.stdout
    assert "1,315,819,520 parameters" in ran.stdout


def test_rows_that_cannot_be_run_are_those_whose_layout_or_batch_does_not_divide() -> None:
    with (CONFIGS / "published/throughput.csv").open() as file:
        rows = list(csv.DictReader(file))
    wrong = {row["id"] for row in rows if int(row["gpus"]) % (int(row["tp"]) * int(row["cp"]) * int(row["pp"]))}
    found = [run for name in TABLES for run in runs(read_sweep(name)) if run.id in {row["id"] for row in rows}]
    too_large = {"4d_h100_16k-018", "4d_h100_16k-042"}  # 64 x 4 and 32 x 8 samples at a time, of a batch of 128
    assert {run.id for run in found if run.obstacle} == wrong | too_large
    assert len(wrong) == 11
    assert "does not divide its 8 GPUs" in next(run.obstacle for run in found if run.obstacle)


def test_a_run_takes_model_scheme_cluster_and_the_columns_of_its_row() -> None:
    run = next(run for run in runs(read_sweep("sdp4bit_speed")) if run.id == "sdp4bit_speed-014")
    args = run.arguments()
    assert (args.num_layers, args.hidden_size) == (40, 5120)
    assert (args.world_size, args.node_size, run.ranks_per_node) == (64, 4, 4)
    assert (args.tensor_model_parallel_size, args.pipeline_model_parallel_size, args.data_parallel_size) == (4, 2, 8)
    assert (args.micro_batch_size, args.global_batch_size) == (1, 8)
    assert args.quantized_weights and args.quantized_gradients
    assert not (args.overlap_grad_reduce or args.overlap_param_gather)
    assert args.gradient_alltoall_pipeline == 1
    other = next(run for run in runs(read_sweep("sdp4bit_speed")) if run.id == "sdp4bit_speed-010")
    assert other.arguments().gradient_alltoall_pipeline == 8


def test_a_published_accumulation_is_what_the_run_does() -> None:
    for name in ("4d_a100_8k", "4d_h100_8k", "duo_scalability", "duo_low_bandwidth"):
        for run in runs(read_sweep(name)):
            if not run.obstacle:
                args = run.arguments()
                steps = args.global_batch_size // (args.micro_batch_size * args.data_parallel_size)
                assert steps == int(run.cell["accumulation"]), run.id
                assert args.data_parallel_size == int(run.cell["dp"]), run.id
                assert not name.startswith("4d") or args.global_batch_size == 1024


def test_runs_of_the_4d_tables_have_their_variable_in_the_environment() -> None:
    run = runs(read_sweep("4d_a100_8k"))[0]
    assert torchrun_command(run).startswith("TORCH_NCCL_AVOID_RECORD_STREAMS=1 torchrun --nnodes 1 --nproc-per-node 8")
    assert all("export TORCH_NCCL_AVOID_RECORD_STREAMS=1\n" in text for text in batch_scripts([run]).values())


@pytest.mark.parametrize("name", TABLES)
def test_the_scripts_in_the_tree_are_what_emit_gives(name: str) -> None:
    assert written_scripts(name) == batch_scripts(runs(read_sweep(name)))


def test_the_check_of_scripts_sees_a_difference(tmp_path: Path) -> None:
    for name, text in written_scripts("duo_scalability").items():
        (tmp_path / name).write_text(text.replace("--nodes=8", "--nodes=9"))
    assert written_scripts("duo_scalability", tmp_path) != batch_scripts(runs(read_sweep("duo_scalability")))


def test_every_script_in_the_tree_belongs_to_a_table_and_is_a_script() -> None:
    for path in FOLDER.glob("*.sbatch"):
        assert path.name.split(".")[0] in {*TABLES, "train"}
        subprocess.run(["bash", "-n", str(path)], check=True)


def test_a_task_of_a_script_starts_its_run_with_exactly_its_flags(tmp_path: Path) -> None:
    """The script's last command is answered by a stand-in for bash that prints what it is given."""
    stand_in = tmp_path / "bash"
    stand_in.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    stand_in.chmod(0o755)
    expected = runs(read_sweep("duo_scalability"))
    [name] = written_scripts("duo_scalability")
    for task, run in enumerate(expected):
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": str(task)}
        command = [shutil.which("bash"), str(FOLDER / name)]
        script, *words = subprocess.check_output(command, env=environment, text=True).splitlines()
        assert script == "scripts/slurm/train.sbatch"
        assert sorted(flag_groups(words)) == sorted(flag_groups(run.words()))


@pytest.mark.parametrize("name", sorted(set(TABLES) - {"accuracy", "sdp4bit_scaling", "slurm_trial"}))
def test_scaled_down_runs_fit_this_machine(name: str) -> None:
    for run in local_runs(read_sweep(name)):
        assert run.arguments().world_size <= 4


def test_list_show_and_emit_print_every_run() -> None:
    printed = sweep_command("list", "duo_scalability").stdout
    shown = sweep_command("show", "duo_scalability").stdout
    emitted = sweep_command("emit", "duo_scalability", "duo_scalability-003").stdout
    for number in range(1, 11):
        assert f"duo_scalability-{number:03d}" in printed and f"# duo_scalability-{number:03d}\n" in shown
    assert "--array=0-0" in emitted and "# duo_scalability-003" in emitted
    assert "gpt_2p7b  sdp4bit  8 x 4 a100_32  4 x 1 x 1" in printed


def test_every_published_table_has_a_script_that_reproduces_it() -> None:
    scripts = "".join(path.read_text() for path in (ROOT / "scripts/reproduce").glob("*.sh"))
    assert set(TABLES) - {"slurm_trial"} <= set(re.findall(r"\w+", scripts))


# Mistakes, each in a copy of the configs.


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    shutil.copytree(CONFIGS, tmp_path / "configs")
    return tmp_path / "configs"


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def mistake(configs: Path, name: str) -> str:
    with pytest.raises(ValueError) as caught:
        for run in runs(read_sweep(name, configs), configs):
            run.arguments()
    return str(caught.value)


def test_a_row_whose_layout_does_not_divide_its_gpus_is_refused(configs: Path) -> None:
    change(configs / "published/throughput.csv", "a100_slingshot10,64,4,1,2,8", "a100_slingshot10,64,3,1,2,8")
    assert mistake(configs, "sdp4bit_speed").endswith(
        "sdp4bit_speed-013: TP x CP x PP = 3 x 1 x 2 = 6 does not divide its 64 GPUs, yet the table has a figure for "
        "it; mend the row"
    )


def test_a_cluster_without_a_figure_of_its_network_cards_is_refused(configs: Path) -> None:
    change(configs / "clusters/h800_infiniband.toml", "nic-gbps = 62.5", "")
    assert mistake(configs, "sdp4bit_speed") == (
        "the cluster 'h800_infiniband' has no nic-gbps in its table [node]; say it there"
    )


def test_a_published_file_that_was_cut_off_is_refused(configs: Path) -> None:
    path = configs / "published/cpu_1p3b.csv"
    path.write_text(path.read_text().rstrip().rpartition("yes")[0])
    assert "another number of cells than the head has" in mistake(configs, "cpu_1p3b")


def test_a_misspelled_flag_is_refused_with_the_right_spelling(configs: Path) -> None:
    change(configs / "sweeps/base/duo.toml", "overlap-param-gather", "overlap-params-gather")
    assert "unknown key 'overlap-params-gather'; did you mean --overlap-param-gather?" in mistake(
        configs, "duo_scalability"
    )


def test_a_flag_that_the_trainer_refuses_is_told_with_its_run(configs: Path) -> None:
    change(
        configs / "published/throughput.csv", "4d_a100_8k-003,4d_a100_8k,llama-3.1-8b", "4d_a100_8k-003,4d_a100_8k,x"
    )
    assert "4d_a100_8k-003: no model follows from its columns" in mistake(configs, "4d_a100_8k")
    change(
        configs / "published/throughput.csv", "4d_a100_8k-003,4d_a100_8k,x", "4d_a100_8k-003,4d_a100_8k,llama-3.1-8b"
    )
    change(configs / "sweeps/base/4d.toml", "bf16 = true", "bf16 = true\nfp16 = true")
    assert "4d_a100_8k-001: --bf16 and --fp16 exclude each other" in mistake(configs, "4d_a100_8k")


def test_mistakes_in_a_sweeps_file_are_one_sentence(configs: Path) -> None:
    path = configs / "sweeps/duo_scalability.toml"
    good = path.read_text()
    for old, new, sentence in [
        ("title =", "titel =", "unknown key 'titel'"),
        ('published = "throughput.csv"', "", "give its rows once"),
        ('"throughput.csv"', '"absent.csv"', "absent.csv: No such file"),
        ('table = "duo_scalability"', 'tabel = "x"', "there is no column 'tabel'"),
        ('"duo_scalability" }', '"other" }', "no row of"),
        ('["duo"]', '["absent"]', "`base` names files"),
        ("title", "title = [", "is not valid TOML"),
    ]:
        path.write_text(good.replace(old, new, 1))
        assert sentence in mistake(configs, "duo_scalability")


def test_an_unknown_table_and_an_unknown_run_are_one_sentence_and_exit_code_2() -> None:
    for words, sentence in [
        (["list", "duo_scalabilty"], "there is no table 'duo_scalabilty'; there are: 4d_a100_8k, "),
        (["show", "duo_scalability", "x"], "duo_scalability has no run 'x'"),
        (["local", "accuracy"], "has no table [local]: nothing of it can be run on one machine"),
        (["submit", "cpu_small"], "none of these runs is for Slurm"),
        (["emit"], "emit needs a table; there are: 4d_a100_8k, "),
    ]:
        ran = sweep_command(*words)
        assert ran.returncode == 2
        assert sentence in ran.stderr and ran.stderr.count("\n") == 1


def test_a_table_is_joined_with_the_times_published_beside_it() -> None:
    found = cells(read_sweep("duo_low_bandwidth"))
    assert found["duo_low_bandwidth-001"]["slow_gradient_sync_ms"] == "2135"
    assert found["duo_low_bandwidth-002"]["slow_gradient_sync_ms"] == ""
    assert found["duo_low_bandwidth-013"]["slow_gradient_sync_ms"] == ""
