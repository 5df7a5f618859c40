"""``python -m sdp4bit_patches doctor FLAGS``: what of a machine and of a run's flags stands in compression's way."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import socket
from dataclasses import dataclass

from sdp4bit_patches.config import CommConfig

GOOD, ADVICE, WRONG = "ok", "advice", "wrong"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `kind` ok, advice or wrong; `remedy` names what to change."""

    kind: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.kind:>6}  {self.what}{': ' + self.remedy if self.remedy else ''}"


def examine(config: CommConfig, words: list[str]) -> int:
    """Print all findings about this machine, compression and a run's own flags; 1 where one is wrong, else 0."""
    args = _host_flags(words)
    findings = [*_machine(), *_compression(config), *_host(config, args), *_overlap(config, args)]
    for finding in findings:
        print(finding)
    wrong = sum(finding.kind == WRONG for finding in findings)
    print(f"{len(findings)} findings, {wrong} wrong")
    return int(wrong > 0)


def _host_flags(words: list[str]) -> argparse.Namespace:
    """Those of Megatron's own flags that matter here; all others are none of the doctor's business."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in (
        "use-distributed-optimizer bf16 fp16 overlap-grad-reduce overlap-param-gather sequence-parallel "
        "use-precision-aware-optimizer optimizer-cpu-offload use-megatron-fsdp fp8-param-gather "
        "accumulate-allreduce-grads-in-fp32 grad-reduce-in-bf16"
    ).split():
        parser.add_argument(f"--{name}", action="store_true")
    for name in ("tensor-model-parallel-size", "pipeline-model-parallel-size", "num-distributed-optimizer-instances"):
        parser.add_argument(f"--{name}", type=int, default=1)
    parser.add_argument("--ddp-bucket-size", type=int)
    parser.add_argument("--distributed-backend")
    return parser.parse_known_args(words)[0]


def _machine() -> list[Finding]:
    import torch

    findings = [Finding(GOOD, f"{name} {_version(name)}") for name in ("torch", "megatron-core")]
    for device, remedy in (("cpu", "reinstall with a C++ compiler on PATH"), ("cuda", "reinstall with nvcc on PATH")):
        built = importlib.util.find_spec(f"sdp4bit_patches._{device}") is not None
        needed = device == "cpu" or torch.cuda.is_available()
        kind = GOOD if built else WRONG if needed else ADVICE
        findings.append(
            Finding(kind, f"native {device} kernels {'built' if built else 'not built'}", "" if built else remedy)
        )
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA: training runs on the CPU over gloo"
    return [*findings, Finding(GOOD, where), _node_map()]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"


def _node_map() -> Finding:
    local, world = os.environ.get("LOCAL_WORLD_SIZE"), os.environ.get("WORLD_SIZE")
    if local is None or world is None:
        return Finding(
            GOOD, f"not under torchrun; at run time ranks of one host name ({socket.gethostname()}) are a node"
        )
    even = int(world) % int(local) == 0
    remedy = "" if even else "uneven nodes exchange gradients in a single hop; start as many processes on each"
    return Finding(GOOD if even else ADVICE, f"{world} ranks, {local} on this node", remedy)


def _compression(config: CommConfig) -> list[Finding]:
    if config.is_baseline:
        return [Finding(WRONG, "no compression is asked for", "add --compression sdp4bit")]
    findings = [Finding(GOOD, "compression flags fit each other")]
    gradients, weights = config.quantized_gradients, config.compresses_weights
    unused = {
        "--hadamard-transform": config.hadamard_transform and not gradients,
        "--gradient-alltoall-pipeline": config.gradient_alltoall_pipeline > 1 and not gradients,
        "--gradients-quantization-start-iteration": config.gradients_quantization_start_iteration and not gradients,
        "--quantized-weights": config.quantized_weights and not weights,
    }
    findings += [
        Finding(ADVICE, f"{flag} changes nothing", _why_unused(flag)) for flag, found in unused.items() if found
    ]
    if gradients and not config.hadamard_transform and config.gradient_quantization_bits_inter <= 4:
        findings.append(
            Finding(ADVICE, "4-bit gradients without smoothing", "add --hadamard-transform: it costs little")
        )
    if config.quantize_weights_directly:
        findings.append(Finding(ADVICE, "--quantize-weights-directly is a baseline that trains worse", "drop it"))
    return findings


def _why_unused(flag: str) -> str:
    return "32 bits are what travels anyway" if flag == "--quantized-weights" else "add --quantized-gradients"


def _host(config: CommConfig, args: argparse.Namespace) -> list[Finding]:
    checks = {
        "--use-distributed-optimizer": (not args.use_distributed_optimizer, "gradients are not sharded", "add"),
        "--bf16": (config.compresses_weights and not (args.bf16 or args.fp16), "weights have no 16-bit copy", "add"),
        "--use-precision-aware-optimizer": (
            config.compresses_weights and args.use_precision_aware_optimizer,
            "it keeps the main parameters to itself",
            "drop",
        ),
        "--optimizer-cpu-offload": (
            config.compresses_weights and args.optimizer_cpu_offload,
            "main parameters are on the host",
            "drop",
        ),
        "--use-megatron-fsdp": (args.use_megatron_fsdp, "Megatron-FSDP has buffers of its own", "drop"),
        "--fp8-param-gather": (args.fp8_param_gather, "fp8 parameters have no 16-bit copy", "drop"),
        "--num-distributed-optimizer-instances": (
            args.num_distributed_optimizer_instances > 1,
            "compression knows a single instance",
            "drop",
        ),
        "--quantize-all-parameters": (
            config.quantize_all_parameters and args.tensor_model_parallel_size > 1,
            "norms and biases would drift apart between tensor-parallel ranks",
            "drop",
        ),
    }
    return [Finding(WRONG, reason, f"{verb} {flag}") for flag, (applies, reason, verb) in checks.items() if applies]


def _overlap(config: CommConfig, args: argparse.Namespace) -> list[Finding]:
    findings = []
    one = os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS") == "1"
    if one and config.gradient_alltoall_pipeline > 1:
        remedy = "unset it, and with --sequence-parallel expect the hops of --gradient-alltoall-pipeline in a row"
        findings.append(Finding(ADVICE, "CUDA_DEVICE_MAX_CONNECTIONS=1 serializes the hops", remedy))
    if not args.overlap_grad_reduce:
        findings.append(Finding(ADVICE, "gradients wait for the end of the backward pass", "add --overlap-grad-reduce"))
    elif config.compresses_weights and not args.overlap_param_gather:
        findings.append(Finding(ADVICE, "parameters are gathered before the next step", "add --overlap-param-gather"))
    size = args.ddp_bucket_size
    if size is not None and size < config.min_quantized_bucket:
        remedy = f"raise it above --min-quantized-bucket {config.min_quantized_bucket}"
        findings.append(Finding(WRONG, f"--ddp-bucket-size {size}: buckets travel exactly", remedy))
    return findings
