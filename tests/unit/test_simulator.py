"""The simulator: its counts against the papers' formulas, its parts against each other, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from megatron.training.flops import flops_per_sample
from sdp4bit_patches.config import PRESETS, CommConfig
from tools.simulator.compute import Matrix, matrix_seconds, wave_efficiency
from tools.simulator.constants import Constants, read_calibration
from tools.simulator.job import Job, place
from tools.simulator.machine import load_cluster
from tools.simulator.memory import activation_bytes_per_layer, fits, memory
from tools.simulator.model_shape import read_model
from tools.simulator.network import line_rate, ring_seconds
from tools.simulator.step import predict
from tools.simulator.traffic import data_traffic

ROOT = Path(__file__).resolve().parents[2]


def _job(**changes) -> Job:
    given = {
        "model": read_model("gpt_6p7b"),
        "cluster": load_cluster("a100_slingshot10"),
        "comm": CommConfig(),
        "tp": 4,
        "dp": 16,
        "accumulation": 8,
    }
    return Job(**given | changes)


def _scheme(name: str) -> CommConfig:
    return CommConfig(**PRESETS[name])


@pytest.mark.parametrize("name", ["gpt_1p3b", "gpt_18b", "llama3p1_8b"])
def test_flops_are_the_trainers(name):
    model = read_model(name)
    args = Namespace(
        hidden_size=model.hidden, kv_channels=model.channels, seq_length=4096, num_attention_heads=model.heads,
        num_query_groups=model.query_groups, ffn_hidden_size=model.ffn_hidden, num_experts=None, swiglu=model.swiglu,
        num_layers=model.num_layers, padded_vocab_size=model.padded_vocab(4),
    )  # fmt: skip
    assert model.flops_per_sample(4096, tp=4) == pytest.approx(flops_per_sample(args), rel=1e-12)


def test_llama_has_its_published_number_of_parameters():
    assert read_model("llama-3.1-8b").num_parameters() == 8_030_261_248


def test_stages_share_the_models_parameters():
    model = read_model("llama3p1_8b")
    stages = sum(model.stage_parameters(1, 4, stage) for stage in range(4))
    assert stages == model.num_parameters()


def test_parts_add_up_to_the_step():
    made = predict(_job(comm=_scheme("duo4bit"), pp=2, dp=8))
    assert sum(vars(made.parts).values()) == pytest.approx(made.step_seconds)
    assert made.step_seconds > made.compute_seconds > 0


def test_activations_follow_korthikanti_for_a_plain_gpt():
    """Selective recompute with sequence parallelism: s b h 34 / t bytes a layer (arXiv 2205.05198, equation 6)."""
    job = _job(recompute="selective", micro_batch=2)
    expected = job.seq * 2 * job.model.hidden * 34 / 4
    assert activation_bytes_per_layer(job) == pytest.approx(expected)
    whole = job.replace(sequence_parallel=False)
    assert activation_bytes_per_layer(whole) == pytest.approx(job.seq * 2 * job.model.hidden * (10 + 24 / 4))


def test_a_ring_shares_the_nodes_cards_with_the_nodes_other_rings():
    cluster, constants = load_cluster("tsubame4_h100_94gb"), Constants()
    alone = ring_seconds(1e10, place(64, 1, 4), cluster, constants)
    four = ring_seconds(1e10, place(16, 4, 4), cluster, constants)
    assert four / alone == pytest.approx(4 * (15 / 16) / (63 / 64), rel=0.05)


def test_what_gloo_takes_of_a_nodes_processes_is_added_to_the_lines_time() -> None:
    constants = Constants(tcp_efficiency=1.0, gloo_host_ms_per_mb=3.0)
    gloo, nccl = load_cluster("emulated_2x2").with_link(0.8), load_cluster("cloud_4x1_a100").with_link(0.8)
    assert (gloo.collectives, nccl.collectives, nccl.network) == ("gloo", "nccl", "tcp")
    assert [1e6 / line_rate(cluster, constants) for cluster in (gloo, nccl)] == pytest.approx([13e-3, 10e-3])


def test_traffic_is_what_wire_says():
    job = _job(comm=CommConfig(**PRESETS["sdp4bit"], quantize_all_parameters=True))
    traffic, parameters = data_traffic(job, 0), job.model.stage_parameters(4, 1, 0)
    assert traffic.inter == job.comm.inter_format.num_bytes(parameters)
    assert traffic.gather == job.comm.weight_format.num_bytes(parameters)
    assert traffic.intra == traffic.ring == 0
    assert data_traffic(_job(), 0).ring == 4 * parameters


def test_two_levels_carry_the_second_hop_of_a_nodes_share_only():
    job = _job(tp=1, dp=64, comm=_scheme("sdp4bit"))
    traffic = data_traffic(job, 0)
    assert traffic.inter / traffic.intra == pytest.approx(4.25 / 8.25 / 4, rel=0.01)


def test_tiles_that_do_not_fill_a_wave_cost_time():
    device = load_cluster("a100_32").device
    assert wave_efficiency(128 * 108, 256, device) == 1.0
    assert wave_efficiency(128 * 109, 256, device) == pytest.approx(109 / 216)
    small, large = Matrix(4096, 1024, 1024), Matrix(4096, 8192, 8192)
    rates = [matrix.flops / matrix_seconds(matrix, device, Constants()) for matrix in (small, large)]
    assert rates[0] < rates[1] < device.gemm_flops


def test_compression_gains_where_links_are_slow_and_little_where_they_are_fast():
    gains = []
    for gbps in (1, 10_000):
        cluster = load_cluster("a100_slingshot10").with_link(gbps)
        base, compressed = (predict(_job(cluster=cluster, comm=_scheme(name))) for name in ("baseline", "sdp4bit"))
        gains.append(base.step_seconds / compressed.step_seconds)
    assert gains[0] > 4 and gains[1] < 1.3


def test_the_second_sync_hides_behind_more_micro_batches():
    made = [predict(_job(comm=_scheme("duo4bit"), accumulation=count)) for count in (1, 256)]
    assert [one.fully_hidden for one in made] == [False, True]
    fast = predict(_job(comm=_scheme("sdp4bit"), accumulation=256))
    assert made[1].step_seconds == pytest.approx(fast.step_seconds, rel=0.01)
    assert predict(_job()).slow_sync_seconds is None


def test_overlap_shortens_a_step_and_a_pipeline_has_a_bubble():
    plain = _job(micro_batch=16, cluster=load_cluster("abci_a100_40gb"))
    overlapped = plain.replace(overlap_grad_reduce=True, overlap_param_gather=True)
    assert predict(overlapped).step_seconds < 0.99 * predict(plain).step_seconds
    staged = _job(pp=4, dp=4)
    interleaved = _job(pp=4, dp=4, virtual_pp=2)
    assert predict(staged).parts.bubble == pytest.approx(2 * predict(interleaved).parts.bubble)
    assert predict(plain).parts.bubble == 0


def test_memory_tells_what_fits():
    small, large = _job(), _job(tp=1, dp=64)
    assert fits(small, memory(small)) and not fits(large, memory(large))
    held = memory(small.replace(recompute="full")).activations
    assert held < memory(small).activations


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tp": 3}, "tensor parallel size 3 does not divide 32 attention heads"),
        ({"pp": 5}, "32 layers do not divide into 5 pipeline chunks"),
        ({"micro_batch": 0}, "micro_batch = 0: give a positive integer"),
        ({"recompute": "some"}, "recompute = 'some': use one of none, selective, full"),
    ],
)
def test_a_layout_that_cannot_be_is_one_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        _job(**changes)


def test_a_constant_outside_its_range_is_refused(tmp_path):
    with pytest.raises(ValueError, match="sustained_clock = 1.4 share: plausible is 0.5 to 1"):
        Constants(sustained_clock=1.4)
    path = tmp_path / "calibration.toml"
    path.write_text("[common]\nshared_ring = 7\n")
    with pytest.raises(ValueError, match="shared_ring = 7"):
        read_calibration(path)
    path.write_text("[common]\nmagic = 1\n")
    with pytest.raises(ValueError, match="unknown key 'magic'"):
        read_calibration(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[node]\ndevices = 4\nnics = 2\n", "'nic-gbps' is missing"),
        ("[node]\ndevices = 4\nnics = 2\nnic-gbps = -1\n", "nic-gbps = -1: give a positive number"),
        ("[node]\ndevices = 4\nnics = 2\nnic-gbps = 1\nwifi = 1\n", "unknown key 'wifi'"),
        ("[node]\ndevices = 4\nnics = 2\nnic-gbps = 1\n[device]\nname = 'TPU'\n", "'TPU' has no"),
    ],
)
def test_a_mistake_in_a_cluster_is_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        load_cluster(str(path))


@pytest.mark.parametrize(
    "name",
    # The others are for launching jobs: nobody has measured what their devices do.
    "a100_32 a100_slingshot10 abci_a100_40gb cloud_4x1_a100 fugaku_a64fx h800_infiniband tsubame4_h100_94gb".split(),
)
def test_every_cluster_can_be_simulated(name):
    cluster = load_cluster(name)
    job = Job(read_model("gpt_125m"), cluster, CommConfig(), dp=4 * cluster.devices)
    assert predict(job).step_seconds > 0


def _run(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-X", "importtime", "-m", "tools.simulator", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_predict_loads_neither_torch_nor_matplotlib():
    words = "model=gpt_13b cluster=a100_32 gpus=32 tensor-model-parallel-size=4 micro-batch-size=1 seq-length=2048"
    done = _run("predict", "--config", *words.split())
    assert done.returncode == 0 and "TFLOP/s per GPU" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "tools.simulator.step" in loaded
    assert not {name for name in loaded if name.split(".")[0] in ("torch", "megatron", "matplotlib", "scipy")}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("model=gpt_13b hiden-size=3", "did you mean hidden-size?"),
        ("model=gpt_13b", "cluster, gpus, micro-batch-size not given"),
        ("model=gpt_13b cluster=nowhere gpus=4 micro-batch-size=1 seq-length=2048", "there is no cluster 'nowhere'"),
        ("nothing", "there is no"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(words, sentence):
    done = _run("predict", "--config", *words.split())
    errors = [line for line in done.stderr.splitlines() if not line.startswith("import time")]
    assert done.returncode == 2 and len(errors) == 1 and sentence in errors[0]
