"""The fitted constants of iteration times on uneven networks: one set for all networks, models and layouts.

`python -m tools.simulator heterogeneous --calibrate` fits them to the published times that are given, and prints them.
"""

from __future__ import annotations

from dataclasses import dataclass

# NCCL's default buffer: a message that fits is on its way when the sender goes on computing.
NCCL_BUFFER_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Constants:
    """What the published runs' hardware and software did, as fitted. Times in seconds.

    v100_teraflops, a40_teraflops: of one device on a transformer layer, forward, recomputation and backward.
    message_overhead: of one blocking message larger than NCCL's buffer; messages through one network card add up.
    delay_factor: delays that a blocking exchange waits for.
    socket_gbps: at most, of blocking messages through one network card.
    loss_hops: of the longest delay, for which the last stage waits in every micro-batch: the mean loss of 8 replicas.
    hop_overhead: of one step of a ring over the network, beside its delay.
    host_link_factor: what links inside a host carry, relative to their label.
    deepspeed_serial: exchanges that DeepSpeed's pipeline makes one after the other; Megatron makes both at once.
    dtfm_compute_factor, dtfm_exposed: DT-FM computes so much slower while it sends, and so much of the shorter one of
        compute and transfer is not hidden behind the longer.
    dtfm_window_gbit: in flight at most, in Gbit, when DT-FM's chain reduces gradients over a link with delay.
    zero3_passes: parameter volumes over the slowest link in one micro-step of ZeRO-3.
    zero3_resident_parameters: parameters that ZeRO-3 keeps; layers beyond are fetched piece by piece.
    zero3_rounds_per_layer: trips around the ring for such a layer.
    zero3_round_overhead: of one trip, beside the delays and ``hop_overhead``.
    """

    v100_teraflops: float = 52.92
    a40_teraflops: float = 88.45
    message_overhead: float = 0.003324
    delay_factor: float = 1.393
    socket_gbps: float = 13.7
    loss_hops: float = 3.851
    hop_overhead: float = 0.0003227
    host_link_factor: float = 1.411
    deepspeed_serial: float = 1.769
    dtfm_compute_factor: float = 1.243
    dtfm_exposed: float = 0.3342
    dtfm_window_gbit: float = 0.4113
    zero3_passes: float = 1.938
    zero3_resident_parameters: float = 1.156e9
    zero3_rounds_per_layer: float = 10.65
    zero3_round_overhead: float = 0.01448

    def teraflops_of(self, device: str) -> float:
        """The compute rate of a device of that name."""
        return {"V100": self.v100_teraflops, "A40": self.a40_teraflops}[device]
