"""Experiments: their files, the paired differences, what is demanded of them, and which runs are made again."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from tools.accuracy_pictures import draw_curves, draw_differences
from tools.accuracy_report import table
from tools.accuracy_statistics import Comparison, Outcome, compare
from tools.experiment import Experiment, RunFolder, Variant, read_experiment
from tools.plot_runs import RunMetrics

ROOT = Path(__file__).resolve().parents[2]
# low_bandwidth.toml is of another kind: tools/low_bandwidth.py reads it.
EXPERIMENTS = [p for p in sorted((ROOT / "configs/experiments").glob("*.toml")) if "low_bandwidth" not in p.stem]
WORDS = ["--config", str(ROOT / "configs/runs/benchmark.toml"), "--seed", "7"]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def _outcome(variant: str, seed: int, loss: float) -> Outcome:
    metrics = RunMetrics(variant, [1, 2], [7.0, loss], [(2, loss)], [1.0, 1.0], [1.0, 1.0], [])
    return Outcome(variant, seed, metrics)


def _experiment(*variants: Variant, seeds: tuple[int, ...] = (1, 2)) -> Experiment:
    return Experiment("Title", "run.toml", 4, seeds, "baseline", (Variant("baseline", ()), *variants))


def _comparison(*differences: float, within: float | None = None, at_least: float | None = None) -> Comparison:
    return Comparison(Variant("x", (), within, at_least), [4.0] * len(differences), list(differences))


def test_differences_are_those_from_the_reference_with_the_same_seed() -> None:
    outcomes = [_outcome("x", 2, 5.05), _outcome("baseline", 1, 4.0), _outcome("baseline", 2, 5.0)]
    _, comparison = compare(_experiment(Variant("x", ())), [*outcomes, _outcome("x", 1, 4.12)])
    assert comparison.losses == [4.12, 5.05]
    assert comparison.differences == pytest.approx([3.0, 1.0])
    assert comparison.mean == pytest.approx(2.0)
    assert comparison.standard_error == pytest.approx(1.0)  # stdev sqrt(2) of two, over sqrt(2)


def test_pairing_takes_out_what_the_seeds_have_in_common() -> None:
    """Losses that differ between seeds by far more than the variants do: unpaired, the error would hide the effect."""
    pairs = [(seed, 4.0 + seed) for seed in (1, 2, 3)]
    outcomes = [_outcome(name, s, loss * f) for s, loss in pairs for name, f in (("baseline", 1.0), ("x", 1.001))]
    comparison = compare(_experiment(Variant("x", ()), seeds=(1, 2, 3)), outcomes)[1]
    assert comparison.mean == pytest.approx(0.1)
    assert comparison.standard_error < 1e-9


@pytest.mark.parametrize(
    ("comparison", "verdict"),
    [
        (_comparison(0.2, 0.4, within=0.3 + 1e-9), "met"),
        (_comparison(-0.2, -0.4, within=0.29), "missed"),
        (_comparison(0.2, 0.5, within=0.3), "missed"),
        (_comparison(0.9, 1.3, at_least=1.0), "met"),
        (_comparison(0.9, 1.0, at_least=1.0), "missed"),
        (_comparison(-3.0, at_least=1.0), "missed"),
        (_comparison(math.nan, 0.0, within=0.3), "missed"),
        (_comparison(math.nan, 3.0, at_least=1.0), "missed"),
        (_comparison(5.0, 9.0), ""),
    ],
)
def test_a_demand_is_held_against_the_mean(comparison: Comparison, verdict: str) -> None:
    assert comparison.verdict == verdict


@pytest.mark.parametrize(("loss", "closed", "verdict"), [(4.04, 75, "met"), (4.12, 25, "missed"), (4.2, -25, "missed")])
def test_a_repair_is_held_against_the_share_of_the_gap_that_it_closes(loss: float, closed: float, verdict: str) -> None:
    broken, repaired = Variant("broken", ()), Variant("repaired", (), repairs="broken", closes_at_least=50)
    losses = {"baseline": 4.0, "broken": 4.16, "repaired": loss}
    outcomes = [_outcome(name, 1, value) for name, value in losses.items()]
    comparison = compare(_experiment(broken, repaired, seeds=(1,)), outcomes)[2]
    assert comparison.closed == pytest.approx(closed)
    assert comparison.verdict == verdict and comparison.demand == "50 % of broken's closed"


def test_the_table_tells_every_loss_the_mean_its_error_and_the_verdict() -> None:
    rows = _cells(_rows())
    assert rows[0] == ["variant", "validation loss by seed", "mean difference", "standard error", "demanded", ""]
    assert rows[2] == ["x", "4.0000, 4.0000", "+0.300 %", "0.100 %", "within ±0.25 %", "missed"]
    assert rows[3] == ["x", "4.0000", "+1.500 %", "one seed", "at least +1 %", "met"]


def test_the_table_tells_what_was_closed_of_a_gap_where_a_variant_repairs_another() -> None:
    repairs = Comparison(Variant("x", (), repairs="broken", closes_at_least=50), [4.0], [1.0], repaired=[4.0])
    rows = _cells([*_rows(), repairs])
    assert [row[4] for row in rows if row[0] in ("variant", "x")] == ["gap closed", "", "", "75 %"]


def _cells(comparisons: list[Comparison]) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(comparisons).splitlines()]


def _rows() -> list[Comparison]:
    return [_comparison(0.2, 0.4, within=0.25), _comparison(1.5, at_least=1.0)]


def test_the_pictures_are_drawn_also_with_a_run_whose_loss_was_nan(tmp_path: Path) -> None:
    experiment = _experiment(Variant("x", (), within=0.3), Variant("worse", (), at_least=1.0))
    losses = {"baseline": 4.0, "x": math.nan, "worse": 4.1}
    outcomes = [_outcome(name, seed, loss) for name, loss in losses.items() for seed in (1, 2)]
    draw_curves(experiment, outcomes, tmp_path / "curves.png")
    draw_differences(experiment, compare(experiment, outcomes), tmp_path / "differences.png")
    for name in ("curves", "differences"):
        image = Image.open(tmp_path / f"{name}.png").convert("RGB")
        assert len(image.getcolors(maxcolors=1 << 24)) > 10


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_passes_the_checks_of_the_command_line(path: Path) -> None:
    experiment = read_experiment(path)
    assert len(experiment.seeds) >= 3 or not any(variant.within for variant in experiment.variants)
    assert any(v.at_least or v.name.startswith("direct") for v in experiment.variants)  # a negative control


def test_all_variants_of_a_seed_share_it_and_their_rounding_differs_by_seed() -> None:
    experiment = read_experiment(EXPERIMENTS[0])
    lines = [experiment.words(variant, seed) for variant in experiment.variants for seed in experiment.seeds]
    for flag in ("--seed", "--quantization-seed"):
        assert {line[line.index(flag) + 1] for line in lines} == set(map(str, experiment.seeds))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("seeds =", "seed =", "unknown key 'seed'; the keys are config,"),
        ("seeds = [1, 2, 3]", "", "no 'seeds'; the keys are"),
        ("within = 0.3", 'repairs = "qw"', "variants.sdp4bit: repairs names a variant and closes-at-least its share"),
        ("within = 0.3", 'repairs = "q"\ncloses-at-least = 50', "variants.sdp4bit: repairs = 'q' is not among"),
        ("within", "with-in", "variants.sdp4bit: unknown key 'with-in'"),
        ('reference = "baseline"', 'reference = "none"', "'none' is not among the variants: baseline, sdp4bit"),
        ("--compression qwd", "--compression qwdd", "variants.qwd: argument --compression: invalid choice"),
        ("num-processes = 4", "num-processes = 3", "not divisible by micro-batch size x data-parallel size"),
        ("[variants.baseline]", "[variants.baseline", "is not valid TOML"),
    ],
)  # fmt: skip
def test_a_mistake_in_an_experiment_is_one_sentence(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    path = tmp_path / "experiment.toml"
    text = (ROOT / "configs/experiments/accuracy_small.toml").read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=sentence) as error:
        read_experiment(path)
    assert str(error.value).startswith(str(path))


def _finished(folder: RunFolder, last: int = 3, validates: bool = True) -> None:
    folder.begin(WORDS)
    lines = [{"iteration": i, "lm_loss": 5.0, "step_ms": 1.0, "tokens_per_second": 1.0} for i in range(1, last + 1)]
    lines[-1] |= {"validation_loss": 4.5} if validates else {}
    folder.unfinished.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder.finish("x", num_iterations=3)


def test_a_finished_run_stands_and_an_unfinished_one_does_not(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "x")
    assert not folder.stands(WORDS)
    folder.begin(WORDS)
    folder.unfinished.write_text("half a run\n")
    assert not folder.stands(WORDS)
    _finished(folder)
    assert folder.stands(WORDS)


def test_a_run_that_ended_early_or_without_validation_is_not_finished(tmp_path: Path) -> None:
    for number, broken in enumerate(({"last": 2}, {"validates": False})):
        folder = RunFolder(tmp_path / str(number))
        with pytest.raises(ValueError, match="a finished run validates at 3"):
            _finished(folder, **broken)
        assert not folder.stands(WORDS)


def test_a_run_made_with_other_settings_is_named_and_not_mixed_in(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "x")
    _finished(folder)
    with pytest.raises(ValueError, match="was run with another lr, seed: remove it to run it again"):
        folder.stands([*WORDS, "--seed", "8", "--lr", "5e-4"])


def test_how_settings_were_written_does_not_matter(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "x")
    _finished(folder)
    assert folder.stands([*WORDS, "--lr", "0.001", "--eval-iters", "100"])
