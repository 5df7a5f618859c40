"""Checks the course of training, learning rate and weight decay, and derives it in samples. Standard library only."""

from __future__ import annotations

import argparse

from megatron.training.errors import require


def check_schedule(args: argparse.Namespace) -> None:
    """Check the flags of the schedule; derive its lengths in samples (``lr_decay_steps`` and others), in place.

    Raises:
        UserError: with the offending value and the remedy.
    """
    for name in ("min_lr", "lr_warmup_init"):
        value = getattr(args, name)
        require(value <= args.lr, f"--{name.replace('_', '-')} {value} is above --lr {args.lr}; lower it")
    require(
        (args.train_iters is None) != (args.train_samples is None) or args.skip_train,
        "give exactly one of --train-iters and --train-samples",
    )
    if args.train_samples is not None:
        require(not args.rampup_batch_size, "--train-samples with --rampup-batch-size: give --train-iters instead")
        args.train_iters = args.train_samples // args.global_batch_size
    args.train_iters = args.train_iters or 0
    _derive_decay(args)
    _derive_weight_decay(args)


def _derive_weight_decay(args: argparse.Namespace) -> None:
    start, end, style = args.start_weight_decay, args.end_weight_decay, args.weight_decay_incr_style
    if style == "constant":
        require(
            start is None and end is None,
            f"--start-weight-decay {start} and --end-weight-decay {end} need --weight-decay-incr-style linear or "
            "cosine; give it, or say --weight-decay alone",
        )
        args.start_weight_decay = args.end_weight_decay = args.weight_decay
        return
    require(
        start is not None and end is not None and start <= end,
        f"--weight-decay-incr-style {style} needs --start-weight-decay (given: {start}) and an --end-weight-decay "
        f"(given: {end}) that is not below it",
    )


def _derive_decay(args: argparse.Namespace) -> None:
    """Decay and warm-up in samples, the unit of the scheduler."""
    batch = args.global_batch_size
    for what in ("decay", "warmup"):
        iterations, samples = getattr(args, f"lr_{what}_iters"), getattr(args, f"lr_{what}_samples")
        require(
            not (iterations and samples),
            f"--lr-{what}-iters {iterations} and --lr-{what}-samples {samples} say the same; give one",
        )
    samples = args.lr_decay_samples or (args.lr_decay_iters or max(args.train_iters, 1)) * batch
    warmup = args.lr_warmup_samples or args.lr_warmup_iters * batch
    if args.lr_warmup_fraction is not None:
        require(
            not warmup,
            f"--lr-warmup-fraction {args.lr_warmup_fraction} excludes --lr-warmup-iters and --lr-warmup-samples; "
            "give one",
        )
        warmup = int(args.lr_warmup_fraction * samples)
    require(
        warmup < samples,
        f"the warm-up of {warmup // batch} iterations is not shorter than the decay of {samples // batch}; "
        "shorten --lr-warmup-iters or lengthen --lr-decay-iters",
    )
    args.lr_decay_steps, args.lr_warmup_steps = samples, warmup
    args.lr_wsd_decay_steps = None if args.lr_wsd_decay_iters is None else args.lr_wsd_decay_iters * batch
    require(
        args.lr_decay_style != "WSD" or args.lr_wsd_decay_steps is not None,
        "--lr-decay-style WSD needs --lr-wsd-decay-iters",
    )
