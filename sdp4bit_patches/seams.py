"""The table of what is replaced in megatron-core, and the only place that assigns into it."""

from __future__ import annotations

from typing import Any

from megatron.core import optimizer
from megatron.core.distributed import param_and_grad_buffer

from sdp4bit_patches.bucket_group import QuantizedBucketGroup
from sdp4bit_patches.optimizer import QuantizedDistributedOptimizer
from sdp4bit_patches.session import Session

# Module, name that is looked up there at call time, and the class that stands in.
SEAMS = (
    (param_and_grad_buffer, "_ParamAndGradBucketGroup", QuantizedBucketGroup),
    (optimizer, "DistributedOptimizer", QuantizedDistributedOptimizer),
)

_originals: list[tuple[Any, str, type]] = []


def replace(session: Session) -> None:
    """Put this package's classes in place; each learns of `session` by a class attribute.

    Raises:
        RuntimeError: something else has replaced one of the names before.
    """
    for module, name, stand_in in SEAMS:
        original = getattr(module, name)
        if original not in stand_in.__mro__:
            raise RuntimeError(
                f"{module.__name__}.{name} was replaced by {original!r} already: install only one package"
            )
    for module, name, stand_in in SEAMS:
        _originals.append((module, name, getattr(module, name)))
        setattr(module, name, type(stand_in.__name__, (stand_in,), {"session": session}))


def restore() -> None:
    """Give megatron-core its own classes back."""
    while _originals:
        module, name, original = _originals.pop()
        setattr(module, name, original)
