"""The scheduler: exact solvers against brute force, the published costs to three decimals, plans, files, bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from megatron.training.layout import read_layout
from tools.scenario_files import read_scenario
from tools.scheduler.cost_model import CostModel
from tools.scheduler.genetic import search
from tools.scheduler.layouts import megatron_layout, pipelines_in_a_row
from tools.scheduler.local_search import fast_link_measure, improve, kernighan_lin_measure
from tools.scheduler.matching import bottleneck_matching
from tools.scheduler.measured_scenario import Measured, regions_of, write_scenario
from tools.scheduler.published import Sizes, published_model
from tools.scheduler.shortest_path import shortest_open_path
from tools.scheduler.starts import structured_starts

ROOT = Path(__file__).resolve().parents[2]
# The reference's best, of its own search or of a layout that it never found.
BEST = {"case1": 4.795, "case2": 25.735, "case3": 12.266}


@pytest.mark.parametrize("size", range(1, 7))
def test_the_bottleneck_matching_is_that_of_brute_force(size: int) -> None:
    generator = np.random.default_rng(size)
    for spread in (3, 20, 1000) * 10:
        weights = generator.integers(0, spread, (size, size)).astype(float)
        best = min(max(weights[row, order[row]] for row in range(size)) for order in permutations(range(size)))
        heaviest, columns = bottleneck_matching(weights)
        assert heaviest == best == weights[np.arange(size), columns].max()
        assert sorted(columns) == list(range(size))


@pytest.mark.parametrize("size", range(1, 8))
def test_the_open_path_is_that_of_brute_force(size: int) -> None:
    generator = np.random.default_rng(size)
    for _ in range(10):
        weights = generator.random((size, size))
        weights += weights.T
        lengths = {order: weights[order[:-1], order[1:]].sum() for order in permutations(range(size))}
        length, path = shortest_open_path(weights)
        assert length == pytest.approx(min(lengths.values())) and lengths[tuple(path)] == pytest.approx(length)


def test_too_many_stages_for_the_exact_path_are_refused() -> None:
    with pytest.raises(ValueError, match="17 stages: their order is searched exactly"):
        shortest_open_path(np.ones((17, 17)))


@pytest.mark.parametrize(
    ("case", "layout", "data_parallel", "pipeline"),
    (
        ("case1", pipelines_in_a_row, 4.480, 0.315),
        ("case1", megatron_layout, 0.140, 10.080),
        ("case2", pipelines_in_a_row, 11.200, 14.535),
        ("case2", megatron_layout, 11.200, 25.200),
        ("case3", pipelines_in_a_row, 8.437, 6.314),
        ("case3", megatron_layout, 2.814, 9.452),
    ),
)
def test_published_costs_of_known_layouts_come_out(case, layout, data_parallel, pipeline) -> None:
    model = published_model(read_scenario(case), 8, Sizes())
    groups = layout(64, 8)[:, :, 0]
    for cost in (model.cost(groups), model.cost_as_laid_out(model.arrange(groups))):
        assert (cost.data_parallel, cost.pipeline) == (
            pytest.approx(data_parallel, abs=5e-4),
            pytest.approx(pipeline, abs=5e-4),
        )


def _shuffled(case: str, seed: int) -> CostModel:
    """The case with its devices in random order, so that no order of hosts can help."""
    model = published_model(read_scenario(case), 8, Sizes())
    order = np.random.default_rng(1000 + seed).permutation(64)  # not what the search draws
    for name in ("activation_time", "gradient_time"):
        setattr(model, name, getattr(model, name)[np.ix_(order, order)])
    model.device_class = model.device_class[order]
    return model


@pytest.mark.parametrize("case", BEST)
def test_ten_seeds_of_ten_reach_the_references_best(case: str) -> None:
    costs = [search(_shuffled(case, seed), "ours", seed, evaluations=110).cost for seed in range(10)]
    assert max(costs) <= BEST[case] + 5e-4


def test_random_layouts_alone_do_not_reach_it() -> None:
    """Negative control: the published search before its first offspring."""
    assert search(_shuffled("case3", 0), "published", 0, evaluations=100).cost > BEST["case3"] + 0.1


def test_on_a_random_network_the_search_finds_what_brute_force_finds() -> None:
    generator = np.random.default_rng(7)
    delay, bandwidth = generator.random((6, 6)) / 50, 1e8 + 1e9 * generator.random((6, 6))
    model = CostModel(delay, bandwidth, 5e7, 5e7, 3)
    best = min(model.cost(np.array(order).reshape(3, 2)).total for order in permutations(range(6)))
    assert search(model, "ours", 0, evaluations=400).cost == pytest.approx(best)


@pytest.mark.parametrize("kind", ["fast link", "Kernighan-Lin"])
def test_cyclic_moves_keep_every_group_its_size(kind: str) -> None:
    model = _shuffled("case5", 1)
    measure = (
        fast_link_measure(model.activation_time)
        if kind == "fast link"
        else kernighan_lin_measure(model.activation_time, model.gradient_time)
    )
    generator = np.random.default_rng(0)
    changed = 0
    for _ in range(20):
        labels = generator.permutation(np.repeat(np.arange(8), 8))
        improved = improve(labels, 8, measure)
        assert np.bincount(improved).tolist() == [8] * 8
        changed += (improved != labels).any()
    assert changed > 10


def test_structured_starts_have_equal_groups_on_any_network() -> None:
    times = np.random.default_rng(3).random((12, 12))
    starts = structured_starts(times + times.T, 4)
    assert starts and all(np.bincount(labels).tolist() == [3] * 4 for labels in starts)


def test_devices_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="64 devices do not divide into 7 stages"):
        published_model(read_scenario("case3"), 7, Sizes())


def test_a_measured_network_becomes_a_scenario_with_its_regions(tmp_path: Path) -> None:
    region = np.array([0, 0, 1, 1, 1])
    near = region[:, None] == region
    bandwidth = np.where(near, 2.0e9, 1.0e8) * np.random.default_rng(0).uniform(0.95, 1.05, (5, 5))
    np.fill_diagonal(bandwidth, [np.inf, np.inf, 4e10, np.inf, np.inf])
    measured = Measured(np.where(near, 0.001, 0.05), bandwidth, [1, 1, 2, 1, 1])
    assert regions_of(measured).tolist() == region.tolist()
    write_scenario(tmp_path / "found.toml", measured, "found")
    read = read_scenario(str(tmp_path / "found.toml"))
    off = ~np.eye(5, dtype=bool)
    assert read.num_devices == 6 and len({host.region for host in read.hosts}) == 3
    np.testing.assert_allclose(read.bandwidth[off], bandwidth[off], rtol=1e-5)
    np.testing.assert_allclose(read.delay[off], measured.delay[off])


def _schedule(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tools.scheduler", "schedule", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_writes_a_layout_that_the_trainer_reads_and_a_picture(tmp_path: Path) -> None:
    out = tmp_path / "layout.toml"
    words = ["--scenario", "case3", "--objective", "published", "--evaluations", "110", "--pp", "8", "--dp", "8"]
    result = _schedule(*words, "--out", str(out), "--json")
    assert result.returncode == 0, result.stderr
    numbers = json.loads(result.stdout)
    assert numbers["cost"] == pytest.approx(12.266, abs=5e-4)
    assert numbers["cost"] == pytest.approx(numbers["data_parallel_cost"] + numbers["pipeline_cost"])
    assert numbers["seconds"] > 0 and numbers["default"]["cost"] >= numbers["cost"] < numbers["random"]["cost"]
    layout = read_layout(out)
    assert layout.flags["pipeline-model-parallel-size"] == 8 and len(layout.device_of_rank) == 64
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "sentence"),
    (
        (["--scenario", "nowhere"], "there is no scenario"),
        (["--scenario", "case3", "--pp", "7"], "do not divide into them"),
        (["--scenario", "case3", "--objective", "published", "--pp", "8", "--dp", "4"], "are not the 64 devices"),
        (["--scenario", "case3", "--memory-gb", "0.1"], "hold no allowed combination"),
        (["--scenario", "fluidstack3", "--objective", "published"], "1024 is not a multiple of the 6 replicas"),
        (["--scenario", "case3", "--pp", "0"], "--pp"),
    ),
)
def test_bad_input_is_one_sentence_and_exit_code_2(words: list[str], sentence: str) -> None:
    result = _schedule(*words)
    assert result.returncode == 2 and sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and not result.stdout


def test_an_asymmetric_network_is_used_as_given_and_said() -> None:
    words = ["--scenario", "fluidstack3", "--objective", "published", "--evaluations", "1", "--json"]
    result = _schedule(*words, "--global-batch-size", "1536", "--memory-gb", "48")
    assert result.returncode == 0 and "times that of the way back" in result.stderr
