"""Imported once by the server that forks the ranks of :mod:`parallel_launch`: the slow imports, in the right order."""

import warnings

from sdp4bit_patches import cpu_device

cpu_device.install()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # megatron-core announces the optional packages that aren't there
    import megatron.core.distributed
    import megatron.core.models.gpt.gpt_layer_specs
    import megatron.core.optimizer  # noqa: F401
