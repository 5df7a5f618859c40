"""Own runs re-anchor a cluster; gloo's collectives of the emulated cluster."""

from __future__ import annotations

import dataclasses
import json
from argparse import Namespace

import pytest

from sdp4bit_patches.config import PRESETS, CommConfig
from tools.simulator import fit as fit_command
from tools.simulator.anchor import Anchored, MeasuredRun, anchor, median_step_seconds, with_calibration
from tools.simulator.constants import Constants, read_calibration
from tools.simulator.job import Job
from tools.simulator.machine import load_cluster
from tools.simulator.model_shape import read_model
from tools.simulator.predict import predict_words
from tools.simulator.step import predict

RUN = "model=gpt_tiny gpus=4 micro-batch-size=4 use-distributed-optimizer=true"


def _job(scheme: str = "baseline", **changes) -> Job:
    given = {"cluster": load_cluster("emulated_2x2"), "dp": 4, "micro_batch": 4, "seq": 256, "accumulation": 2}
    given |= {"transformer_engine": False, "comm": CommConfig(**PRESETS[scheme])}
    return Job(read_model("gpt_tiny"), **given | changes)


def test_an_anchored_machine_takes_what_the_runs_took():
    cluster = load_cluster("emulated_2x2")
    truth = dataclasses.replace(read_calibration().constants(cluster), sustained_clock=0.6, tcp_efficiency=0.4)
    jobs = [_job(), _job(accumulation=16), _job("sdp4bit", cluster=cluster.with_link(0.1))]
    runs = [MeasuredRun(job, predict(job, truth).step_seconds) for job in jobs]
    made = anchor(runs, read_calibration().constants(cluster))
    for run in runs:
        assert made.predict(run.job).step_seconds == pytest.approx(run.step_seconds, rel=0.03)
    other = _job("duo4bit", accumulation=8, cluster=cluster.with_link(0.2))
    assert made.predict(other).step_seconds == pytest.approx(predict(other, truth).step_seconds, rel=0.1)


def test_one_run_is_not_enough():
    with pytest.raises(ValueError, match="one run cannot tell a machine from its network"):
        anchor([MeasuredRun(_job(), 1.0)], Constants())


def test_an_anchored_cluster_is_a_file_that_predict_reads(tmp_path, capsys):
    words = []
    for count, seconds in ((2, 0.5), (8, 1.6)):
        path = tmp_path / f"metrics_{count}.jsonl"
        path.write_text("".join(json.dumps({"step_ms": seconds * 1e3}) + "\n" for _ in range(6)))
        words.append(f"{path} {RUN} global-batch-size={16 * count}")
    out = tmp_path / "mine.toml"
    fit_command.run(Namespace(anchor=words, cluster="emulated_2x2", out=str(out)))
    assert "measured 500.0 ms" in capsys.readouterr().out
    anchored = load_cluster(str(out))
    assert anchored.calibration
    made = predict(_job(cluster=anchored))
    assert made.step_seconds == pytest.approx(0.5, rel=0.15)


def test_a_second_anchoring_replaces_the_first():
    first, second = (Anchored(Constants(shared_ring=share), {"tflops": share}) for share in (0.9, 0.4))
    once = with_calibration("[device]\ntflops = 0.15  # a guess\n", first, Constants())
    assert "tflops = 0.9  # a guess" in once
    twice = with_calibration(once, second, Constants())
    assert twice.count("[calibration]") == 1 and "shared_ring = 0.4" in twice and "0.9" not in twice


def test_rates_of_a_host_are_found_and_those_of_a_gpu_are_not_touched():
    cluster = load_cluster("emulated_2x2")
    faster = cluster.with_rates({"tflops": 0.6, "memory-gb-per-s": 20.0})
    jobs = [_job(), _job(accumulation=16), _job("sdp4bit", accumulation=8, micro_batch=1)]
    constants = read_calibration().constants(cluster)
    runs = [MeasuredRun(job, predict(dataclasses.replace(job, cluster=faster)).step_seconds) for job in jobs]
    made = anchor(runs, constants)
    for run in runs:
        assert made.predict(run.job).step_seconds == pytest.approx(run.step_seconds, rel=0.05)
    assert made.rates["tflops"] > 0.3
    assert load_cluster("a100_32").host_rates == {}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("not json\n", "is not a file of --metrics-file"), ('{"step_ms": 1.0}\n', "has 1 steps")],
)
def test_a_file_without_steps_is_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        median_step_seconds(path)


def test_slow_links_cost_the_emulated_baseline_what_its_bytes_take():
    """An all-reduce of fp32 gradients in the place of a reduce-scatter: 2 x 3/4 of them leave a node."""
    cluster = load_cluster("emulated_2x2")
    slow, fast = (predict(_job(cluster=cluster.with_link(gbps)), Constants()) for gbps in (0.05, 0.1))
    parameters = read_model("gpt_tiny").num_parameters()
    num_bytes = parameters * (4 * 2 + 2) * 3 / 4
    expected = num_bytes / (0.05e9 / 8 * Constants().tcp_efficiency)
    assert slow.step_seconds - fast.step_seconds == pytest.approx(expected / 2, rel=0.02)


def test_compression_pays_on_emulated_slow_links():
    cluster = load_cluster("emulated_2x2").with_link(0.02)
    steps = [predict(_job(scheme, cluster=cluster)).step_seconds for scheme in ("baseline", "sdp4bit")]
    assert steps[0] > 3 * steps[1]


def test_a_program_asks_for_a_run_of_the_emulated_cluster_by_its_words():
    words = f"{RUN} cluster=emulated_2x2 link-gbps=0.2 seq-length=128 compression=duo4bit global-batch-size=64"
    made = predict_words(words.split())
    assert made["slow_sync_seconds"] > 0 and made["step_seconds"] > made["exposed_seconds"] > 0
