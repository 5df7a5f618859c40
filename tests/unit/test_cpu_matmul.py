"""Products of bf16 and fp16 matrices in fp32: rounded once, behind autograd; other types as torch has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdp4bit_patches import cpu_matmul


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    """On every processor, and only here: other tests have what their processor needs."""
    before, cpu_matmul._library = cpu_matmul._library, None
    cpu_matmul.install()
    yield
    if before is None:
        cpu_matmul._library._destroy()
    cpu_matmul._library = before


# What a transformer calls; each has one of the four operations behind it, and others in its backward pass.
PRODUCTS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "two matrices": (torch.matmul, ((5, 33), (33, 7))),
    "a sequence and a matrix": (torch.matmul, ((4, 3, 33), (33, 7))),
    "batches": (torch.bmm, ((3, 4, 33), (3, 33, 5))),
    "linear with bias": (F.linear, ((6, 33), (7, 33), (7,))),
    "scaled, onto a mask": (lambda m, a, b: torch.baddbmm(m, a, b, alpha=0.25), ((4, 5), (3, 4, 33), (3, 33, 5))),
    "scaled, onto a row": (lambda m, a, b: torch.addmm(m, a, b, beta=0.5, alpha=2), ((5,), (4, 33), (33, 5))),
    "nothing": (torch.matmul, ((0, 33), (33, 7))),
}


def _tensors(shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def _with_gradients(product: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    result = product(*tensors)
    result.backward(torch.linspace(-1, 1, result.numel()).view(result.shape).to(result.dtype))
    return [result.detach(), *(tensor.grad for tensor in tensors)]


@pytest.mark.parametrize("dtype", cpu_matmul.NARROW)
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_narrow_product_is_the_fp32_one_rounded_once_and_so_are_its_gradients(name: str, dtype: torch.dtype) -> None:
    product, shapes = PRODUCTS[name]
    tensors = _tensors(shapes, dtype)
    wide = [tensor.detach().float().requires_grad_() for tensor in tensors]
    found = _with_gradients(product, tensors)
    expected = _with_gradients(product, wide)
    assert all(part.dtype == dtype for part in found)
    # The upstream gradient of the wide product is rounded as well.
    assert found[0].equal(expected[0].to(dtype))
    for gradient, exact in zip(found[1:], expected[1:], strict=True):
        assert (gradient.float() - exact).norm() <= 0.02 * exact.norm()


def test_a_product_that_is_rounded_on_the_way_would_be_seen() -> None:
    """Negative control of the comparison above."""
    a, b = (tensor.detach() for tensor in _tensors(((5, 330), (330, 7)), torch.bfloat16))
    in_parts = sum((a[:, k : k + 33] @ b[k : k + 33] for k in range(0, 330, 33)), torch.zeros(5, 7).bfloat16())
    assert not in_parts.equal(a @ b)
    assert (a @ b).equal((a.float() @ b.float()).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_other_types_have_torchs_own_bits(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(shape, generator=generator).mul(9).to(dtype) for shape in ((5, 33), (33, 7)))
    expected = torch.empty(5, 7, dtype=dtype)
    torch.mm(a, b, out=expected)
    assert (a @ b).equal(expected)
    assert torch.addmm(expected, a, b).equal(torch.addmm(expected, a, b, out=torch.empty_like(expected)))


def test_installing_twice_changes_nothing() -> None:
    library = cpu_matmul._library
    cpu_matmul.install()
    assert cpu_matmul._library is library
