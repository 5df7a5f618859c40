"""`python -m tools.simulator evaluate`: how far predictions lie from published figures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from tools.simulator.constants import FILE, Calibration, read_calibration
from tools.simulator.published import THROUGHPUT, Row, read_published
from tools.simulator.scores import Scores, leave_one_table_out, leave_out, rank_correlation, scores, speed_ups
from tools.simulator.slow_sync_times import read_times, score_times

WORST_ROWS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("--published", default=str(THROUGHPUT), help="a table like configs/published/throughput.csv")
    parser.add_argument("--calibration", default=str(FILE), help="the constants to evaluate")
    parser.add_argument("--plots", help="a folder for one picture a table, predicted against published")
    parser.add_argument("--in-sample-only", action="store_true", help="do not fit again without each table")


def run(args: argparse.Namespace) -> None:
    """Print the evaluation.

    Raises:
        ValueError: the file has no measured rows, or is no table.
    """
    rows = read_published(Path(args.published))
    calibration = read_calibration(Path(args.calibration))
    if not any(row.measured and row.job for row in rows):
        raise ValueError(f"{args.published} has no measured rows: there is nothing to hold predictions against")
    here = scores(rows, calibration)
    left = None
    if not args.in_sample_only:
        bar = tqdm(here.by_table(), desc="leaving out", disable=not sys.stderr.isatty())
        left = leave_one_table_out(rows, calibration, bar)
    print(report(here, left))
    if left:
        print(_machines_line(rows, calibration, here))
    print(_slow_sync_report())
    if args.plots:
        from tools.simulator.published_pictures import draw_tables

        for path in draw_tables(here, left, Path(args.plots)):
            print(f"picture: {path}")


def report(here: Scores, left: Scores | None) -> str:
    """The evaluation as text."""
    lines = [*_error_lines(here, left), "", *_speed_up_lines(here), "", *_worst_lines(here)]
    return "\n".join(lines)


def _error_lines(here: Scores, left: Scores | None) -> list[str]:
    without = left.by_table() if left else {}
    lines = ["mean absolute error of TFLOP/s per GPU", f"{'table':36}{'rows':>6}{'in-sample':>12}{'left out':>12}"]
    for table, error in here.by_table().items():
        other = f"{without[table]:12.1%}" if left else f"{'-':>12}"
        lines.append(f"{table:36}{len(here.of(table)):6}{error:12.1%}{other}")
    lines.append(f"{'mean over tables':42}{here.mean:12.1%}" + (f"{left.mean:12.1%}" if left else ""))
    lines.append(f"{'worst table':42}{here.worst:12.1%}" + (f"{left.worst:12.1%}" if left else ""))
    tail = f"{left.percentile_90:12.1%}" if left else ""
    return [*lines, f"{'90th percentile of rows':42}{here.percentile_90:12.1%}{tail}"]


def _machines_line(rows: list[Row], calibration: Calibration, here: Scores) -> str:
    """SDP4Bit's table has two parts; both left out at once."""
    parts = {table for table in here.by_table() if table.startswith("sdp4bit_speed/")}
    if len(parts) < 2:
        return ""
    return f"\nboth parts of sdp4bit_speed left out at once: {leave_out(rows, calibration, parts).mean:.1%}"


def _speed_up_lines(here: Scores) -> list[str]:
    pairs = speed_ups(here)
    if not pairs:
        return ["no pair of SDP4Bit and baseline rows: no speed-ups"]
    lines = [f"{'SDP4Bit over baseline':36}{'measured':>10}{'predicted':>11}{'error':>9}"]
    lines += [f"{pair.name:36}{pair.measured:10.2f}{pair.predicted:11.2f}{pair.error:9.1%}" for pair in pairs]
    near = sum(abs(pair.error) <= 0.2 for pair in pairs)
    lines.append(f"within 20 %: {near} of {len(pairs)}")
    return [*lines, f"rank correlation on sdp4bit_speed: {rank_correlation(here, 'sdp4bit_speed'):.3f}"]


def _worst_lines(here: Scores) -> list[str]:
    lines = ["worst rows in-sample (predicted over measured)"]
    return lines + [f"  {row.name:24}{_layout(row):44}{error:+8.1%}" for row, error in here.worst_rows(WORST_ROWS)]


def _layout(row: Row) -> str:
    job = row.job
    batch = f"micro-batch {job.micro_batch} x {job.accumulation}"
    return f"{job.gpus} GPUs, TP {job.tp} CP {job.cp} PP {job.pp}, {batch}"


def _slow_sync_report() -> str:
    lines = ["", "DUO's second sync (duo_low_bandwidth_times.csv)"]
    head = f"{'seq x accumulation':20}{'published ms':>14}{'predicted':>11}{'error':>8}  hidden: published, predicted"
    scored = score_times(read_times())
    lines.append(head)
    for time in scored:
        name = f"{time.cells['seq']} x {time.cells['accumulation']}"
        flags = f"  {time.cells['fully_hidden']}, {'yes' if time.hidden else 'no'}"
        lines.append(f"{name:20}{time.measured_ms:14.0f}{time.predicted_ms:11.0f}{time.error:8.1%}{flags}")
    right = sum(time.flag_right for time in scored)
    return "\n".join([*lines, f"hidden flag right: {right} of {len(scored)}"])
