"""AdamW over flat fp32 tensors, in place and out of place, fused into one pass over memory by the native modules.

On the CPU the bits are those of `adamw_reference` and so of torch's own AdamW. Torch's arithmetic differs between
processors (its square root may be off by 1 ulp, its multiply-add may be fused), so the native code is tried against the
reference once, on data that hurts; where it knows no such square root, torch takes the roots beforehand, and where
that does not agree either, the reference runs and a warning says so. One thing no
code can match: with beta1 = 0, torch gives a gradient of -0 one sign in most places and the other at the end of a
thread's part. On CUDA torch divides by multiplying with a reciprocal: there the native bits are those of the formula,
with the fused multiply-adds of the CPU and a square root that is rounded to nearest.
"""

from __future__ import annotations

import functools
import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sdp4bit_patches import adamw_reference as reference
from sdp4bit_patches import codec
from sdp4bit_patches.adamw_reference import AdamWStep

SECOND_MOMENTS = ("updated", "state", "largest", "bounded")
ROUNDED, RSQRT14, RSQRT12, GIVEN = range(4)  # the native square roots: see sdp4bit.h
MAX_SCALES = 4


def second_moment_rule(configured: str, step: AdamWStep) -> str:
    """What `settled` is in this step: `largest` until the exact second moment has seen 1 / (1 - beta2) gradients, so
    that it lags behind growing gradients no more, then `bounded`: few-bit gradients disturb the state's own least, and
    the bound is for rows that have had no gradient for long, of a rare token say, over whose root a step would explode.
    """
    if configured != "settled":
        return configured
    return "largest" if step.step <= 1 / (1 - step.beta2) else "bounded"


def adamw(main: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, gradient: Tensor, step: AdamWStep) -> None:
    """Advance parameters and moments (all fp32[n]) in place by `gradient` (fp32[n], which is left alone)."""
    _check(main=main, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq, gradient=gradient)
    _check_step(step)
    square_root = _square_root_on(main.device)
    if square_root is None:
        return reference.adamw(main, exp_avg, exp_avg_sq, gradient, step)
    tensors = (main, exp_avg, exp_avg_sq, gradient)
    scaled = reference.scaled(gradient, step) if square_root == GIVEN else gradient
    _run("adamw", tensors, step, _Roots(square_root, exp_avg_sq, scaled, step, "updated"))


def adamw_provisional(
    published: Tensor,
    main: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    gradient: Tensor,
    step: AdamWStep,
    second_moment: str,
) -> None:
    """Write into `published` (fp32[n]) what `adamw` would make of `main`; nothing else changes.

    `gradient` is scaled already: `step.scales` are not used. second_moment: `updated` as in `adamw`; `state`, the
    state's own, with its own bias correction; `largest`, the larger of the two; `bounded`, the state's own, but half
    the root of the updated one at least. In step 1 there is only the updated.
    """
    _check(published=published, main=main, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq, gradient=gradient)
    _check_step(step)
    known = second_moment in SECOND_MOMENTS
    _require(known, f"second_moment={second_moment!r}: use one of {SECOND_MOMENTS}")
    tensors = (published, main, exp_avg, exp_avg_sq, gradient)
    square_root = _square_root_on(main.device)
    if square_root is None:
        return reference.adamw_provisional(*tensors, step, second_moment)
    roots = _Roots(square_root, exp_avg_sq, gradient, step, second_moment if step.step > 1 else "updated")
    _run("adamw_provisional", tensors, step, roots, SECOND_MOMENTS.index(second_moment))


class _Roots:
    """How a native step comes by its square roots. Where they are given, torch takes them here."""

    def __init__(
        self, square_root: int, exp_avg_sq: Tensor, gradient: Tensor, step: AdamWStep, second_moment: str
    ) -> None:
        self.square_root = square_root
        self._updated = self._of_state = None
        if square_root == GIVEN and second_moment != "state":
            self._updated = reference.square_root(reference.updated_second_moment(exp_avg_sq, gradient, step))
        if square_root == GIVEN and second_moment != "updated":
            self._of_state = reference.square_root(exp_avg_sq)

    @property
    def addresses(self) -> list[int]:
        """Of the roots of the updated second moment and of the state's own; 0 where there are none."""
        return [0 if roots is None else roots.data_ptr() for roots in (self._updated, self._of_state)]


