"""Gradients that change sides: where the bucket, its parameters and the buffer are before and after."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from sdp4bit_patches.gradient_turns import GradientTurns

# A buffer of two buckets, with a gap behind the first bucket's only parameter.
SIZES = (192, 128)


def _buffer() -> SimpleNamespace:
    gradients = torch.arange(float(sum(SIZES)))
    buckets = []
    for index, (data, begin) in enumerate(zip(gradients.split(SIZES), (0, SIZES[0]), strict=True)):
        parameter = SimpleNamespace(shape=(10, 12), numel=lambda: 120, main_grad=data[4:124].view(10, 12))
        bucket = SimpleNamespace(bucket_id=index, offset=begin, grad_data=data, params_list=[parameter])
        buckets.append(bucket)
    return SimpleNamespace(grad_data=gradients, buckets=buckets)


def _is_within(part: torch.Tensor, whole: torch.Tensor, begin: int) -> bool:
    return part.data_ptr() == whole.data_ptr() + 4 * begin


def test_gradients_that_were_there_move_to_the_first_side_with_their_views() -> None:
    buffer, before = _buffer(), torch.arange(float(sum(SIZES)))
    GradientTurns(buffer, None)
    assert buffer.grad_data.equal(before)
    for bucket, part in zip(buffer.buckets, before.split(SIZES), strict=True):
        assert bucket.grad_data.equal(part)
        assert _is_within(bucket.grad_data, buffer.grad_data, bucket.offset)
        [parameter] = bucket.params_list
        assert parameter.main_grad.equal(part[4:124].view(10, 12))
        assert _is_within(parameter.main_grad, bucket.grad_data, 4)


def test_a_bucket_that_turns_leaves_its_gradients_where_they_are_and_comes_back_to_them() -> None:
    buffer = _buffer()
    first, second = GradientTurns(buffer, None).buckets.values()
    here = buffer.grad_data
    left = [first.turn(), second.turn()]
    for bucket, turns, gradients in zip(buffer.buckets, (first, second), left, strict=True):
        assert _is_within(gradients, here, bucket.offset)
        assert _is_within(turns.left()[0], here, bucket.offset) and turns.left().shape == (1, gradients.numel())
        assert _is_within(bucket.grad_data, buffer.grad_data, bucket.offset)
        assert _is_within(bucket.params_list[0].main_grad, bucket.grad_data, 4)
    assert buffer.grad_data.data_ptr() != here.data_ptr()
    buffer.grad_data.fill_(7.0)
    assert left[0].equal(torch.arange(float(SIZES[0]))), "what fills the other side does not touch them"
    assert first.turn().eq(7).all() and second.turn().eq(7).all()
    assert buffer.grad_data.data_ptr() == here.data_ptr()


def test_a_bucket_that_does_not_turn_stays_beside_one_that_has() -> None:
    """Buckets turn one after the other within a step."""
    buffer = _buffer()
    first, _ = GradientTurns(buffer, None).buckets.values()
    here = buffer.grad_data
    first.turn()
    assert _is_within(buffer.buckets[1].grad_data, here, SIZES[0])
