"""The start-up report of compression: what travels in which form, what travels exactly and why, bytes per step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from sdp4bit_patches.bucket_messages import BucketMessages
from sdp4bit_patches.collectives import LinkBytes
from sdp4bit_patches.config import CommConfig
from sdp4bit_patches.refusals import Refusal
from sdp4bit_patches.session import QUANTIZED_MODEL_DTYPES, Session
from sdp4bit_patches.topology import Topology
from sdp4bit_patches.wire import MessageFormat

MIB = 2**20


def report_lines(session: Session, model_chunks: list[Any]) -> list[str]:
    """Lines about this rank's buckets; the optimizer has to exist.

    Raises:
        Refusal: with `strict_compression`, where something travels otherwise than asked for.
    """
    groups = [group for chunk in model_chunks for group in chunk.bucket_groups + chunk.expert_parallel_bucket_groups]
    lines = [f" compression: {_in_words(session.config)}"]
    sent, exact = LinkBytes(), dict.fromkeys((4, 2), LinkBytes())
    slow = LinkBytes()
    fallbacks = []
    for number, (size, bucket, messages) in enumerate(_buckets(groups)):
        reasons = _fallbacks(session, bucket, size, messages)
        fallbacks += reasons
        lines.append(f"  bucket {number}, {bucket.grad_data.numel():,} elements: {_bucket(messages, reasons, size)}")
        if messages is not None:
            sent += messages.gradient_bytes + messages.parameter_bytes
            slow += bucket.duo.link_bytes if hasattr(bucket, "duo") else LinkBytes()
            for width in exact:
                exact[width] += messages.exact_bytes(width)
    if session.config.strict_compression and fallbacks:
        raise Refusal(f"--strict-compression: {fallbacks[0]}; drop the flag to accept it")
    lines.append(f"  a step sends from this rank {_mebibytes(sent)}")
    for width, total in exact.items():
        lines.append(
            f"  with fp{8 * width} gradients and exact parameters: {_mebibytes(total)}".replace("fp16", "bf16")
        )
    if session.duo is not None:
        channel = "host memory over gloo" if session.config.duo_slow_channel == "host" else "the device"
        lines.append(f"  behind the next step, from {channel}: {_mebibytes(slow)}; evaluation is of the fast weights")
        lines.append(f"  memory of the second sync: {session.duo.num_bytes / MIB:.1f} MiB")
    lines += _between_ranks_of_a_node(session, groups)
    lines.append(f"  scratch memory: {session.scratch_bytes / MIB:.1f} MiB, allocated once")
    return lines


def _between_ranks_of_a_node(session: Session, groups: list[Any]) -> list[str]:
    """How the ranks of a node exchange on gloo, and why not through shared memory where they do not."""
    topologies = {id(messages.topology): messages.topology for _, _, messages in _buckets(groups) if messages}
    reasons = sorted({found.node_network for found in topologies.values()} - {""})
    lines = [f"  inside a node through the network stack, not through shared memory: {reason}" for reason in reasons]
    if session.node_memory_bytes:
        lines.append(
            f"  inside a node through memory that its ranks share, {session.node_memory_bytes / MIB:.1f} MiB in all"
        )
    return lines


def _buckets(groups: list[Any]) -> Iterator[tuple[int, Any, BucketMessages | None]]:
    """Each bucket with the size of its data-parallel group and its messages."""
    for group in groups:
        for bucket, messages in zip_longest(group.buckets, group.messages or ()):
            yield group.intra_distributed_optimizer_instance_size, bucket, messages


def _in_words(config: CommConfig) -> str:
    parts = []
    if config.quantized_gradients:
        hops = f"{config.gradient_quantization_bits_intra} bits inside a node, "
        hops += f"{config.gradient_quantization_bits_inter} bits between nodes"
        parts.append(f"gradients {hops}{', Hadamard 32' if config.hadamard_transform else ''}")
        if config.gradients_quantization_start_iteration:
            parts[-1] += f", from iteration {config.gradients_quantization_start_iteration} on"
    if config.compresses_weights:
        what = "weights" if config.quantize_weights_directly else "weight differences"
        parts.append(f"{what} {config.weight_quantization_bits} bits")
    return "; ".join([*parts, f"{config.quantization_rounding} rounding, seed {config.quantization_seed}"])


def _fallbacks(session: Session, bucket: Any, group_size: int, messages: BucketMessages | None) -> list[str]:
    """Why parts of a bucket travel in another form than asked for."""
    config, size = session.config, bucket.grad_data.numel()
    if group_size == 1:
        return []
    if size < config.min_quantized_bucket:
        return [f"a bucket of {size} elements is below --min-quantized-bucket {config.min_quantized_bucket}"]
    reasons = []
    dtype = bucket.param_data.dtype
    if config.compresses_weights and dtype not in QUANTIZED_MODEL_DTYPES:
        reasons.append(f"its {str(dtype).removeprefix('torch.')} parameters have no main copy to differ from")
    if messages and config.quantized_gradients and messages.topology.shape == "uneven":
        reasons.append(f"{messages.topology.description} do not pair: a single hop over all ranks")
    return reasons


def _bucket(messages: BucketMessages | None, reasons: list[str], group_size: int) -> str:
    if group_size == 1:
        return "one data-parallel rank, nothing travels"
    parts = []
    if messages is not None:
        if messages.reduce_scatter is not None:
            parts.append(f"gradients {_hops(messages.topology, messages.reduce_scatter.formats)}")
        if messages.all_gather is not None:
            parts.append(f"weights {_format(messages.all_gather.format)}")
        if messages.exact.num_elements:
            parts.append(f"{messages.exact.num_elements:,} elements of norms, biases or TP replicas exactly")
        parts.append(messages.topology.description)
    else:
        parts.append("all of it exactly, by megatron-core")
    return "; ".join([*parts, *reasons])


def _hops(topology: Topology, formats: list[MessageFormat]) -> str:
    if len(formats) == 2:
        return f"{_format(formats[0])} inside a node and {_format(formats[1])} between nodes"
    return f"{_format(formats[0])} in one hop"


def _format(message_format: MessageFormat) -> str:
    return f"{message_format.bits} bits in groups of {message_format.group_size}"


def _mebibytes(sent: LinkBytes) -> str:
    return f"{sent.intra / MIB:.2f} MiB inside its node and {sent.inter / MIB:.2f} MiB to other nodes"
