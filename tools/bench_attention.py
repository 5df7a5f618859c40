"""Time this project's attention against megatron-core's own on the CPU: ``python tools/bench_attention.py``.

Forward and backward, causal, one thread, no dropout; the two take turns, and the medians are compared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from tqdm import tqdm

from sdp4bit_patches import cpu_device

SHAPES = [(256, 4, 4, 32), (1024, 1, 12, 64), (2048, 1, 8, 128)]  # sequence, batch, heads, dim


def main() -> None:
    """Print one line per shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="measurements of each (default 15)")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    args = parser.parse_args()
    if not cpu_device.install():
        sys.exit("This measures the CPU, and a GPU was found: run it with CUDA_VISIBLE_DEVICES=''")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        _join_a_group_of_one(folder)
        print(
            f"{args.dtype}, 1 thread, forward + backward, median of {args.repeats}, in turns, torch {torch.__version__}"
        )
        for shape in SHAPES:
            _report(shape, getattr(torch, args.dtype), args.repeats)


def _join_a_group_of_one(folder: str) -> None:
    from megatron.core import parallel_state, tensor_parallel

    store = torch.distributed.FileStore(f"{folder}/store", 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(1)


def _attentions(heads: int, dim: int, dtype: torch.dtype) -> dict[str, torch.nn.Module]:
    """Ours and megatron-core's, for one configuration."""
    from megatron.core.transformer.dot_product_attention import DotProductAttention as Stock
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron.training.attention import DotProductAttention

    config = TransformerConfig(
        num_layers=1,
        hidden_size=heads * dim,
        num_attention_heads=heads,
        attention_dropout=0.0,
        bf16=dtype == torch.bfloat16,
        masked_softmax_fusion=False,
    )
    arguments = (config, 1, AttnMaskType.causal, "self")
    return {"ours": DotProductAttention(*arguments), "megatron-core": Stock(*arguments)}


def _report(shape: tuple[int, int, int, int], dtype: torch.dtype, repeats: int) -> None:
    """Measure one shape and print its line."""
    sequence, batch, heads, dim = shape
    modules = _attentions(heads, dim, dtype)
    query, key, value = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
    gradient = torch.randn(sequence, batch, heads * dim, dtype=dtype)
    hidden = torch.ones(1, 1, sequence, sequence, dtype=torch.bool).triu(1)
    calls = {
        "ours": lambda: modules["ours"](query, key, value, None).backward(gradient),
        "megatron-core": lambda: modules["megatron-core"](query, key, value, hidden).backward(gradient),
    }
    seconds = {name: [] for name in calls}
    for repeat in tqdm(range(repeats + 1), desc=str(shape), leave=False):
        for name, call in calls.items():
            elapsed = _seconds(call)
            if repeat:  # the first round only warms up
                seconds[name].append(elapsed)
    ours, stock = (statistics.median(seconds[name]) * 1e3 for name in calls)
    print(
        f"[s, b, heads, dim] {list(shape)}: ours {ours:.2f} ms, megatron-core {stock:.2f} ms, ratio {ours / stock:.2f}"
    )


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
