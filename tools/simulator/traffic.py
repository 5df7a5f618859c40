"""What a data-parallel rank sends in a step, by the byte formulas of sdp4bit_patches/wire.py, and what codecs touch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from tools.simulator.job import Job, place


@dataclass(frozen=True)
class Traffic:
    """Bytes of one rank and step.

    `ring`, `gather`: whole buffers, of which the links of a ring carry (n - 1)/n. `intra`, `inter`: what a rank hands
    to an all-to-all inside its node and between nodes, its own part included. `reduce_codec`, `gather_codec`: memory
    that the codec kernels read and write.
    """

    ring: float = 0.0
    intra: float = 0.0
    inter: float = 0.0
    gather: float = 0.0
    reduce_codec: float = 0.0
    gather_codec: float = 0.0


@lru_cache(maxsize=4096)
def data_traffic(job: Job, stage: int) -> Traffic:
    """Traffic of one rank of a pipeline stage; norms and biases travel exactly, as they do by default."""
    if job.data_ranks == 1:
        return Traffic()
    parameters = job.model.stage_parameters(job.tp, job.pp, stage)
    exact = 0
    if not job.comm.quantize_all_parameters:
        exact = job.model.num_layers // job.pp * job.model.layer_vector_parameters
    gather, gather_codec = _gather(job, parameters, exact)
    ring, intra, inter, reduce_codec = _reduce(job, parameters, exact)
    return Traffic(ring, intra, inter, gather, reduce_codec, gather_codec)


def _gather(job: Job, parameters: int, exact: int) -> tuple[float, float]:
    """Buffer and codec bytes of the parameter gather.

    The codec takes the difference of a shard (fp32 main and model parameter) and adds the whole buffer's codes to the
    model parameters, which are read and written.
    """
    width = job.cluster.device.parameter_bytes
    if not job.comm.compresses_weights:
        return float(width * parameters), 0.0
    message = float(job.comm.weight_format.num_bytes(parameters - exact))
    return message + width * exact, message + 2 * width * parameters + (4 + width) * parameters / job.data_ranks


def _reduce(job: Job, parameters: int, exact: int) -> tuple[float, float, float, float]:
    """Ring, intra, inter and codec bytes of the gradient reduction.

    Codec: gradients in fp32 are read and the first message written; every hop's message is read, the second one also
    written; the shard's sum is written in fp32.
    """
    comm = job.comm
    element = 4 if job.fp32_gradients else 2
    if not comm.quantized_gradients:
        return float(element * parameters), 0.0, 0.0, 0.0
    if comm.sends_no_gradients:
        return float(4 * exact), 0.0, 0.0, 0.0
    group = place(job.data_ranks, job.tp, job.cluster.devices)
    whole, ends = parameters - exact, 4 * parameters * (1 + 1 / job.data_ranks)
    if group.local == 1 or comm.node_size == 1:
        message = float(comm.inter_format.num_bytes(whole))
        return float(4 * exact), 0.0, message, ends + 2 * message
    intra = float(comm.intra_format.num_bytes(whole))
    inter = float(comm.inter_format.num_bytes(whole // group.local)) if group.nodes > 1 else 0.0
    return float(4 * exact), intra, inter, ends + 2 * intra + 2 * inter
