"""The quickstart after its set-up: prepare the corpus, train the baseline and SDP4Bit, show a table and both curves.

What stands is reused: finished files, and training runs from their newest checkpoint. ``--config`` takes any runs that
read the quickstart's data.
"""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from pathlib import Path

# Run as a file, Python looks for modules beside it; the trainer stands in the folder above.
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from megatron.training.arguments import parse_args
from megatron.training.checkpoint_files import checkpoint_folder, find
from megatron.training.validation import validate_args
from sdp4bit_patches.config import from_arguments
from tools.child_process import run_python, torchrun
from tools.command_line import ToolArgumentParser, positive_int, run_tool
from tools.plot_runs import RunMetrics, bytes_rows, markdown_table, plot, read_run, smoothing_width, summarize
from tools.stock_bytes import count_buffer_elements, sent_bytes

NUM_CPU_PROCESSES = 4
DATA = Path("data/quickstart")
CORPUS, TOKENIZER, TOKENS = DATA / "corpus.jsonl", DATA / "tokenizer", DATA / "corpus"


class StepFailed(Exception):
    """A program that the quickstart started has failed, and has said why."""


def run(title: str, command: list[str]) -> None:
    """Run a program of this project, and tell how long it took.

    Raises:
        StepFailed: it ended with an error.
    """
    print(f"\nquickstart: {title}", flush=True)
    begun = time.monotonic()
    code = run_python(*command)
    if code:
        raise StepFailed(f"{title}: failed with exit code {code}, for the reason above; start again to continue")
    print(f"quickstart: done in {time.monotonic() - begun:.0f} s", flush=True)


def prepare_data(vocab_size: int) -> None:
    """Corpus, tokenizer and token files. Each appears whole or not at all, so one that exists is good."""
    tokenizer = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(TOKENIZER), "--append-eod"]
    files = ["--input", str(CORPUS), "--output-prefix", str(TOKENS), "--workers", str(min(4, os.cpu_count() or 1))]
    vocabulary = ["--input", str(CORPUS), "--output-dir", str(TOKENIZER), "--vocab-size", str(vocab_size)]
    steps = {
        CORPUS: ["tools/make_corpus.py", "--output", str(CORPUS)],
        TOKENIZER / "tokenizer.json": ["tools/train_tokenizer.py", *vocabulary],
        Path(f"{TOKENS}_text_document.idx"): ["tools/preprocess_data.py", *tokenizer, *files],
    }
    for output, command in steps.items():
        if output.exists():
            print(f"quickstart: {output} stands")
        else:
            run(f"making {output}", command)


def train(config: str, args: Namespace, num_processes: int) -> None:
    """Train to the end, from the newest checkpoint where there is one."""
    iteration, folder = find(args.save, None) or 0, Path(args.save).parent
    if iteration >= args.train_iters:
        print(f"quickstart: {folder} is complete ({iteration} iterations); remove it to train anew")
        return
    where = f"from iteration {iteration}" if iteration else "from random weights"
    program = [*torchrun(num_processes), "pretrain_gpt.py", "--config", config]
    run(f"training {folder} {where} with {num_processes} processes", program)


def default_num_processes() -> int:
    """Four on a CPU; otherwise one for each GPU, as far as the batch splits among them."""
    import torch

    num_gpus = torch.cuda.device_count()
    return max(count for count in (1, 2, 4, 8) if count <= num_gpus) if num_gpus else NUM_CPU_PROCESSES


def show(runs: list[Namespace]) -> None:
    """The table, and the loss curves in the folder of the last run."""
    picture = Path(runs[-1].metrics_file).with_name("loss.png")
    curves = [read_run(Path(args.metrics_file), Path(args.metrics_file).parent.name) for args in runs]
    plot(curves, picture, smoothing_width(curves))
    columns = {run.label: _numbers(run, args) for run, args in zip(curves, runs, strict=True)}
    print("\n" + markdown_table(columns))
    print(f"\nloss curves: {picture}")
    for args in runs:
        print(f"checkpoint: {_newest_checkpoint(args)}, TensorBoard: {args.tensorboard_dir}")


def _newest_checkpoint(args: Namespace) -> Path:
    return checkpoint_folder(args.save, find(args.save, None) or 0)


def _numbers(run: RunMetrics, args: Namespace) -> dict[str, str]:
    checkpoint = _newest_checkpoint(args)
    size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    numbers = summarize(run)
    if from_arguments(args).is_baseline:
        sent = sent_bytes(count_buffer_elements(checkpoint), args)
        numbers |= bytes_rows(*sent) if sent else {}
    return numbers | {"checkpoint": f"{size / 2**20:.1f} MiB"}


def quickstart(options: Namespace) -> None:
    """All of it.

    Raises:
        ValueError, OSError: what a user can mend.
        StepFailed: a step ended with an error.
    """
    os.chdir(ROOT)
    processes = options.nproc_per_node or default_num_processes()
    # A mistake is told here, once, and not under torchrun's own report of its ranks.
    runs = [validate_args(parse_args(["--config", config]), processes) for config in options.config]
    if not runs[0].mock_data:
        prepare_data(runs[0].vocab_size)
    if options.data_only:
        return
    for config, args in zip(options.config, runs, strict=True):
        train(config, args, processes)
    show(runs)
    print(f"this start took {time.time() - options.started:.0f} s in all")


def main() -> None:
    """Run the quickstart; a step that failed has printed its own error before."""
    try:
        quickstart(parse_arguments())
    except StepFailed as error:
        sys.exit(f"quickstart: error: {error}")
    except KeyboardInterrupt:
        print("\nquickstart: stopped; start it again to continue", file=sys.stderr)
        sys.exit(130)


def parse_arguments() -> Namespace:
    """The command line."""
    parser = ToolArgumentParser(__doc__.splitlines()[0])
    parser.add_argument("--compression", choices=("sdp4bit", "duo4bit"), default="sdp4bit", help="beside the baseline")
    parser.add_argument("--config", nargs="+", help="other runs, one after the other")
    parser.add_argument("--data-only", action="store_true", help="prepare the corpus and stop")
    parser.add_argument("--nproc-per-node", type=positive_int, help="processes; 4 on a CPU, else the number of GPUs")
    parser.add_argument("--started", type=float, default=time.time(), help="when the set-up began, Unix time")
    options = parser.parse_args()
    options.config = options.config or [
        "configs/runs/quickstart.toml",
        f"configs/runs/quickstart_{options.compression}.toml",
    ]
    return options


if __name__ == "__main__":
    run_tool(main)
