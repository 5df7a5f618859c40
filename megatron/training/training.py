"""The training run: set up, loop, stop."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.num_microbatches_calculator import get_current_global_batch_size, update_num_microbatches
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler, get_canonical_lr_for_logging
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.core.timers import Timers
from megatron.core.utils import check_param_hashes_across_dp_replicas

import sdp4bit_patches
from megatron.training.checkpointing import TrainState, load_checkpoint, save_checkpoint
from megatron.training.compression import comm_config
from megatron.training.data import DataIterators, build_data_iterators, build_train_valid_test_datasets
from megatron.training.data_files import check_data_files
from megatron.training.errors import checked_on_every_rank, user_input
from megatron.training.forward_step import make_forward_step
from megatron.training.host_group import initialize_host_group
from megatron.training.initialize import initialize_megatron
from megatron.training.logging import TrainingLog, print_rank_0
from megatron.training.memory import memory_report, peak_memory_mib
from megatron.training.model import build_model, transformer_config
from megatron.training.optimizer import build_optimizer, build_scheduler
from megatron.training.output_paths import check_output_paths
from megatron.training.param_gather import ParameterGathers
from megatron.training.report import print_start_report
from megatron.training.signals import ExitSignal
from megatron.training.tokenizer import build_tokenizer, padded_vocab_size
from megatron.training.train_step import StepResult, connect_schedule, evaluate, train_step


def pretrain(args: argparse.Namespace) -> None:
    """Train as ``args`` (parsed and validated) say; called by every rank.

    Raises:
        UserError: bad input, on all ranks alike.
    """
    started = time.time()
    initialize_megatron(args)
    initialize_host_group(args.distributed_timeout_minutes)
    run = set_up(args)
    print_rank_0(f" set up in {time.time() - started:.1f} s")
    # Not before: SIGTERM during the set-up has nothing to save, and ends the process as it ends any other.
    exit_signal = ExitSignal()
    run.train(lambda: exit_signal.received or _minutes_are_up(args, started))
    print_rank_0(f" peak memory of rank 0: {peak_memory_mib():,.0f} MiB; {time.time() - started:.0f} s in all")
    torch.distributed.barrier()
    sdp4bit_patches.uninstall()


def set_up(args: argparse.Namespace) -> Run:
    """Everything that is built before the first step."""
    with checked_on_every_rank():
        tokenizer = build_tokenizer(args)
        args.padded_vocab_size = padded_vocab_size(tokenizer.vocab_size, args)
        check_data_files(args)
        check_output_paths(args)
        config = transformer_config(args)
    config.timers = Timers(int(args.timing_log_level), "minmax")
    print_start_report(args)
    if not args.skip_train:
        sdp4bit_patches.install(comm_config(args))
    model = build_model(args, config)
    optimizer = None if args.skip_train else build_optimizer(args, model, config.timers)
    _report_compression(model)
    scheduler = None if args.skip_train else build_scheduler(args, optimizer)
    print_rank_0("\n".join([" memory of rank 0:", *memory_report(args, model)]))
    state = load_checkpoint(args, model, optimizer, scheduler) if args.load else TrainState()
    args.consumed_train_samples, args.consumed_valid_samples = (
        state.consumed_train_samples,
        state.consumed_valid_samples,
    )
    datasets = build_train_valid_test_datasets(args, tokenizer)
    iterators = build_data_iterators(args, datasets, len(model))
    connect_schedule(args, config, model, optimizer)
    return Run(args, state, config.timers, model, optimizer, scheduler, iterators)


def _report_compression(model: list[DistributedDataParallel]) -> None:
    with checked_on_every_rank(), user_input():
        lines = sdp4bit_patches.report_lines(model)
    if lines:
        print_rank_0("\n".join(lines))


class Run:
    """A set-up training run: its state and the objects that advance it."""

    def __init__(
        self,
        args: argparse.Namespace,
        state: TrainState,
        timers: Timers,
        model: list[DistributedDataParallel],
        optimizer: MegatronOptimizer | None,
        scheduler: OptimizerParamScheduler | None,
        iterators: DataIterators,
    ) -> None:
        self.args = args
        self.state = state
        self.timers = timers
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.iterators = iterators
        self.forward_step = make_forward_step(args, timers)
        self.gathers = ParameterGathers(model)
        self.log = TrainingLog(args, state.iteration)
        self.wants_exit: Callable[[], bool] = lambda: False

    def train(self, wants_exit: Callable[[], bool]) -> None:
        """Train to ``--train-iters`` or until ``wants_exit()`` on any rank; save, then validate and test."""
        self.wants_exit = wants_exit
        stop = None if self.args.skip_train else self._loop()
        if stop:
            print_rank_0(f" stopping at iteration {self.state.iteration}: {stop}")
        else:
            self._final_evaluation()
        self.log.close()

    def _loop(self) -> str | None:
        """Step until done; returns why it stopped early. The newest state is saved in any case (with --save)."""
        args, state = self.args, self.state
        saved_at = state.iteration
        stop = None
        while state.iteration < args.train_iters and stop is None:
            stop = self._data_end()
            if stop:
                break
            result = self.iteration()
            stop = _reason_to_stop(args, state.iteration, result)
            if args.save and args.save_interval and state.iteration % args.save_interval == 0:
                self._save()
                saved_at = state.iteration
        if args.save and saved_at != state.iteration:
            self._save()
        return stop

    def _data_end(self) -> str | None:
        available = self.iterators.num_train_samples
        needed = self.state.consumed_train_samples + get_current_global_batch_size()
        if available is None or needed <= available:
            return None
        return f"the data has ended ({available} samples)"

    def iteration(self) -> StepResult:
        """One step and everything that follows from it but checkpoints."""
        args, state = self.args, self.state
        update_num_microbatches(state.consumed_train_samples, consistency_check=False)
        batch = get_current_global_batch_size()
        # What megatron-core's own counter says in every script: rounding, warm-up and telemetry go by it.
        get_rerun_state_machine().current_iteration = state.iteration + 1
        begun = time.perf_counter()
        result = train_step(
            args, self.forward_step, one_or_all(self.iterators.train), self.model, self.optimizer, self.wants_exit
        )
        seconds = time.perf_counter() - begun
        learning_rate = get_canonical_lr_for_logging(self.optimizer.param_groups)
        if result.skipped:
            state.skipped_iterations += 1
        else:
            self.scheduler.step(increment=batch)
        self.gathers.turn_on()
        state.iteration += 1
        state.consumed_train_samples += batch
        self._check(result)
        values = {"learning_rate": learning_rate, "loss_scale": self.optimizer.get_loss_scale().item()}
        values |= sdp4bit_patches.step_metrics(state.iteration)
        validation_loss = self._validate() if state.iteration % args.eval_interval == 0 else None
        self.log.iteration(
            state.iteration, result, seconds, batch, state.consumed_train_samples, values, validation_loss
        )
        if args.timing_log_level != "0" and state.iteration % args.log_interval == 0:
            print_rank_0(self.timers.get_all_timers_string(normalizer=args.log_interval))
        return result

    def _check(self, result: StepResult) -> None:
        args, iteration = self.args, self.state.iteration
        if args.check_for_nan_in_loss_and_grad and not result.skipped and not math.isfinite(result.lm_loss):
            raise RuntimeError(f"the loss is {result.lm_loss} at iteration {iteration}")
        interval = args.check_weight_hash_across_dp_replicas_interval
        if interval and iteration % interval == 0:
            with self.gathers.paused():
                if not check_param_hashes_across_dp_replicas(self.model):
                    raise RuntimeError(f"parameters differ between data-parallel ranks at iteration {iteration}")
            print_rank_0(f" parameters are equal on all data-parallel ranks at iteration {iteration}")

    def _validate(self) -> float | None:
        return self._evaluate(self.iterators.valid, "validation")

    def _evaluate(self, iterators: list, split: str) -> float | None:
        """Loss on a split, or None where the run has no samples of it, or has to end now."""
        args, state = self.args, self.state
        available = self.iterators.num_valid_samples if split == "validation" else self.iterators.num_test_samples
        if args.eval_iters == 0 or available == 0:
            return None
        with self.gathers.paused():
            loss = evaluate(args, self.forward_step, one_or_all(iterators), self.model, self.wants_exit)
        if loss is None:
            print_rank_0(f" {split} at iteration {state.iteration} was cut short: SIGTERM, or the time is over")
            return None
        if split == "validation":
            state.consumed_valid_samples += args.eval_iters * args.global_batch_size
        self.log.validation(state.iteration, loss, split)
        return loss

    def _final_evaluation(self) -> None:
        if self.args.skip_train or self.state.iteration % self.args.eval_interval:
            self._validate()
        self._evaluate(self.iterators.test, "test")

    def _save(self) -> None:
        with self.gathers.paused():
            save_checkpoint(self.args, self.state, self.model, self.optimizer, self.scheduler)


def _minutes_are_up(args: argparse.Namespace, started: float) -> bool:
    return args.exit_duration_in_mins is not None and time.time() - started > args.exit_duration_in_mins * 60


def _reason_to_stop(args: argparse.Namespace, iteration: int, result: StepResult) -> str | None:
    """Why all ranks stop after this iteration, or None."""
    if result.exit_requested:
        return "SIGTERM was received or --exit-duration-in-mins is over"
    if args.exit_interval and iteration % args.exit_interval == 0:
        return f"--exit-interval {args.exit_interval}"
    return None


def one_or_all(iterators: list) -> object:
    """What megatron-core's schedules take: the iterator of the only model chunk, or the list of all chunks'."""
    return iterators[0] if len(iterators) == 1 else iterators
