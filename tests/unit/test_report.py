"""Reports: means by hand, gaps by name, ratios, and a sentence for everything in a folder that cannot be used."""

from __future__ import annotations

import csv
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest

from megatron.training.flops import flops_per_sample
from tools.report.fill import filled
from tools.report.measured import recomputed_flops
from tools.report.predicted import predictions
from tools.report.rows import Figure, report_rows
from tools.report.tables import markdown
from tools.run_folder import settings
from tools.sweep.local import scaled
from tools.sweep.runs import Run, runs
from tools.sweep.sweep_file import ROOT, read_sweep

TABLE = "duo_low_bandwidth"
PREDICTED = "predicted_tflops_per_gpu,slow_sync_seconds,compute_seconds,fully_hidden"


@pytest.fixture(scope="module")
def table() -> list[Run]:
    return runs(read_sweep(TABLE))


def write_run(folder: Path, run: Run, num_iterations: int = 200, **changes) -> list[dict]:
    """A run's folder as the launchers and the trainer leave it; returns its metrics."""
    place = folder / run.id
    place.mkdir(parents=True)
    record = {
        "run": run.id, "settings": settings(run.words()), "iterations": 200, "ranks": run.num_ranks,
        "machine": "4 x A100 a node, torch 2.13.0", "memory_mib": 30000, "exit_code": 0,
    } | changes  # fmt: skip
    (place / "run.json").write_text(json.dumps({k: v for k, v in record.items() if v is not None}))
    lines = [_line(iteration) for iteration in range(1, num_iterations + 1)]
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def _line(iteration: int) -> dict:
    warm_up = 1e3 if iteration <= 20 else 0.0
    return {
        "iteration": iteration, "lm_loss": 2.0, "tokens_per_second": 1e4, "step_ms": 2000.0 + iteration % 3 + warm_up,
        "tflops_per_gpu": 100.0 + iteration % 5 - warm_up / 20, "duo_exposed_ms": 5.0, "duo_slow_ms": 1500.0,
        "duo_window_ms": 1900.0,
    }  # fmt: skip


def rows_of(table: list[Run], folder: Path, given: Path | None = None):
    found, problems = report_rows(table, folder, given)
    return {(row.run.id, row.result.name): row for row in found}, problems


def report_command(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "tools.report", *words], cwd=ROOT, capture_output=True, text=True)


def test_a_mean_leaves_out_the_warm_up_and_has_its_deviation_and_hardware(table, tmp_path) -> None:
    lines = write_run(tmp_path, table[0])
    rows, problems = rows_of(table, tmp_path)
    row = rows[table[0].id, "TFLOP/s per GPU"]
    counted = [line["tflops_per_gpu"] for line in lines[20:]]
    assert row.measured.number == pytest.approx(sum(counted) / 180)
    assert row.measured.deviation == pytest.approx(statistics.stdev(counted))
    assert row.measured.number != pytest.approx(statistics.fmean(line["tflops_per_gpu"] for line in lines), rel=1e-3)
    assert row.published.number == 122.6
    assert row.ratios[0] == f"{row.measured.number / 122.6:.3f}"
    assert row.hardware == "4 x A100 a node, torch 2.13.0; 4 ranks; 180 iterations after 20 of warm-up"
    assert rows[table[0].id, "slow gradient sync (ms)"].measured.number == 1500
    assert rows[table[0].id, "fully hidden"].measured.word == "yes"
    assert not problems


def test_flops_of_the_cpu_table_count_what_is_recomputed() -> None:
    """By the source's own figures: 11,727.9 s for 1,024 samples on one node are its 0.99 TFLOP/s."""
    run = next(run for run in runs(read_sweep("cpu_1p3b")) if run.id == "cpu_1p3b-009")
    args = run.arguments()
    args.padded_vocab_size = 50304
    length, hidden, layers = 1024, 2048, 24
    flops = 96 * length * layers * hidden**2 * (1 + length / (6 * hidden) + 50304 / (16 * layers * hidden))
    assert flops_per_sample(args) * 1024 + recomputed_flops(args) == pytest.approx(1024 * flops)
    assert 1024 * flops / 11727.9 / 1e12 == pytest.approx(0.99, abs=0.005)
    args.recompute_granularity = None
    assert recomputed_flops(args) == 0.0


def test_a_missing_failed_or_unfinished_run_is_a_gap_with_its_name(table, tmp_path) -> None:
    write_run(tmp_path, table[0], 30, exit_code=1)
    write_run(tmp_path, table[1], 120)
    write_run(tmp_path, table[2], 40, exit_code=None)
    write_run(tmp_path, table[3], 15, iterations=15)
    (tmp_path / table[4].id).mkdir()
    rows, problems = rows_of(table, tmp_path)
    gaps = [rows[run.id, "TFLOP/s per GPU"].measured for run in table[:6]]
    assert [gap.word for gap in gaps] == [
        "failed with exit code 1 after iteration 30 of 200",
        "stopped at iteration 120 of 200",
        "still running, or killed, at iteration 40 of 200",
        "15 iterations, all of them warm-up",
        "not run",
        "not run",
    ]
    assert all(gap.number is None for gap in gaps) and not problems


