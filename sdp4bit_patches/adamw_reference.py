"""AdamW over flat fp32 tensors in plain torch: the specification that the native AdamW equals bit for bit.

Operation by operation what torch's AdamW computes for one tensor, so that a run whose second sync is exact ends with
the bits of a run with torch's own optimizer. Formula: Loshchilov & Hutter 2019 (arXiv 1711.05101), bias-corrected.
`adamw` names the functions that training calls.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AdamWStep:
    """The numbers of one step; `step` counts from 1. `scales` are multiplied onto the gradient, one after the other."""

    step: int
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    scales: tuple[float, ...] = ()


def adamw(main: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, gradient: Tensor, step: AdamWStep) -> None:
    """Advance parameters and moments (all fp32[n]) in place by `gradient` (fp32[n], which is left alone)."""
    gradient = scaled(gradient, step)
    main.mul_(1 - step.lr * step.weight_decay)
    exp_avg.lerp_(gradient, 1 - step.beta1)
    exp_avg_sq.copy_(updated_second_moment(exp_avg_sq, gradient, step))
    main.addcdiv_(exp_avg, _denominator(exp_avg_sq, step.step, step), value=-step.lr / (1 - step.beta1**step.step))


def adamw_provisional(
    published: Tensor,
    main: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    gradient: Tensor,
    step: AdamWStep,
    second_moment: str,
) -> None:
    """Write into `published` what `adamw` would make of `main`; nothing else changes. `gradient` is scaled already.

    second_moment: `updated` as in `adamw`; `state`, the state's own, from exact gradients only, with its own bias
    correction; `largest`, for each element the larger of the two; `bounded`, the state's own, but half the root of the
    updated one at least. In step 1 there is only the updated one.
    """
    first = torch.lerp(exp_avg, gradient, 1 - step.beta1)
    if second_moment != "state" or step.step == 1:
        denominator = _denominator(updated_second_moment(exp_avg_sq, gradient, step), step.step, step)
    if second_moment != "updated" and step.step > 1:
        exact = _denominator(exp_avg_sq, step.step - 1, step)
        if second_moment == "state":
            denominator = exact
        else:
            denominator = torch.maximum(denominator.mul_(0.5 if second_moment == "bounded" else 1.0), exact)
    torch.mul(main, 1 - step.lr * step.weight_decay, out=published)
    published.addcdiv_(first, denominator, value=-step.lr / (1 - step.beta1**step.step))


def scaled(gradient: Tensor, step: AdamWStep) -> Tensor:
    """`gradient` times the step's scales, one after the other."""
    for factor in step.scales:
        gradient = gradient * factor
    return gradient


def updated_second_moment(exp_avg_sq: Tensor, gradient: Tensor, step: AdamWStep) -> Tensor:
    """What the second moment becomes by a gradient that is scaled already."""
    return torch.mul(exp_avg_sq, step.beta2).addcmul_(gradient, gradient, value=1 - step.beta2)


def _denominator(exp_avg_sq: Tensor, count: int, step: AdamWStep) -> Tensor:
    return (square_root(exp_avg_sq) / (1 - step.beta2**count) ** 0.5).add_(step.eps)


def square_root(exp_avg_sq: Tensor) -> Tensor:
    """Torch's own."""
    return exp_avg_sq.sqrt()