def _run(verb: str, tensors: tuple[Tensor, ...], step: AdamWStep, roots: _Roots, *rule: int) -> None:
    device = tensors[0].device
    module = codec.NATIVE[device.type]
    numbers = (_native_step(module, step, roots), *rule, codec.execution(device))
    with codec.on_device(device):
        getattr(module, verb)(*_addresses(tensors), tensors[0].numel(), *numbers)


def _addresses(tensors: tuple[Tensor, ...]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _native_step(module: ModuleType, step: AdamWStep, roots: _Roots) -> Any:
    numbers = (step.lr, step.beta1, step.beta2, step.eps, step.weight_decay)
    return module.AdamWStep(step.step, *numbers, list(step.scales), roots.square_root, *roots.addresses)


def _require(valid: bool, sentence: str) -> None:
    if not valid:
        raise ValueError(sentence)


def _check(**tensors: Tensor) -> None:
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        _require(tensor.dtype == torch.float32, f"{name} is {tensor.dtype}: use torch.float32")
        flat = tensor.dim() == 1 and tensor.is_contiguous()
        _require(
            flat, f"{name} has shape {tuple(tensor.shape)}, strides {tensor.stride()}: use a contiguous 1-D tensor"
        )
        alike = tensor.numel() == first.numel()
        _require(alike, f"{name} has {tensor.numel()} elements, {first_name} {first.numel()}: use the same for all")
        together = tensor.device == first.device
        _require(together, f"{name} is on {tensor.device}, {first_name} on {first.device}: move one")


def _check_step(step: AdamWStep) -> None:
    _require(step.step >= 1, f"step={step.step}: steps count from 1")
    few = len(step.scales) <= MAX_SCALES
    _require(few, f"scales has {len(step.scales)} factors: use at most {MAX_SCALES}, multiply some beforehand")


def _square_root_on(device: torch.device) -> int | None:
    """Which native square root to use; None where the reference has to run."""
    module = codec.NATIVE.get(device.type)
    if module is None:
        codec.warn_about_reference(device.type)
        return None
    return ROUNDED if device.type == "cuda" else _square_root_of_torch(module)


@functools.cache
def _square_root_of_torch(module: ModuleType) -> int | None:
    for square_root in (ROUNDED, RSQRT14, RSQRT12, GIVEN):
        if _agrees(module, square_root):
            return square_root
    sentence = "torch's AdamW rounds on this processor in a way that the native one does not know"
    warnings.warn(f"{sentence}: the slower plain-torch AdamW runs instead", RuntimeWarning, stacklevel=5)
    return None


def _agrees(module: ModuleType, square_root: int) -> bool:
    """Whether a native step has the reference's bits."""
    state, gradient = _probe()
    expected = tuple(values.clone() for values in state)
    step = AdamWStep(3, 1e-2, 0.9, 0.99, 1e-8, 0.1, (0.5, 0.3))
    reference.adamw(*expected, gradient, step)
    execution = module.Execution(0, 1, 0)  # one thread, the best instruction set
    roots = _Roots(square_root, state[2], reference.scaled(gradient, step), step, "updated")
    numbers = _native_step(module, step, roots)
    try:
        module.adamw(*_addresses((*state, gradient)), gradient.numel(), numbers, execution)
    except RuntimeError:  # this processor does not have that square root
        return False
    return all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(state, expected, strict=True))


def _probe() -> tuple[tuple[Tensor, ...], Tensor]:
    """State and gradient of 16384 elements, of all magnitudes down to denormals, some of them zero."""
    generator = torch.Generator().manual_seed(1)
    magnitudes = 10.0 ** (16 * torch.rand(4, 16384, generator=generator, device="cpu") - 12)
    main, exp_avg, exp_avg_sq, gradient = magnitudes * torch.randn(4, 16384, generator=generator, device="cpu")
    exp_avg_sq.mul_(exp_avg_sq)[1::2] *= 1e-20
    for values in (exp_avg_sq, gradient):
        values[::97] = 0.0
    return (main, exp_avg, exp_avg_sq), gradient