def test_every_cell_of_a_report_says_something(table, tmp_path) -> None:
    write_run(tmp_path / "runs", table[0])
    assert report_command(TABLE, "--runs", str(tmp_path / "runs"), "--output", str(tmp_path)).returncode == 0
    with (tmp_path / f"{TABLE}.csv").open() as file:
        found = list(csv.DictReader(file))
    assert len(found) == 36 + 3 * 18
    for row in found:
        for name in ("published", "measured", "predicted", "measured_over_published", "predicted_over_published"):
            assert row[name] and row[name] != "0", row
    assert {row["published"] for row in found if row["run"] == "duo_low_bandwidth-013"} == {"not reported"}
    page = (tmp_path / f"{TABLE}.md").read_text()
    assert "* A: 4 x A100 a node, torch 2.13.0; 4 ranks; 180 iterations after 20 of warm-up." in page
    assert "|  |" not in page


def test_a_report_draws_what_it_has(table, tmp_path) -> None:
    write_run(tmp_path / "runs", table[0])
    report_command(TABLE, "--runs", str(tmp_path / "runs"), "--output", str(tmp_path))
    report_command(TABLE, "--output", str(tmp_path / "without"), "--runs", str(tmp_path))
    with_run, without = (matplotlib.image.imread(place / f"{TABLE}.png") for place in (tmp_path, tmp_path / "without"))
    orange = [abs(picture[..., :3] - [0xD5 / 255, 0x5E / 255, 0]).max(-1) < 0.02 for picture in (with_run, without)]
    assert orange[0].sum() > 20 and not orange[1].any()


def test_withheld_figures_are_told_apart_from_those_never_reported(tmp_path) -> None:
    rows, _ = rows_of(runs(read_sweep("sdp4bit_speed")), tmp_path)
    words = [rows[f"sdp4bit_speed-{number:03d}", "TFLOP/s per GPU"].published.word for number in (5, 7)]
    assert words == ["withheld", ""]
    rows, _ = rows_of(runs(read_sweep("4d_a100_8k")), tmp_path)
    assert rows["4d_a100_8k-007", "TFLOP/s per GPU"].published.word == "not reported"
    rows, _ = rows_of(runs(read_sweep("sdp4bit_scaling")), tmp_path)
    assert {row.published.word for row in rows.values()} == {"no figure published"}


def test_a_metrics_file_cut_in_half_is_a_sentence_and_the_other_runs_stand(table, tmp_path) -> None:
    write_run(tmp_path, table[0])
    write_run(tmp_path, table[1])
    metrics = tmp_path / table[1].id / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-40])
    ran = report_command(TABLE, "--runs", str(tmp_path))
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1 and "metrics.jsonl, line 200: the file was cut off there" in ran.stderr
    rows, _ = rows_of(table, tmp_path)
    assert rows[table[1].id, "TFLOP/s per GPU"].measured.word == "unusable"
    assert rows[table[0].id, "TFLOP/s per GPU"].measured.number is not None


def test_mixed_runs_in_one_folder_are_named(table, tmp_path) -> None:
    write_run(tmp_path, table[0])
    (tmp_path / table[0].id).rename(tmp_path / table[2].id)
    write_run(tmp_path, table[4], settings=settings(table[5].words()))
    problems = rows_of(table, tmp_path)[1]
    assert "holds the run 'duo_low_bandwidth-001': runs are mixed up" in problems[0]
    assert "holds a run with another compression, " in problems[1] and "than duo_low_bandwidth-005 of" in problems[1]


def test_scaled_down_runs_are_told_and_not_mixed_with_others(table, tmp_path) -> None:
    write_run(tmp_path, table[0], 40, settings=settings(scaled(table[0]).words()), iterations=40)
    rows, problems = rows_of(table, tmp_path)
    row = rows[table[0].id, "TFLOP/s per GPU"]
    assert row.is_scaled and row.ratios[0] == "scaled down" and not problems
    assert "Scaled down to gpt_tiny on 4 ranks" in markdown(list(rows.values()), [])
    write_run(tmp_path, table[1])
    assert "mixes runs at the published scale with scaled-down ones" in rows_of(table, tmp_path)[1][0]


def test_predictions_come_with_their_ratio(table, tmp_path) -> None:
    given = tmp_path / "predicted.csv"
    given.write_text(f"id,{PREDICTED}\n{table[0].id},122.6,2.0,6.1,True\n{table[2].id},61.3,2.0,3.0,False\n")
    rows, _ = rows_of(table, tmp_path, given)
    assert rows[table[0].id, "TFLOP/s per GPU"].ratios[1] == "1.000"
    assert rows[table[2].id, "TFLOP/s per GPU"].ratios[1] == "0.500"
    assert rows[table[0].id, "slow gradient sync (ms)"].predicted.number == 2000
    assert [rows[table[i].id, "fully hidden"].predicted.word for i in (0, 2)] == ["yes", "no"]
    assert rows[table[4].id, "TFLOP/s per GPU"].predicted.word == "not predicted"


