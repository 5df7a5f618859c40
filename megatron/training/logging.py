"""What people watch: Megatron's log line, one JSON line per iteration, TensorBoard. Rank 0 writes all of it."""

from __future__ import annotations

import argparse
import math
import time
from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from megatron.training.flops import tflops_per_gpu
from megatron.training.metrics_file import MetricsFile
from megatron.training.train_step import StepResult

# Time left is told from so many of the latest iterations: past warm-up effects, yet quick to follow a change.
_ITERATIONS_FOR_TIME_LEFT = 50


def print_rank_0(*words: Any) -> None:
    """Print on rank 0 only, at once."""
    if torch.distributed.get_rank() == 0:
        print(*words, flush=True)


@dataclass
class _Interval:
    """What has gathered since the last log line."""

    iterations: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    skipped: int = 0
    nan: int = 0


class TrainingLog:
    """Takes the result of every iteration and shows it as the flags ask."""

    def __init__(self, args: argparse.Namespace, iteration: int) -> None:
        self._args = args
        self._rank_0 = torch.distributed.get_rank() == 0
        self._interval = _Interval()
        self._recent: deque[float] = deque(maxlen=_ITERATIONS_FOR_TIME_LEFT)
        self._metrics = MetricsFile(args.metrics_file, iteration) if args.metrics_file and self._rank_0 else None
        self._tensorboard = None
        if args.tensorboard_dir and self._rank_0:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(args.tensorboard_dir, purge_step=iteration + 1)

    def iteration(
        self,
        iteration: int,
        result: StepResult,
        seconds: float,
        batch: int,
        consumed_samples: int,
        optimizer_values: dict[str, float],
        validation_loss: float | None,
    ) -> None:
        """Record one iteration of ``batch`` samples that took ``seconds``."""
        if not self._rank_0:
            return
        self._recent.append(seconds)
        self._gather(result, seconds)
        values = {
            "iteration": iteration,
            "lm_loss": result.lm_loss,
            "grad_norm": result.grad_norm,
            "step_ms": seconds * 1e3,
            "tokens_per_second": batch * self._args.seq_length / seconds,
            "tflops_per_gpu": tflops_per_gpu(self._args, batch, seconds),
            "consumed_samples": consumed_samples,
            **optimizer_values,
        }
        if result.skipped:
            values["skipped"] = True
        if validation_loss is not None:
            values["validation_loss"] = validation_loss
        if self._metrics:
            self._metrics.write(values)
        self._write_tensorboard(values)
        if iteration % self._args.log_interval == 0:
            self._print(iteration, values, result, batch)

    def _gather(self, result: StepResult, seconds: float) -> None:
        interval = self._interval
        interval.iterations += 1
        interval.seconds += seconds
        interval.loss += result.lm_loss
        interval.skipped += result.skipped
        interval.nan += not math.isfinite(result.lm_loss)

    def _write_tensorboard(self, values: dict[str, Any]) -> None:
        iteration = values["iteration"]
        if self._tensorboard is None or iteration % self._args.tensorboard_log_interval:
            return
        for name, value in values.items():
            if name != "iteration" and value is not None:
                self._tensorboard.add_scalar(name, value, iteration)

    def _print(self, iteration: int, values: dict[str, Any], result: StepResult, batch: int) -> None:
        args, interval = self._args, self._interval
        seconds = interval.seconds / interval.iterations
        total = args.train_iters
        left = timedelta(seconds=round((total - iteration) * sum(self._recent) / len(self._recent)))
        parts = [
            f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] iteration {iteration:8d}/{total:8d}",
            f"consumed samples: {values['consumed_samples']:12d}",
            f"elapsed time per iteration (ms): {seconds * 1e3:.1f}",
        ]
        if args.log_throughput:
            parts.append(f"throughput per GPU (TFLOP/s/GPU): {tflops_per_gpu(args, batch, seconds):.4g}")
        parts += [
            f"learning rate: {values['learning_rate']:.6E}",
            f"global batch size: {batch:5d}",
            f"lm loss: {interval.loss / interval.iterations:.6E}",
            f"loss scale: {values['loss_scale']:.1f}",
        ]
        if result.grad_norm is not None:
            parts.append(f"grad norm: {result.grad_norm:.3f}")
        if result.num_zeros_in_grad is not None:
            parts.append(f"num zeros: {result.num_zeros_in_grad}")
        parts += [
            f"number of skipped iterations: {interval.skipped:3d}",
            f"number of nan iterations: {interval.nan:3d}",
            f"time left: {left}",
        ]
        print(" | ".join(parts) + " |", flush=True)
        self._interval = _Interval()

    def validation(self, iteration: int, loss: float, split: str) -> None:
        """Show the loss of a validation or test; perplexity is its exponential."""
        if not self._rank_0:
            return
        values = f"lm loss value: {loss:.6E} | lm loss PPL: {_perplexity(loss):.6E}"
        print(f" {split} loss at iteration {iteration} | {values} |", flush=True)
        if self._tensorboard:
            self._tensorboard.add_scalar(f"{split}_loss", loss, iteration)
            self._tensorboard.add_scalar(f"{split}_ppl", _perplexity(loss), iteration)

    def close(self) -> None:
        """Write what TensorBoard still holds back."""
        if self._tensorboard:
            self._tensorboard.close()


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 20.0))
