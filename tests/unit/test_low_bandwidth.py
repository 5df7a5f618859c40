"""The low-bandwidth experiment: its grid, what is demanded of its rows, its page. Its times are no test's business."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.low_bandwidth_grid import read_grid
from tools.low_bandwidth_numbers import judge, ratio, ratio_interval, ratio_words
from tools.low_bandwidth_prediction import with_predictions
from tools.low_bandwidth_report import steps_table, verdicts_table, write_report

GRID = Path(__file__).resolve().parents[2] / "configs/experiments/low_bandwidth.toml"


def _row(scheme, step_ms, seq_length=128, **others):
    row = {"link_mbit": 200, "seq_length": seq_length, "accumulation": 1, "scheme": scheme, "step_ms": step_ms}
    row |= {"device_ms": 0.0, "steps_per_block": 2}
    row |= {
        "steps_ms": [step_ms] * 4,
        "compute_ms": 50.0,
        "exposed_ms": step_ms - 60.0,
        "processor_ms": 150.0,
        "tokens_per_s": 512e3 / step_ms,
    }
    row |= {"node_bytes": 2.0e6, "predicted_bytes": None, "losses": [5.0, 4.0], "slow_level": None}
    return row | others


def _steps():
    duo = {"duo_slow_ms": 300.0, "duo_busy_ms": 10.0, "slow_level": "fp32 every step"}
    return [
        _row("baseline", 1000.0),
        _row("fp32_exchange", 700.0),
        _row("sdp4bit", 200.0, predicted_bytes=1.99e6, losses=[5.0, 4.004]),
        _row("duo4bit", 450.0, **duo),
        _row("duo4bit_adaptive", 204.0, **duo),
        _row("baseline", 2000.0, 256),
        _row("sdp4bit", 1000.0, 256),
        _row("fp32_exchange", 1800.0, 256),
        _row("duo4bit", 1020.0, 256, **duo, compute_ms=900.0),
        _row("duo4bit_adaptive", 1010.0, 256, **duo),
    ]


def _collectives(ratio):
    names = ("fp32 all_to_all + local sum", "bf16 all_to_all + local fp32 sum", "bfloat16 all_gather_into_tensor")
    return [
        {"link_mbit": 200, "mebibytes": 32, "kind": "k", "name": name, "ms": 10.0, "ratio": ratio} for name in names
    ]


def test_what_is_demanded_holds_on_rows_that_show_it() -> None:
    verdicts = judge(_collectives(7.0), _steps())
    assert all(verdict.holds for verdict in verdicts), verdicts
    assert len(verdicts) == 3 + 3 + 3 + 1, "collectives; SDP4Bit; one hidden DUO, two adaptive; bytes"


@pytest.mark.parametrize(
    ("index", "change", "what"),
    [
        (0, {"steps_ms": [780.0] * 4}, "against baseline's"),
        (1, {"steps_ms": [580.0] * 4}, "against fp32_exchange's"),
        (2, {"losses": [5.0, 4.1]}, "loss"),
        (2, {"predicted_bytes": 1.9e6}, "wire.py"),
        (4, {"steps_ms": [207.0] * 4}, "adaptive policy"),
        (8, {"steps_ms": [1040.0] * 4}, "compute exceeds its slow sync"),
    ],
)
def test_a_row_that_misses_is_told(index, change, what) -> None:
    steps = _steps()
    steps[index] |= change
    missed = [verdict.what for verdict in judge(_collectives(7.0), steps) if not verdict.holds]
    assert len(missed) == 1 and what in missed[0]


def test_beside_a_missed_step_stands_what_more_work_it_is() -> None:
    steps = _steps()
    steps[8] |= {"steps_ms": [1040.0] * 4, "processor_ms": 230.0}
    [verdict] = [verdict for verdict in judge([], steps) if "exceeds" in verdict.what]
    assert verdicts_table([verdict]).splitlines()[2].endswith("| **missed**: +80 ms of work for all cores a step |")


def _steps_of(times, steps_per_block=1):
    return {"steps_ms": times, "steps_per_block": steps_per_block}


def test_the_ratio_of_two_schemes_is_the_geometric_mean_of_their_neighbouring_steps() -> None:
    row, other = _steps_of([100.0, 400.0, 100.0, 400.0]), _steps_of([100.0] * 4)
    assert ratio((row, other)) == pytest.approx(2.0)
    assert ratio((other, row)) == pytest.approx(0.5), "which of them comes first changes nothing"
    stalled = _steps_of([110.0] * 18 + [9000.0, 1.0])
    assert ratio((stalled, _steps_of([100.0] * 20))) == pytest.approx(1.1), "a tenth at either end does not count"


def test_a_shape_is_judged_by_the_steps_at_all_of_its_link_rates() -> None:
    steps = _steps()
    faster = [row | {"link_mbit": 1000} for row in steps]
    for row in faster:
        if row["scheme"].startswith("duo"):
            row["steps_ms"] = [time * 1.03 for time in row["steps_ms"]]
    shapes = {v.what: v for v in judge([], [*steps, *faster]) if "DUO4Bit" in v.what}
    words = "200, 1000 Mbit/s, sequence 256, accumulation 1: DUO4Bit's step, compute exceeds its slow sync"
    assert not shapes[words].holds and shapes[words].measured.startswith("1.035 (")  # 1.020 and 1.0506
    assert sum(verdict.holds for verdict in shapes.values()) == 1, "adaptive at 256: 1.010 and 1.0403"


def test_the_interval_of_a_ratio_is_that_of_means_drawn_anew() -> None:
    # Half of the steps 1.1 times as long, half 0.9: the standard error of the mean logarithm is 0.1 / sqrt(100).
    row, other = _steps_of([110.0, 90.0] * 50), _steps_of([100.0] * 100)
    low, high = ratio_interval((row, other))
    assert low == pytest.approx(0.995 - 1.64 * 0.0125, abs=0.006)
    assert high == pytest.approx(0.995 + 1.64 * 0.0125, abs=0.006)
    assert ratio_interval((other, other)) == (1.0, 1.0)


def test_steps_of_one_block_count_as_one_draw() -> None:
    # Slow for four steps and fast for the next four: a quarter as many draws, an interval twice as wide.
    slow_and_fast, other = ([110.0] * 4 + [90.0] * 4) * 25, [100.0] * 200
    single = ratio_interval((_steps_of(slow_and_fast), _steps_of(other)))
    low, high = ratio_interval((_steps_of(slow_and_fast, 4), _steps_of(other, 4)))
    assert (high - low) / (single[1] - single[0]) == pytest.approx(2.0, rel=0.15)
    assert ratio_words((_steps_of([110.0] * 4, 4), _steps_of([100.0] * 4, 4))) == "1.100 (one block)"


def test_a_shape_without_the_baseline_is_judged_by_what_it_has() -> None:
    steps = [row for row in _steps() if row["scheme"] not in ("baseline", "fp32_exchange")]
    assert {"DUO4Bit" in verdict.what or "bytes" in verdict.what for verdict in judge([], steps)} == {True}


def test_a_slow_collective_is_told() -> None:
    missed = [verdict for verdict in judge(_collectives(2.9), []) if not verdict.holds]
    assert [verdict.measured for verdict in missed] == ["2.90x"] * 3


def test_the_table_says_what_the_published_one_says() -> None:
    table = steps_table(with_predictions(read_grid(GRID), _steps()))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    head, rows = lines[0], {(row[1], row[4]): dict(zip(lines[0], row, strict=True)) for row in lines[2:]}
    assert {"slow sync ms", "computation ms", "fully hidden", "exposed ms", "loss"} <= set(head)
    assert rows["256", "duo4bit"]["fully hidden"] == "yes" and rows["128", "duo4bit"]["fully hidden"] == "no"
    assert rows["128", "duo4bit"]["from compute ms"] == "10" and rows["128", "sdp4bit"]["processors ms"] == "150"
    assert rows["128", "sdp4bit"]["wire.py, MB"] == "1.99" and rows["128", "baseline"]["wire.py, MB"] == ""
    assert rows["128", "duo4bit_adaptive (fp32 every step)"]["of SDP4Bit's"] == "1.020 (1.020 – 1.020)"
    assert rows["128", "baseline"]["of SDP4Bit's"] == "5.000"


def test_predictions_are_anchored_on_the_two_ends_and_told_from_them() -> None:
    steps = with_predictions(read_grid(GRID), [*_steps(), _row("bf16_gradients", 800.0)])
    anchors = [(row["scheme"], row["seq_length"]) for row in steps if row["is_anchor"]]
    assert sorted(anchors) == [(name, size) for name in ("baseline", "duo4bit", "sdp4bit") for size in (128, 256)]
    rows = {row["scheme"]: row for row in steps if row["seq_length"] == 128}
    assert rows["duo4bit_adaptive"]["simulated_ms"] is None
    assert rows["sdp4bit"]["simulated_ms"] < rows["bf16_gradients"]["simulated_ms"] < rows["baseline"]["simulated_ms"]
    [verdict] = [verdict for verdict in judge([], steps) if "simulator" in verdict.what]
    assert "of 3;" in verdict.what and not verdict.holds, "two exchanges of fp32 and bf16 gradients: fewer than 12"
    with pytest.raises(ValueError, match="anchor on two"):
        with_predictions(read_grid(GRID), _steps()[:1])


def test_the_page_comes_with_its_pictures(tmp_path) -> None:
    grid = read_grid(GRID)
    steps, collectives = _steps(), _collectives(7.0)
    write_report(grid, ["seq_256_acc_4"], collectives, steps, judge(collectives, steps), tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "Not measured in this run: seq_256_acc_4." in page
    for name in ("page_steps.png", "page_timeline.png"):
        assert f"({name})" in page and (tmp_path / name).stat().st_size > 10_000


def test_the_grid_is_checked(tmp_path) -> None:
    grid = read_grid(GRID)
    assert {"baseline", "sdp4bit", "duo4bit_adaptive"} <= {scheme.name for scheme in grid.quick().schemes}
    schemes = {scheme.name: scheme for scheme in grid.schemes}
    turns = [grid.rounds_of(grid.shapes[0], schemes[name]) for name in ("baseline", "duo4bit", "sdp4bit")]
    assert turns[0] < turns[1] == turns[2], "what is judged to 3 % takes more turns"
    words = grid.words(grid.shapes[1], grid.schemes[0])
    assert words[words.index("--global-batch-size") + 1] == "16"
    (tmp_path / "grid.toml").write_text(GRID.read_text().replace("rounds", "turns"))
    with pytest.raises(ValueError, match="unknown key 'turns'"):
        read_grid(tmp_path / "grid.toml")
