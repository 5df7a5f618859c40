"""A training from a run file and `key=value` words, under the names of pretrain_gpt.py's flags."""

from __future__ import annotations

import difflib
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdp4bit_patches.config import KNOBS, PRESETS, CommConfig
from tools.simulator.job import Job
from tools.simulator.machine import load_cluster
from tools.simulator.model_shape import KNOWN as MODEL_KEYS
from tools.simulator.model_shape import shape_of
from tools.toml_files import read_toml

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Keys that name another file, and the folder it lies in.
INCLUDES = {"model": "models", "scheme": "schemes", "base": "runs"}
COMM_KEYS = {knob.name.replace("_", "-"): knob.name for knob in KNOBS}
# Keys of a training beside its model and what travels between replicas.
RUN_KEYS = {
    "cluster", "gpus", "link-gbps", "compression", "tensor-model-parallel-size", "context-parallel-size",
    "pipeline-model-parallel-size", "num-layers-per-virtual-pipeline-stage", "micro-batch-size", "global-batch-size",
    "sequence-parallel", "transformer-impl", "unfused-attention", "recompute-activations", "recompute-granularity",
    "overlap-grad-reduce", "overlap-param-gather", "use-distributed-optimizer", "grad-reduce-in-bf16",
    "create-attention-mask-in-dataloader", "no-async-tensor-model-parallel-allreduce",
}  # fmt: skip
KEYS = RUN_KEYS | MODEL_KEYS | set(COMM_KEYS)
SIZES = {
    "tp": "tensor-model-parallel-size",
    "cp": "context-parallel-size",
    "pp": "pipeline-model-parallel-size",
}


def read_keys(words: Sequence[str]) -> dict[str, Any]:
    """The keys that `words` give, each a run file (or its name in configs/runs) or `key=value`; later ones win.

    Keys of files that the simulator has no use for are named on stderr.

    Raises:
        ValueError: no such file, or a key=value that is not known or no TOML value.
    """
    keys: dict[str, Any] = {}
    for word in words:
        keys |= _assignment(word) if "=" in word else _file_keys(_run_file(word))
    unused = sorted(key for key in keys if key not in KEYS)
    if unused:
        print(f"without effect on the prediction: {', '.join(unused)}", file=sys.stderr)
    return {key: value for key, value in keys.items() if key in KEYS}


def _assignment(word: str) -> dict[str, Any]:
    key, _, text = word.partition("=")
    if key in INCLUDES:
        return _file_keys(CONFIGS / INCLUDES[key] / f"{text}.toml")
    if key not in KEYS:
        near = difflib.get_close_matches(key, KEYS, 1)
        raise ValueError(f"unknown key '{key}'" + (f"; did you mean {near[0]}?" if near else ""))
    try:
        return {key: tomllib.loads(f"value = {text}")["value"]}
    except tomllib.TOMLDecodeError:
        return {key: text}


def _run_file(word: str) -> Path:
    path = Path(word)
    return path if path.suffix == ".toml" else CONFIGS / "runs" / f"{word}.toml"


def _file_keys(path: Path, including: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys of a file, on top of those of the files that it includes."""
    if path in including:
        raise ValueError(f"{including[-1]} includes {path}, which includes it again")
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.toml"))) or "none"
        raise ValueError(f"there is no {path}; in its folder are: {known}")
    own = read_toml(path)
    keys: dict[str, Any] = {}
    for key in [key for key in own if key in INCLUDES]:
        keys |= _file_keys(CONFIGS / INCLUDES[key] / f"{own.pop(key)}.toml", (*including, path))
    return keys | own


def comm_of(keys: dict[str, Any]) -> CommConfig:
    """What travels between replicas: the preset `compression`, overruled by single knobs.

    Raises:
        ValueError: there is no such preset, or the knobs contradict each other.
    """
    name = keys.get("compression", "baseline")
    if name not in PRESETS:
        raise ValueError(f"compression = {name!r}: use one of {', '.join(PRESETS)}")
    own = {field: keys[key] for key, field in COMM_KEYS.items() if key in keys and field != "node_size"}
    return CommConfig(**{**PRESETS[name], **own})


def job_of(keys: dict[str, Any]) -> Job:
    """The training that `keys` describe.

    Raises:
        ValueError: something is missing, or sizes do not fit each other.
    """
    _need(keys, ("cluster", "gpus", "seq-length", "micro-batch-size"))
    model = shape_of("model", {key: keys[key] for key in keys if key in MODEL_KEYS}, "the model")
    cluster = load_cluster(keys["cluster"])
    if "link-gbps" in keys:
        cluster = cluster.with_link(keys["link-gbps"])
    sizes = {name: keys.get(flag, 1) for name, flag in SIZES.items()}
    replica = sizes["tp"] * sizes["cp"] * sizes["pp"]
    if keys["gpus"] % replica:
        raise ValueError(f"gpus = {keys['gpus']} is no multiple of TP x CP x PP = {replica}")
    dp, micro = keys["gpus"] // replica, keys["micro-batch-size"]
    batch = keys.get("global-batch-size", dp * micro)
    if batch % (dp * micro):
        raise ValueError(f"global-batch-size = {batch} is no multiple of replicas x micro-batch = {dp} x {micro}")
    per_chunk = keys.get("num-layers-per-virtual-pipeline-stage")
    chunks = model.num_layers // (sizes["pp"] * per_chunk) if per_chunk else 1
    return Job(
        model, cluster, comm_of(keys), dp=dp, virtual_pp=chunks, micro_batch=micro, accumulation=batch // (dp * micro),
        seq=keys["seq-length"], **sizes, **_flags(keys, sizes["tp"], cluster.device.family),
    )  # fmt: skip


def _flags(keys: dict[str, Any], tp: int, family: str) -> dict[str, Any]:
    """Fields of a job that are flags; Megatron's defaults, Transformer Engine's layers on GPUs."""
    selective = "selective" if keys.get("recompute-activations", False) else "none"
    recompute = keys.get("recompute-granularity", selective)
    engine = "local" if family == "cpu" else "transformer_engine"
    return {
        "sequence_parallel": keys.get("sequence-parallel", False) and tp > 1,
        "flash_attention": not keys.get("unfused-attention", False),
        "transformer_engine": keys.get("transformer-impl", engine) == "transformer_engine",
        "recompute": recompute,
        "overlap_grad_reduce": keys.get("overlap-grad-reduce", False),
        "overlap_param_gather": keys.get("overlap-param-gather", False),
        "fp32_gradients": not keys.get("grad-reduce-in-bf16", False),
        "distributed_optimizer": keys.get("use-distributed-optimizer", False),
        "mask_in_loader": keys.get("create-attention-mask-in-dataloader", False),
        "async_tensor_parallel": not keys.get("no-async-tensor-model-parallel-allreduce", False),
    }


def _need(keys: dict[str, Any], needed: Sequence[str]) -> None:
    missing = [key for key in needed if key not in keys]
    if missing:
        words = " ".join(f"{key}=..." for key in missing)
        raise ValueError(f"{', '.join(missing)} not given: add {words} to --config")
    for key in ("gpus", "seq-length", "micro-batch-size", "global-batch-size", "link-gbps", *SIZES.values()):
        value = keys.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise ValueError(f"{key} = {value!r}: give a positive number")
        if key != "link-gbps" and not isinstance(value, int):
            raise ValueError(f"{key} = {value!r}: give an integer")
