"""AdamW: every native implementation has the bits of the plain-torch reference, and both those of torch.optim.AdamW."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from codec_helpers import assert_same, implementations, using
from torch import Tensor

from sdp4bit_patches import adamw as native
from sdp4bit_patches import adamw_reference as reference
from sdp4bit_patches import codec
from sdp4bit_patches.adamw import SECOND_MOMENTS, AdamWState, AdamWStep

SIZES = (0, 1, 7, 31, 33, 127, 4097, 100_003)
NUM_STEPS = {100_003: 5}  # of 50 for every other size
# Weight decay, lr, scales.
SETTINGS = ((0.0, 1e-2, ()), (0.1, 1e-2, (0.37,)), (0.1, 1e-2, (1 / 3, 0.37)), (0.1, 0.0, (1 / 3, 0.37)))
STEP = AdamWStep(3, 1e-2, 0.9, 0.95, 1e-8, 0.1)
STEPS = (
    STEP,
    replace(STEP, step=1),
    replace(STEP, lr=0.0, scales=(0.37,)),
    replace(STEP, beta1=0.3, weight_decay=0.0, scales=(1 / 3, 0.37)),
    replace(STEP, beta1=0.45, eps=0.0, step=1000),
)


def advance(main: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, gradient: Tensor, step: AdamWStep) -> None:
    """The step in place of a single parameter."""
    native.adamw([AdamWState(main, exp_avg, exp_avg_sq)], [gradient], [step])


def publish(published: Tensor | None, *arguments: Any) -> None:
    """The provisional step of a single parameter; arguments: those of `advance`, and the rule."""
    *state, gradient, step, rule = arguments
    native.adamw_provisional([AdamWState(*state, published)], [gradient], [step], [rule])


@pytest.fixture(params=("torch", "rounded"))
def square_root(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The reference with torch's own square root on this processor, or with one that is rounded to nearest."""
    if request.param == "rounded":
        monkeypatch.setattr(reference, "square_root", rounded_square_root)
    native._square_root_of_torch.cache_clear()
    yield request.param
    native._square_root_of_torch.cache_clear()


def rounded_square_root(x: Tensor) -> Tensor:
    return x.double().sqrt().float()  # the root of a float is never so near the middle of two that this rounds twice


def skip_unless_it_has(square_root: str, implementation: str) -> None:
    if implementation.startswith("cuda") and square_root == "torch" and torchs_root_is_not_rounded():
        pytest.skip("CUDA's square root is rounded to nearest, torch's on this processor is not")


def torchs_root_is_not_rounded() -> bool:
    values = torch.rand(1 << 16, generator=torch.Generator().manual_seed(0))
    return not torch.equal(values.sqrt(), rounded_square_root(values))


