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
from collections.abc import Sequence
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


class AdamWState:
    """The flat fp32 tensors of one parameter, which are checked once: main parameters, both moments, and where a
    provisional step publishes.

    Raises:
        ValueError: they are not alike.
    """

    def __init__(self, main: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, published: Tensor | None = None) -> None:
        tensors = {"main": main, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
        _check(**tensors if published is None else {"published": published} | tensors)
        self.advanced, self.published = (main, exp_avg, exp_avg_sq), published


def adamw(states: Sequence[AdamWState], gradients: Sequence[Tensor], steps: Sequence[AdamWStep]) -> None:
    """Advance each parameter and its moments in place by its gradient (fp32[n], which is left alone)."""
    tensors = [(*state.advanced, gradient) for state, gradient in zip(states, gradients, strict=True)]
    _step_each("adamw", tensors, steps)


def adamw_provisional(
    states: Sequence[AdamWState],
    gradients: Sequence[Tensor],
    steps: Sequence[AdamWStep],
    second_moments: Sequence[str],
) -> None:
    """Write into each parameter's `published` what `adamw` would make of it; nothing else changes.

    Gradients are scaled already: `step.scales` are not used. second_moments: `updated` as in `adamw`; `state`, the
    state's own, with its own bias correction; `largest`, the larger of the two; `bounded`, the state's own, but half
    the root of the updated one at least. In step 1 there is only the updated.
    """
    for state, rule in zip(states, second_moments, strict=True):
        _require(state.published is not None, "published is absent: give the state a tensor to publish in")
        _require(rule in SECOND_MOMENTS, f"second_moment={rule!r}: use one of {SECOND_MOMENTS}")
    tensors = [(s.published, *s.advanced, gradient) for s, gradient in zip(states, gradients, strict=True)]
    _step_each("adamw_provisional", tensors, steps, second_moments)


def _step_each(verb: str, tensors: list[tuple[Tensor, ...]], steps: Sequence[AdamWStep], *rules: Sequence[str]) -> None:
    """One call for all parameters, which takes the interpreter's lock once. tensors: of each, in the verb's order."""
    for own, step in zip(tensors, steps, strict=True):
        _check_like("gradient", own[-1], "main", own[-4])
        _check_step(step)
    device = tensors[0][0].device if tensors else torch.device("cpu")
    square_root = _square_root_on(device)
    if square_root is None:
        for own, *numbers in zip(tensors, steps, *rules, strict=True):
            getattr(reference, verb)(*own, *numbers)
        return
    module, parts = codec.NATIVE[device.type], []
    native = _NativeSteps(module, square_root)
    for own, step, *rule in zip(tensors, steps, *rules, strict=True):
        indices = [SECOND_MOMENTS.index(name) for name in rule]
        parts.append((*_addresses(own), own[0].numel(), native.of(step, own[-2:], *rule), *indices))
    with codec.on_device(device):
        getattr(module, verb)(parts, codec.execution(device))


class _NativeSteps:
    """The native forms of steps, one for all parameters that step alike. Where square roots are given, torch takes them
    here, for each parameter its own, and they live as long as this."""

    def __init__(self, module: ModuleType, square_root: int) -> None:
        self._module, self._square_root = module, square_root
        self._known: dict[AdamWStep, Any] = {}
        self._roots: list[Tensor | None] = []

    def of(self, step: AdamWStep, tensors: tuple[Tensor, ...], *rule: str) -> Any:
        """tensors: the second moment and the gradient. rule: of a provisional step, whose gradient is scaled."""
        if self._square_root == GIVEN:
            exp_avg_sq, gradient = tensors
            scaled = gradient if rule else reference.scaled(gradient, step)
            roots = _take_roots(exp_avg_sq, scaled, step, rule[0] if rule and step.step > 1 else "updated")
            self._roots += roots
            return self._make(step, *(0 if values is None else values.data_ptr() for values in roots))
        if step not in self._known:
            self._known[step] = self._make(step, 0, 0)
        return self._known[step]

    def _make(self, step: AdamWStep, *roots: int) -> Any:
        numbers = (step.lr, step.beta1, step.beta2, step.eps, step.weight_decay)
        return self._module.AdamWStep(step.step, *numbers, list(step.scales), self._square_root, *roots)


def _take_roots(
    exp_avg_sq: Tensor, gradient: Tensor, step: AdamWStep, second_moment: str
) -> tuple[Tensor | None, Tensor | None]:
    """Of the updated second moment and of the state's own; None for one that is not used."""
    updated = of_state = None
    if second_moment != "state":
        updated = reference.square_root(reference.updated_second_moment(exp_avg_sq, gradient, step))
    if second_moment != "updated":
        of_state = reference.square_root(exp_avg_sq)
    return updated, of_state


def _addresses(tensors: tuple[Tensor, ...]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _require(valid: bool, sentence: str) -> None:
    if not valid:
        raise ValueError(sentence)


def _check(**tensors: Tensor) -> None:
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        _check_like(name, tensor, first_name, first)


def _check_like(name: str, tensor: Tensor, first_name: str, first: Tensor) -> None:
    _require(tensor.dtype == torch.float32, f"{name} is {tensor.dtype}: use torch.float32")
    flat = tensor.dim() == 1 and tensor.is_contiguous()
    _require(flat, f"{name} has shape {tuple(tensor.shape)}, strides {tensor.stride()}: use a contiguous 1-D tensor")
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
    native = _NativeSteps(module, square_root)
    part = (*_addresses((*state, gradient)), gradient.numel(), native.of(step, (state[2], gradient)))
    try:
        module.adamw([part], execution)
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
