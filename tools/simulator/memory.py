"""Memory of a device by part, on the pipeline stage that needs most."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tools.simulator.job import Job

GIB = 2**30
# CUDA context, NCCL's buffers, cuBLAS' workspaces; on CPUs the process itself.
RUNTIME_BYTES, CPU_RUNTIME_BYTES = 2.5 * GIB, 4.5 * GIB
# What the caching allocator holds for tensors that come and go, over what they have.
FRAGMENTATION = 1.05
# Elements of a gradient bucket of Megatron (40 million); DUO keeps two copies of one on the device for a while.
BUCKET_ELEMENTS = 40_000_000


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. `host` is pinned memory of DUO's second sync; it is not on the device."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    scratch: float
    runtime: float
    host: float

    @property
    def device_bytes(self) -> float:
        """Everything but the host's part."""
        return sum(getattr(self, part.name) for part in dataclasses.fields(self) if part.name != "host")

    @property
    def gib(self) -> float:
        """The same in GiB."""
        return self.device_bytes / GIB


def memory(job: Job) -> Memory:
    """Memory of the stage that needs most."""
    return max((_stage_memory(job, stage) for stage in {0, job.pp - 1}), key=lambda needed: needed.device_bytes)


def fits(job: Job, needed: Memory) -> bool:
    """Whether a device holds it."""
    return needed.gib <= job.cluster.device.memory_gib


def activation_bytes_per_layer(job: Job) -> float:
    """What one layer keeps of a micro-batch for the backward pass.

    As Korthikanti et al. 2022 (arXiv 2205.05198) count it, for any width and number of key/value heads: inputs of the
    two norms and of the two column-parallel maps and two dropout masks, 10 h bytes a token in 16 bits, over the ranks
    of sequence parallelism; queries, keys, values, attention's output, and the MLP's hidden values over TP. For
    f = 4h that is s b h (10 + 24/t). Unfused attention keeps its scores too (5 a s / t bytes a token) unless recompute
    drops them; full recompute keeps the layer's input.
    """
    model, element = job.model, job.cluster.device.parameter_bytes
    if job.recompute == "full":
        return element * job.tokens * model.hidden / job.activation_split
    whole = (4 * element + (2 if model.dropout else 0)) * model.hidden / job.activation_split
    split = (2 * model.heads + 2 * model.query_groups) * model.channels
    split += (3 if model.swiglu else 2) * model.ffn_hidden
    scores = 0.0
    if not job.flash_attention and job.recompute == "none":
        scores = (2 * element + 1) * model.heads * job.seq / job.tp
    return job.tokens * (whole + element * split / job.tp + scores)


def _stage_memory(job: Job, stage: int) -> Memory:
    element = job.cluster.device.parameter_bytes
    parameters = job.model.stage_parameters(job.tp, job.pp, stage)
    main_copy = 0 if element == 4 else 4
    shard = parameters / (job.data_ranks if job.distributed_optimizer else 1)
    flying = min(job.pp - stage, job.accumulation)
    layers = job.model.num_layers / job.pp
    if job.virtual_pp > 1:
        flying *= 1 + (job.pp - 1) / (job.pp * job.virtual_pp)
    logits = 0.0
    if stage == job.pp - 1:  # in the model's type, in fp32 for the loss, and their gradient
        logits = job.tokens * job.model.padded_vocab(job.tp) / job.tp * (2 * element + 4)
    activations = flying * layers * activation_bytes_per_layer(job)
    if job.recompute == "full":
        activations += activation_bytes_per_layer(job.replace(recompute="none"))
    return Memory(
        parameters=float(element * parameters),
        gradients=(4.0 if job.fp32_gradients else 2.0) * parameters,
        optimizer=(8.0 + main_copy) * shard,
        activations=FRAGMENTATION * activations,
        logits=FRAGMENTATION * logits,
        scratch=FRAGMENTATION * _scratch_bytes(job, parameters),
        runtime=CPU_RUNTIME_BYTES if job.cluster.device.family == "cpu" else RUNTIME_BYTES,
        host=4.0 * parameters if job.comm.fast_slow_grad_reduce else 0.0,
    )


def _scratch_bytes(job: Job, parameters: int) -> float:
    """Buffers of a step: gathered activations of sequence parallelism, masks, unfused scores of one layer, messages,
    and DUO's bridge."""
    element = job.cluster.device.parameter_bytes
    gathered = 2 * element * job.tokens * job.model.hidden if job.sequence_parallel and job.tp > 1 else 0.0
    mask = 2.0 * job.micro_batch * job.seq**2 if job.mask_in_loader else 0.0
    scores = 0.0 if job.flash_attention else 3 * element * job.tokens * job.seq * job.model.heads / job.tp
    messages = parameters * job.comm.weight_quantization_bits / 8 if job.comm.compresses_weights else 0.0
    bridge = 2 * 4 * BUCKET_ELEMENTS if job.comm.fast_slow_grad_reduce else 0
    if job.comm.quantized_gradients:
        bucket = min(BUCKET_ELEMENTS, parameters) if job.overlap_grad_reduce else parameters
        messages += 2.5 * bucket  # codes of the first hop, sent and received, and of the second one
    return gathered + mask + scores + messages + bridge
