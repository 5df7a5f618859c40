"""The planner: what it ranks, what falls out and why, where compression pays, and its output."""

from __future__ import annotations

import argparse
import json

import pytest

from sdp4bit_patches.config import PRESETS, CommConfig
from tools.simulator import plan, predict
from tools.simulator.machine import load_cluster
from tools.simulator.model_shape import read_model
from tools.simulator.planning import Request, break_even, candidates, hiding_accumulation, step_seconds
from tools.simulator.step import predict as predict_step


def _request(**changes) -> Request:
    given = {
        "model": read_model("gpt_13b"),
        "cluster": load_cluster("a100_slingshot10"),
        "gpus": 64,
        "global_batch": 128,
        "seq": 2048,
        "schemes": ("baseline", "sdp4bit", "duo4bit"),
    }
    return Request(**given | changes)


@pytest.fixture(scope="module")
def found():
    return candidates(_request())[0]


def test_what_fits_is_ranked_by_step_time_and_comes_first(found):
    feasible = [candidate for candidate in found if not candidate.reason]
    times = [candidate.prediction.step_seconds for candidate in feasible]
    assert found[: len(feasible)] == feasible and times == sorted(times)
    assert all(candidate.job.gpus == 64 and candidate.job.global_batch == 128 for candidate in found)


def test_what_does_not_fit_says_how_much_it_needs(found):
    reasons = [candidate.reason for candidate in found if candidate.reason]
    assert reasons and all("GiB of 39.4, most of it" in reason for reason in reasons)


def test_a_global_batch_that_does_not_divide_is_counted():
    refused = candidates(_request(global_batch=24))[1]
    assert any("global batch of 24" in reason for reason in refused)


def test_both_take_as_long_at_the_break_even(found):
    job = next(candidate.job for candidate in found if candidate.scheme == "baseline")
    slow = job.replace(cluster=load_cluster("cloud_4x1_a100"), dp=4, tp=1, pp=1, model=read_model("gpt_350m"))
    even = break_even(slow, "duo4bit")
    there = slow.replace(cluster=slow.cluster.with_link(even.gbps))
    assert step_seconds(there, "baseline") == pytest.approx(step_seconds(there, "duo4bit"), rel=0.02)
    assert even.pays == (slow.cluster.nic_gbps < even.gbps)


def test_the_hiding_accumulation_is_the_least():
    job = next(one.job for one in candidates(_request(schemes=("duo4bit",)))[0])
    count = hiding_accumulation(job)
    hidden = [predict_step(job.replace(accumulation=n)).fully_hidden for n in (count - 1, count)]
    assert hidden == [False, True]
    assert hiding_accumulation(job.replace(comm=CommConfig(**PRESETS["sdp4bit"]))) is None


def _plan(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    plan.add_arguments(parser)
    return parser.parse_args([*words])


def test_plan_prints_a_ranking_and_a_verdict_and_writes_json_and_a_picture(tmp_path, capsys):
    data, picture = tmp_path / "plan.json", tmp_path / "plan.png"
    words = "--model gpt_1p3b --cluster a100_slingshot10 --gpus 16 --global-batch 32 --top 3"
    plan.run(_plan(*words.split(), "--json", str(data), "--picture", str(picture)))
    printed = capsys.readouterr().out
    assert "sdp4bit pays" in printed and "second sync is" in printed
    written = json.loads(data.read_text())
    assert {point["scheme"] for point in written["break_even"]} == {"sdp4bit", "duo4bit"}
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_model_that_fits_nowhere_is_one_sentence():
    words = "--model gpt_18b --cluster cloud_4x1_a100 --gpus 2 --global-batch 8"
    with pytest.raises(ValueError, match="no layout is possible: the smallest needs .* GiB of 39.4"):
        plan.run(_plan(*words.split()))


def test_predict_reads_a_run_file_and_draws_its_timeline(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    picture, data = tmp_path / "timeline.png", tmp_path / "numbers.json"
    words = ["--config", "quickstart_duo4bit", "cluster=cloud_4x1_a100", "gpus=4"]
    predict.run(parser.parse_args([*words, "--picture", str(picture), "--json", str(data)]))
    printed = capsys.readouterr()
    assert "DUO's second sync is" in printed.out and "lr" in printed.err
    numbers = json.loads(data.read_text())
    assert sum(numbers["parts_seconds"].values()) == pytest.approx(numbers["step_seconds"])
    assert picture.read_bytes().startswith(b"\x89PNG")