def values_that_hurt(num_elements: int, seed: int = 0) -> list[Tensor]:
    """main, exp_avg, exp_avg_sq, gradient: all magnitudes, denormals, zeros of both signs, infinities, NaN."""
    generator = torch.Generator().manual_seed(seed)
    magnitudes = 10.0 ** (60 * torch.rand(4, num_elements, generator=generator) - 40)
    values = list(magnitudes * torch.randn(4, num_elements, generator=generator))
    values[2] = values[2].abs()
    specials = torch.tensor([0.0, -0.0, 1e-45, 1e-40, torch.inf, -torch.inf, torch.nan, 3e38, 1.2e-38])
    for tensor, stride in zip(values, (11, 7, 5, 3), strict=True):
        place = tensor[::stride]
        place.copy_(specials.repeat(len(place) // len(specials) + 1)[: len(place)])
    return values


def ordinary(num_elements: int, seed: int = 0) -> list[Tensor]:
    values = list(torch.randn(4, num_elements, generator=torch.Generator().manual_seed(seed)))
    values[2] = values[2].square() * 1e-3
    return values


@pytest.mark.parametrize("num_elements", SIZES)
@pytest.mark.parametrize("implementation", implementations())
def test_both_verbs_have_the_references_bits_for_every_size_and_kind_of_step(
    num_elements: int, implementation: str, square_root: str
) -> None:
    skip_unless_it_has(square_root, implementation)
    steps = STEPS if num_elements < 100_000 else STEPS[:1]
    for make, step in itertools.product((values_that_hurt, ordinary), steps):
        expected, given = make(num_elements), make(num_elements)
        published = [torch.full((num_elements,), torch.nan) for _ in SECOND_MOMENTS]
        for tensor, rule in zip(published, SECOND_MOMENTS, strict=True):
            reference.adamw_provisional(tensor, *expected, step, rule)
        reference.adamw(*expected, step)
        with using(implementation) as device:
            assert native._square_root_on(torch.device(device)) is not None  # or the reference is compared with itself
            tensors = [values.to(device) for values in given]
            for tensor, rule in zip(published, SECOND_MOMENTS, strict=True):
                output = torch.zeros(num_elements, device=device)
                publish(output, *tensors, step, rule)
                assert_same(output, tensor)
            advance(*tensors, step)
        for actual, right in zip(tensors, expected, strict=True):
            assert_same(actual, right)


@pytest.mark.parametrize("implementation", implementations())
def test_tensors_that_start_at_any_element_have_the_references_bits(implementation: str, square_root: str) -> None:
    skip_unless_it_has(square_root, implementation)
    for start, num_elements in itertools.product(range(17), (5, 70)):
        expected, given = ordinary(100), ordinary(100)
        places = slice(start, start + num_elements)
        published = torch.zeros(100)
        reference.adamw_provisional(published[places], *(v[places] for v in expected), STEP, "largest")
        reference.adamw(*(v[places] for v in expected), STEP)
        with using(implementation) as device:
            assert native._square_root_on(torch.device(device)) is not None
            tensors = [v.to(device) for v in given]
            output = torch.zeros(100, device=device)
            publish(output[places], *(v[places] for v in tensors), STEP, "largest")
            advance(*(v[places] for v in tensors), STEP)
        for actual, right in zip((output, *tensors), (published, *expected), strict=True):
            assert_same(actual, right)


@pytest.mark.parametrize("num_elements", SIZES)
@pytest.mark.parametrize("implementation", [*implementations(), "reference"])
def test_fifty_steps_have_the_bits_of_torchs_own_optimizer(num_elements: int, implementation: str) -> None:
    skip_unless_it_has("torch", implementation)
    if implementation == "cuda":
        pytest.skip("torch's AdamW on CUDA rounds in another way")
    for weight_decay, lr, scales in SETTINGS:
        assert_equals_torch(num_elements, weight_decay, lr, scales, implementation)


def assert_equals_torch(
    num_elements: int, weight_decay: float, lr: float, scales: tuple[float, ...], implementation: str
) -> None:
    generator = torch.Generator().manual_seed(num_elements)
    main, exp_avg, exp_avg_sq = torch.randn(num_elements, generator=generator), *torch.zeros(2, num_elements)
    parameter = torch.nn.Parameter(main.clone())
    optimizer = torch.optim.AdamW([parameter], lr, (0.9, 0.95), 1e-8, weight_decay)
    for count in range(1, NUM_STEPS.get(num_elements, 50) + 1):
        gradient = torch.randn(num_elements, generator=generator)
        parameter.grad = gradient.clone()
        for factor in scales:
            parameter.grad *= factor
        optimizer.step()
        step = AdamWStep(count, lr, 0.9, 0.95, 1e-8, weight_decay, scales)
        if implementation == "reference":
            reference.adamw(main, exp_avg, exp_avg_sq, gradient, step)
        else:
            with using(implementation):
                assert native._square_root_on(main.device) is not None
                advance(main, exp_avg, exp_avg_sq, gradient, step)
    state = optimizer.state[parameter]
    assert torch.equal(main, parameter.data)
    assert torch.equal(exp_avg, state["exp_avg"]) and torch.equal(exp_avg_sq, state["exp_avg_sq"])


def plain_multiply_add(main: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, gradient: Tensor, step: AdamWStep) -> None:
    """The same formula with every product rounded before it is added."""
    exp_avg.add_((gradient - exp_avg) * (1 - step.beta1))
    exp_avg_sq.mul_(step.beta2).add_(gradient * (1 - step.beta2) * gradient)
    denominator = reference._denominator(exp_avg_sq, step.step, step)
    main.mul_(1 - step.lr * step.weight_decay)
    main.add_(exp_avg * (-step.lr / (1 - step.beta1**step.step)) / denominator)


def other_order(main: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, gradient: Tensor, step: AdamWStep) -> None:
    """The same formula with the step's size multiplied onto the quotient."""
    before = main.clone()
    reference.adamw(main, exp_avg, exp_avg_sq, gradient, step)
    quotient = exp_avg / reference._denominator(exp_avg_sq, step.step, step)
    main.copy_(before * (1 - step.lr * step.weight_decay) + quotient * (-step.lr / (1 - step.beta1**step.step)))


@pytest.mark.parametrize("implementation", [*implementations(), "reference"])
def test_parameters_with_steps_of_their_own_step_in_one_call_as_one_by_one(
    implementation: str, square_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_unless_it_has(square_root, implementation)
    if implementation == "reference":
        monkeypatch.setattr(native, "_square_root_on", lambda _device: None)
    given, expected = ordinary(999), ordinary(999)
    places = (slice(0, 7), slice(7, 7), slice(8, 500), slice(500, 999))
    steps = [STEPS[0], STEPS[2], STEPS[1], STEPS[0]]
    rules = ("updated", "largest", "bounded", "state")
    outputs, right = torch.zeros(2, 999)
    for place, step, rule in zip(places, steps, rules, strict=True):
        reference.adamw_provisional(right[place], *(v[place] for v in expected), step, rule)
        reference.adamw(*(v[place] for v in expected), step)
    with using(implementation) if implementation != "reference" else nullcontext("cpu") as device:
        assert (native._square_root_on(torch.device(device)) is None) == (implementation == "reference")
        tensors = [values.to(device) for values in (*given, outputs)]
        states = [AdamWState(*(v[place] for v in (*tensors[:3], tensors[4]))) for place in places]
        gradients = [tensors[3][place] for place in places]
        native.adamw_provisional(states, gradients, steps, rules)
        native.adamw(states, gradients, steps)
    for actual, wanted in zip(tensors, (*expected, right), strict=True):
        assert_same(actual, wanted)


def test_no_parameters_are_no_step() -> None:
    native.adamw([], [], [])
    native.adamw_provisional([], [], [], [])


@pytest.mark.parametrize("wrong", (plain_multiply_add, other_order))
def test_arithmetic_that_rounds_elsewhere_is_told_from_torchs(wrong: object) -> None:
    expected, given = ordinary(4097), ordinary(4097)
    reference.adamw(*expected, STEP)
    wrong(*given, STEP)
    assert torch.allclose(given[0], expected[0], rtol=1e-4)
    assert not torch.equal(given[0], expected[0])


@pytest.mark.parametrize("verb", ("in place", "provisional"))
@pytest.mark.skipif(codec.NATIVE["cpu"] is None, reason="no native codec here")
def test_the_number_of_threads_changes_no_bit(verb: str) -> None:
    results, before = [], torch.get_num_threads()
    try:
        for num_threads in (1, 2, 5):
            torch.set_num_threads(num_threads)
            values, published = ordinary(400_003), torch.zeros(400_003)
            if verb == "in place":
                advance(*values, STEP)
            else:
                publish(published, *values, STEP, "updated")
            results.append((*values, published))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, results[0], results[1])) and all(map(torch.equal, results[0], results[2]))


def test_the_gradient_is_left_alone_and_a_provisional_step_changes_only_what_it_publishes() -> None:
    values, before, step = ordinary(100), ordinary(100), replace(STEP, scales=(0.5,))
    publish(torch.zeros(100), *values, step, "updated")
    assert all(map(torch.equal, values, before))
    advance(*values, step)
    assert [torch.equal(*pair) for pair in zip(values, before, strict=True)] == [False, False, False, True]


def test_a_provisional_step_uses_no_scales_since_its_gradient_is_scaled_already() -> None:
    outputs = torch.zeros(2, 100)
    for output, scales in zip(outputs, ((), (0.5,)), strict=True):
        publish(output, *ordinary(100), replace(STEP, scales=scales), "updated")
    assert torch.equal(*outputs) and outputs.any()


@pytest.mark.parametrize("kind", ("no module", "other arithmetic"))
def test_where_the_native_step_cannot_have_torchs_bits_the_reference_runs_and_says_so_once(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "no module":
        monkeypatch.setitem(codec.NATIVE, "cpu", None)
        codec.warn_about_reference.cache_clear()
    elif codec.NATIVE["cpu"] is None:
        pytest.skip("no native codec here")
    else:
        ours = reference.updated_second_moment
        monkeypatch.setattr(reference, "updated_second_moment", lambda *tensors: ours(*tensors) * 1.0000005)
    native._square_root_of_torch.cache_clear()
    expected, given = ordinary(100), ordinary(100)
    reference.adamw(*expected, STEP)
    with pytest.warns(RuntimeWarning, match="plain-torch") as caught:
        advance(*given, STEP)
        publish(torch.zeros(100), *given, STEP, "state")
    native._square_root_of_torch.cache_clear()
    assert len(caught) == 1
    assert all(map(torch.equal, given, expected))


@pytest.mark.skipif(codec.NATIVE["cpu"] is None, reason="no native codec here")
@pytest.mark.parametrize("rule", SECOND_MOMENTS)
def test_a_square_root_that_the_native_step_does_not_know_is_taken_beforehand(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "square_root", lambda x: rounded_square_root(x) * 1.0000005)
    native._square_root_of_torch.cache_clear()
    assert native._square_root_on(torch.device("cpu")) == native.GIVEN
    for step in STEPS:
        expected, given = values_that_hurt(4097), values_that_hurt(4097)
        published, output = torch.zeros(2, 4097)
        reference.adamw_provisional(published, *expected, step, rule)
        publish(output, *given, step, rule)
        reference.adamw(*expected, step)
        advance(*given, step)
        for actual, right in zip((output, *given), (published, *expected), strict=True):
            assert_same(actual, right)
    native._square_root_of_torch.cache_clear()


def test_bad_arguments_are_refused_with_a_sentence() -> None:
    values = ordinary(8)

    def refused(sentence: str, step: AdamWStep = STEP, rule: str = "updated", **other: Tensor) -> None:
        names = ("main", "exp_avg", "exp_avg_sq", "gradient")
        tensors = {"published": torch.zeros(8), **dict(zip(names, values, strict=True)), **other}
        with pytest.raises(ValueError, match=sentence):
            publish(*tensors.values(), step, rule)

    refused("main is torch.float64: use torch.float32", main=values[0].double())
    refused("gradient has 7 elements, main 8: use the same for all", gradient=values[3][:7])
    refused("exp_avg_sq has 7 elements, published 8: use the same for all", exp_avg_sq=values[2][:7])
    refused("exp_avg has shape .8,., strides .2,.: use a contiguous 1-D", exp_avg=torch.zeros(16)[::2])
    refused("gradient is on meta, main on cpu: move one", gradient=values[3].to("meta"))
    refused("step=0: steps count from 1", replace(STEP, step=0))
    refused("scales has 5 factors: use at most 4", replace(STEP, scales=(1.0,) * 5))
    refused("second_moment='newest': use one of", rule="newest")
    refused("published is absent: give the state a tensor", published=None)