def test_without_a_simulator_the_report_says_so(table, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert predictions(table, None) == ({}, "the simulator is not installed")
    assert predictions(runs(read_sweep("accuracy")), None) == ({}, "not predicted")


def test_what_the_simulator_does_not_know_is_said_and_what_it_fails_at_is_an_error(
    table, tmp_path, monkeypatch
) -> None:
    ran = subprocess.CompletedProcess(
        [], 2, "", "error: argument COMMAND: invalid choice: 'tables' (choose from 'fit')"
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("subprocess.run", lambda *_, **__: ran)
    assert predictions(table, None) == ({}, "the simulator does not predict this table")
    ran.stderr = "no such cluster"
    with pytest.raises(ValueError, match="the simulator failed with exit code 2: no such cluster"):
        predictions(table, None)


def test_a_run_that_does_not_fit_is_told_as_such(table, tmp_path) -> None:
    given = tmp_path / "predicted.csv"
    given.write_text(f"id,{PREDICTED},feasible\n{table[0].id},,,,,out_of_memory\n")
    rows, _ = rows_of(table, tmp_path, given)
    assert rows[table[0].id, "TFLOP/s per GPU"].predicted.word == "out of memory"


def test_the_simulator_is_asked_for_every_row_of_a_table_made_of_grids(monkeypatch) -> None:
    """Its rows have the columns of the published file, with what follows from nodes and layout."""
    asked = []

    def simulate(words, **_):
        asked.extend(csv.DictReader(Path(words[words.index("--published") + 1]).open()))
        Path(words[words.index("--out") + 1]).write_text("id,predicted_tflops_per_gpu\nx,1\n")
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("subprocess.run", simulate)
    found, silence = predictions(runs(read_sweep("sdp4bit_scaling")), None)
    assert found["x"]["predicted_tflops_per_gpu"] == "1" and not silence
    with (ROOT / "configs/published/throughput.csv").open() as file:
        published = csv.DictReader(file).fieldnames
    assert len(asked) == 100 and set(published) <= set(asked[0])
    assert (asked[2]["gpus"], asked[2]["dp"], asked[2]["accumulation"]) == ("24", "24", "1")


@pytest.mark.parametrize(
    ("number", "deviation", "text"),
    [
        (122.6, 0.0, "122.6"),
        (0.86, 0.0, "0.86"),
        (18870.04, 0.0, "18,870"),
        (57.6, 0.031, "57.60 ± 0.03"),
        (0.0, 0, "0.000"),
        (9.6588e-5, 1.8e-6, "9.659e-05 ± 1.8e-06"),
    ],
)
def test_numbers_have_so_many_digits(number: float, deviation: float, text: str) -> None:
    assert Figure(number, deviation).text(4) == text
    assert math.isclose(float(text.split()[0].replace(",", "")), number, rel_tol=1e-3, abs_tol=1e-9)


def test_an_unknown_table_and_an_absent_folder_are_one_sentence() -> None:
    for words, sentence in [
        (["duo_scalabilty"], "there is no table 'duo_scalabilty'; there are: "),
        ([TABLE, "--runs", "absent"], "--runs absent is no folder: nothing has been run there"),
        (["all"], "all tables at once are too much to print: say where to write them with --output"),
        ([], "say one table, or --fill with documents; the tables are: "),
        ([TABLE, "--predictions", "absent.csv"], "cannot read absent.csv"),
    ]:
        ran = report_command(*words)
        assert ran.returncode == 2 and sentence in ran.stderr and ran.stderr.count("\n") == 1


def test_documents_have_the_results_that_reports_have_written() -> None:
    for document in (ROOT / "README.md", ROOT / "docs/reproduce.md"):
        text = document.read_text()
        assert filled(text, ROOT / "docs/results") == text, f"say: python -m tools.report --fill {document}"


def test_a_document_is_filled_from_results(tmp_path) -> None:
    head = "table,run,model,tp,quantity,published,published_deviation,measured,measured_deviation,predicted,"
    head += "predicted_deviation,measured_over_published,predicted_over_published,measured_on,scaled_down\n"
    lines = ["t,t-1,m,1,s,10,,12,0.5,11,,1.200,1.100,box,no", "t,t-2,m,2,s,10,,not run,,9,,–,0.900,,no"]
    (tmp_path / "t.csv").write_text(head + "\n".join(lines) + "\n")
    block = "before\n<!-- tools.report {} -->\nold\n<!-- end of tools.report -->\nafter\n"
    summary = filled(block.format("summary"), tmp_path)
    assert "| `t`   |    2 |         2 |        1 |           0 |         2 |        10.0% |         10.0% |" in summary
    assert "old" not in summary and summary.startswith("before\n") and summary.endswith("after\n")
    measured = filled(block.format("t"), tmp_path)
    assert "| t-1 |     1 | 12 ± 0.5 |" in measured or "12 ± 0.5" in measured
    assert "t-2" not in measured and "* Measured on box." in measured
    with pytest.raises(ValueError, match="there are no results of 'absent'"):
        filled(block.format("absent"), tmp_path)
    with pytest.raises(ValueError, match="it has no line <!-- tools.report NAME -->"):
        filled("text", tmp_path)
