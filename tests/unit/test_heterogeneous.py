"""Iteration times on uneven networks: pieces against independent reckoning, columns against published times."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sdp4bit_patches.config import PRESETS, CommConfig
from tools.scenario_files import read_scenario
from tools.scheduler.layouts import megatron_layout, pipelines_in_a_row
from tools.scheduler.plan import Choices, best_plan, best_settings
from tools.simulator.heterogeneous_constants import Constants
from tools.simulator.heterogeneous_errors import errors_by_column
from tools.simulator.heterogeneous_exchange import baseline_time, compressed_time
from tools.simulator.heterogeneous_network import Network
from tools.simulator.heterogeneous_ours import Setting, ours, trainer_of
from tools.simulator.heterogeneous_pipeline import (
    AT_ONCE,
    IN_TURNS,
    Exchange,
    exchange_time,
    gpipe_phase,
    one_forward_one_backward,
)
from tools.simulator.heterogeneous_rows import Row, predict, read_rows
from tools.simulator.heterogeneous_runs import read_run
from tools.simulator.heterogeneous_systems import SYSTEMS
from tools.simulator.heterogeneous_training import SCHEMES

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "configs" / "published" / "heterogeneous.csv"
# Mean absolute error that a column of cases 3 to 5 may have; cases 1 and 2, where 8 devices share a card: 15 %.
LIMITS = {"megatron_p8_random": 0.12, "zero3": 0.05}
LIMIT, LIMIT_OF_SHARED_CARDS = 0.08, 0.15


@pytest.fixture(scope="module")
def predicted() -> list[tuple]:
    return [(row, predict(row, Constants())) for _, row in read_rows(PUBLISHED)]


def _column_errors(predicted: list[tuple], cases: tuple[str, ...]) -> dict[str, float]:
    columns: dict[str, list[float]] = {}
    for row, seconds in predicted:
        if row.scenario in cases and row.published is not None:
            columns.setdefault(row.system, []).append(abs(seconds / row.published - 1))
    return {system: float(np.mean(errors)) for system, errors in columns.items()}


def test_columns_of_cases_3_to_5_are_as_close_as_asked(predicted: list[tuple]) -> None:
    errors = _column_errors(predicted, ("case3", "case4", "case5"))
    assert len(errors) == 6
    assert not {name: error for name, error in errors.items() if error > LIMITS.get(name, LIMIT)}


@pytest.mark.parametrize("case", ["case1", "case2"])
def test_columns_of_cases_with_shared_network_cards_are_as_close_as_asked(case: str, predicted: list[tuple]) -> None:
    errors = _column_errors(predicted, (case,))
    assert not {name: error for name, error in errors.items() if error > LIMIT_OF_SHARED_CARDS}


@pytest.mark.parametrize("case", ["case1", "case2", "case3", "case4", "case5"])
def test_speed_ups_of_the_schedule_come_out_within_a_tenth(case: str, predicted: list[tuple]) -> None:
    times: dict[tuple, dict[str, list[tuple[float, float]]]] = {}
    for row, seconds in predicted:
        if row.published is not None and row.scenario == case:
            setting = times.setdefault((row.layers, row.batch), {})
            setting.setdefault(row.system, []).append((seconds, row.published))
    errors: dict[str, list[float]] = {}
    for setting in times.values():
        ratios = {name: np.mean([s for s, _ in v]) / np.mean([p for _, p in v]) for name, v in setting.items()}
        for name, ratio in ratios.items():
            errors.setdefault(name, []).append(abs(ratio / ratios["dtfm_scheduled"] - 1))
    assert len(errors) > 4 and not {name: np.mean(column) for name, column in errors.items() if np.mean(column) > 0.10}


def test_the_printed_errors_are_those_of_the_rows() -> None:
    """By hand: two repeats of 9 and 11 s predicted as 12 and 12 s; the schedule of 5 s as 4 s."""
    known = {"megatron_p8_default": [(9.0, 12.0), (11.0, 12.0)], "dtfm_scheduled": [(5.0, 4.0)]}
    pairs = [
        (Row(f"{name}{n}", "case3", "gpt-xl", "24", 1024, name, None, published), seconds)
        for name, times in known.items()
        for n, (published, seconds) in enumerate(times)
    ]
    lines = errors_by_column([row for row, _ in pairs], [seconds for _, seconds in pairs]).splitlines()
    [megatron] = {line for line in lines if "megatron_p8_default" in line}
    assert megatron.split()[1:] == "21.2 % 2 50.0 % 50.0 % 1".split()


def test_rows_without_a_published_figure_are_predicted_too(predicted: list[tuple]) -> None:
    without = [seconds for row, seconds in predicted if row.published is None]
    assert len(without) > 100 and all(np.isfinite(seconds) and seconds > 0 for seconds in without)


def test_the_gpipe_phase_is_what_a_recurrence_over_stages_and_micro_batches_gives() -> None:
    generator = np.random.default_rng(0)
    transfer, delay, compute, number = generator.random((3, 1)), generator.random((3, 1)), 0.4, 9
    link_free, stage_free = np.zeros(3), np.zeros(4)
    for _ in range(number):
        arrived = 0.0
        for stage in range(4):
            stage_free[stage] = max(stage_free[stage], arrived) + compute
            if stage < 3:
                link_free[stage] = max(link_free[stage], stage_free[stage]) + transfer[stage, 0]
                arrived = link_free[stage] + delay[stage, 0]
    assert gpipe_phase(compute, transfer, delay, number, exposed=0.0)[0] == pytest.approx(stage_free[-1])


def test_1f1b_without_communication_takes_one_round_for_each_micro_batch_and_further_stage() -> None:
    compute, none = np.full((4, 2), 3.0), np.zeros((3, 2))
    np.testing.assert_allclose(one_forward_one_backward(compute, Exchange(none, none), 10), 3.0 * (10 + 4 - 1))


def test_devices_of_one_host_share_its_card_and_shaped_links_of_one_class_share_its_rate() -> None:
    case1, case3 = (Network(read_scenario(name), Constants()) for name in ("case1", "case3"))
    assert case1.sharing(np.arange(8), np.arange(8, 16)).tolist() == [8] * 8
    assert case1.sharing(np.arange(8), np.roll(np.arange(8), 1)).tolist() == [1] * 8
    assert case3.sharing(np.array([0, 0, 0]), np.array([1, 2, 40])).tolist() == [2, 2, 1]


def test_a_line_that_all_hosts_share_is_shared_by_flows_of_different_hosts() -> None:
    network = Network(read_scenario("fluidstack2"), Constants())
    assert network.sharing(np.array([0, 2, 16]), np.array([16, 18, 0])).tolist() == [2, 2, 1]


def test_exchanges_of_a_pipeline_across_regions_take_the_slow_link() -> None:
    network = Network(read_scenario("case3"), Constants())
    across = exchange_time(network, megatron_layout(64, 8)[:, :, 0], 2**23).total
    within = exchange_time(network, pipelines_in_a_row(64, 8)[:, :, 0], 2**23).total
    assert across.max() > 4 * within.max() and across[3].min() > 0.011 + 8 * 2**23 / 1.12e9


def test_exchanges_in_turns_take_both_ways_one_after_the_other_and_the_passage_one_of_each() -> None:
    """128 KiB over 4 Mbit/s and back over 5 Mbit/s; at once, the slower of the two is all there is."""
    network, stages = Network(read_scenario("emulated_two_regions"), Constants()), np.array([[0, 1], [2, 3]])
    ways = 2**20 / 0.004e9, 2**20 / 0.005e9
    at_once, in_turns = (exchange_time(network, stages, 2**17, serial) for serial in (AT_ONCE, IN_TURNS))
    assert at_once.total == pytest.approx(max(ways)) and in_turns.total == pytest.approx(sum(ways))
    compute = np.full((2, 2), 0.05)
    taken = one_forward_one_backward(compute, in_turns, 8)
    assert taken == pytest.approx(7 * (0.05 + sum(ways)) + 2 * 0.05 + sum(ways))


def test_the_pace_of_1f1b_is_that_of_its_events() -> None:
    """Stages enter exchanges in turn with both neighbours: each goes on when its message has left, the other's come."""
    generator, stages, rounds = np.random.default_rng(1), 5, 400
    for _ in range(20):
        compute = generator.random((stages, 1))
        transfer, delay = generator.random((2, stages - 1, 1)) * generator.choice([0.3, 3.0], size=(2, stages - 1, 1))
        ready, times = np.zeros(stages), []
        for _ in range(rounds):
            for low in range(stages - 1):
                pair = ready[low], ready[low + 1]
                for stage, own, other in ((low, *pair), (low + 1, *reversed(pair))):
                    left = max(own + transfer[low, 0], other + transfer[low, 0] + delay[low, 0])
                    share = 1.0 if stage in (0, stages - 1) else 0.5  # forward here and backward at the other neighbour
                    ready[stage] = left + share * compute[stage, 0]
            times.append(ready[0])
        paces = [one_forward_one_backward(compute, Exchange(transfer, delay), number)[0] for number in (1, 2)]
        assert (times[-1] - times[rounds // 2 - 1]) / (rounds // 2) == pytest.approx(paces[1] - paces[0], rel=1e-2)


def test_messages_that_share_a_card_use_it_while_others_wait_for_their_turn() -> None:
    """Case 1: eight messages leave a host at once, so that taking turns costs nothing."""
    network, stages = Network(read_scenario("case1"), Constants()), np.arange(64).reshape(8, 8)
    in_turns, at_once = (exchange_time(network, stages, 2**23, serial) for serial in (IN_TURNS, AT_ONCE))
    assert in_turns.total == pytest.approx(at_once.total)


def test_two_hops_take_what_their_bytes_take_on_the_links() -> None:
    """Four devices in two regions of two; every number worked out by hand."""
    scenario = read_scenario("emulated_two_regions")
    network, config = Network(scenario, Constants()), CommConfig(**PRESETS["sdp4bit"])
    groups, parameters, shard = np.arange(4).reshape(1, 4), np.array([4 * 2048 * 64.0]), 2048 * 64
    intra, inter, weights = (shard * bits // 8 + shard // size * 4 for bits, size in ((8, 128), (4, 128), (4, 2048)))
    hops = 8 * 2 * intra / 0.2e9, 8 * inter / 0.004e9, 8 * 2 * weights / 0.004e9
    taken = compressed_time(network, groups, parameters, np.array([0, 0, 1, 1]), config)
    assert taken == pytest.approx(sum(hops))
    assert baseline_time(network, groups, parameters) > 4 * taken


@pytest.mark.parametrize(("layers", "batch"), [("24", 1024), ("40", 4096)])
def test_in_case_5_compressed_links_and_the_plan_halve_the_published_schedules_time(layers: str, batch: int) -> None:
    plan = ours(Setting("case5", "gpt-xl", layers, batch), Constants())
    trainer = trainer_of(Setting("case5", "gpt-xl", layers, batch), Constants())
    published = SYSTEMS["dtfm_scheduled"](read_run("case5", trainer.work, None, Constants())).total
    assert plan.seconds <= published / 2
    assert trainer.memory_bytes(plan.layout, plan.micro_batch, plan.scheme) <= 16e9


@pytest.mark.parametrize("case", ["case1", "case3"])
def test_our_schedule_is_no_slower_than_the_published_one(case: str) -> None:
    setting = Setting(case, "gpt-xl", "24", 1024)
    published = SYSTEMS["dtfm_scheduled"](read_run(case, trainer_of(setting, Constants()).work, None, Constants()))
    assert ours(setting, Constants()).seconds <= published.total


def test_a_local_link_carries_what_is_free_and_a_wide_area_link_4_bits() -> None:
    trainer = trainer_of(Setting("case5", "gpt-xl", "24", 1024), Constants())
    plan = best_settings(trainer, pipelines_in_a_row(64, 8), Choices())
    assert plan.scheme.config.gradient_quantization_bits_inter == 4
    assert plan.scheme.config.gradient_quantization_bits_intra == 32


def test_a_tied_embedding_is_summed_between_the_first_and_the_last_stage() -> None:
    trainer = trainer_of(Setting("case3", "gpt-xl", "24", 1024), Constants())
    tied = replace(trainer, work=replace(trainer.work, tied_embedding=True))
    layouts = {"across": megatron_layout(64, 8), "within": pipelines_in_a_row(64, 8)}
    extra = {n: tied.sync_time(p, SCHEMES[0]) - trainer.sync_time(p, SCHEMES[0]) for n, p in layouts.items()}
    num_bits = 8 * 4 * trainer.work.vocabulary * trainer.work.hidden
    assert extra["across"] == pytest.approx(num_bits / 1.12e9, rel=0.05) and extra["across"] > 4 * extra["within"] > 0


def test_a_model_that_does_not_fit_is_refused() -> None:
    trainer = trainer_of(Setting("case3", "gpt-xl", "40", 1024), Constants())
    with pytest.raises(ValueError, match="hold no allowed combination"):
        best_plan(trainer, Choices(stages=1, tensor=1, micro_batches=(16,)), swaps=0)


def _run(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tools.simulator", "heterogeneous", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_fills_every_row_and_adds_the_new_systems(tmp_path: Path) -> None:
    lines = PUBLISHED.read_text().splitlines()
    table, out = tmp_path / "few.csv", tmp_path / "out.csv"
    table.write_text("\n".join([lines[0], *(line for line in lines if line.startswith("case5-"))][:20]) + "\n")
    result = _run("--published", str(table), "--out", str(out), "--markdown", str(tmp_path / "tables.md"))
    assert result.returncode == 0, result.stderr
    assert "| L24 B1024 | 83.0 / " in (tmp_path / "tables.md").read_text()
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 19 and all(float(row["predicted_seconds"]) > 0 for row in rows)
    assert {"megatron_sdp4bit", "ours"} <= {row["system"] for row in rows}


@pytest.mark.parametrize(
    ("change", "sentence"),
    (
        (("case5", "case9"), "scenario 'case9' is unknown"),
        (("megatron_p8_default", "magic"), "system 'magic' is unknown"),
        (("gpt-xl", "gpt-xxl"), "model 'gpt-xxl' is not one of the published"),
        (("global_batch", "batch"), "column 'global_batch' is missing"),
    ),
)
def test_a_table_that_is_none_is_refused_with_a_sentence(change, sentence, tmp_path: Path) -> None:
    lines = PUBLISHED.read_text().splitlines()
    row = next(line for line in lines if line.startswith("case5-") and "megatron_p8_default" in line)
    table = tmp_path / "table.csv"
    table.write_text("\n".join([lines[0], row]).replace(*change) + "\n")
    result = _run("--published", str(table))
    assert result.returncode == 2 and sentence in result.stderr and len(result.stderr.splitlines()) == 1
