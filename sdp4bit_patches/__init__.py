"""4-bit data-parallel training for stock Megatron-core.

    import sdp4bit_patches
    sdp4bit_patches.install(sdp4bit_patches.CommConfig(quantized_gradients=True, quantized_weights=True))

before the model is wrapped; or, without touching a script, ``python -m sdp4bit_patches SCRIPT.py --its-flags --ours``.
Importing this package is cheap: torch and megatron-core are loaded by `install`.
"""

from __future__ import annotations

from typing import Any

from sdp4bit_patches.config import CommConfig

__all__ = ["CommConfig", "install", "installed_session", "report_lines", "step_metrics", "uninstall"]

_session: Any = None


def install(config: CommConfig) -> None:
    """Replace what megatron-core sends between data-parallel ranks from now on; with nothing to compress, do nothing.

    Raises:
        RuntimeError: another configuration is installed; call `uninstall` first.
    """
    global _session
    if config.is_baseline:
        return
    if _session is not None:
        raise RuntimeError("a configuration is installed already: call sdp4bit_patches.uninstall() first")
    from sdp4bit_patches import seams
    from sdp4bit_patches.session import Session

    _session = Session(config)
    seams.replace(_session)


def uninstall() -> None:
    """Give megatron-core its own classes back; models that were wrapped meanwhile keep what they have.

    It waits for a DUO sync that is under way: a process that ends in the middle of one is aborted by gloo.
    """
    global _session
    if _session is not None:
        from sdp4bit_patches import seams

        seams.restore()
        if _session.duo is not None:
            _session.duo.pause()
        _session = None


def installed_session() -> Any:
    """What an installed configuration shares, for those who watch it; None where nothing is replaced."""
    return _session


def report_lines(model_chunks: list[Any]) -> list[str]:
    """What of these wrapped model chunks travels at how many bits, what exactly and why, and how many bytes a step."""
    if _session is None:
        return []
    from sdp4bit_patches.report import report_lines as lines

    return lines(_session, model_chunks)


def step_metrics(iteration: int) -> dict[str, Any]:
    """Measurements of compression that are complete after `iteration` (from 1 on); between samples only DUO's times."""
    if _session is None:
        return {}
    every_step = _session.duo.latest if _session.duo else {}
    return every_step | _session.telemetry.take(iteration)
