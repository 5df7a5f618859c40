"""One rank of tools/low_bandwidth.py that times the collectives alone, on a node of the emulated cluster.

``low_bandwidth_collectives.py [--quick] GRID OUTPUT``. The rows of tools/bench_collectives.py take turns at the link
rates that they are judged at; rank 0 writes them to OUTPUT.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# Run as a file, Python looks for modules beside it; the package stands in the folder above.
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.low_bandwidth_grid import Grid, read_grid
from tools.low_bandwidth_numbers import COLLECTIVE_RATES

MEBIBYTES, ROUNDS = 32, 5
QUICK_MEBIBYTES, QUICK_ROUNDS = 8, 3


def measure(grid: Grid, mebibytes: int, rounds: int) -> list[dict[str, Any]]:
    """All rows at all rates."""
    from sdp4bit_patches.config import PRESETS, CommConfig
    from tools.bench_collectives import measure as take_times
    from tools.bench_collectives import results
    from tools.collective_rows import OURS, Peer, Quantized, Tensors, all_gather_peers, reduce_scatter_peers
    from tools.low_bandwidth_rank import set_link_rate

    tensors = Tensors(mebibytes * 2**18)
    quantized = Quantized(tensors, CommConfig(**PRESETS["sdp4bit"]))
    rows = [Peer("reduce-scatter", OURS["reduce-scatter"], quantized.run_reduce_scatter)]
    rows += [*reduce_scatter_peers(tensors), Peer("all-gather", OURS["all-gather"], quantized.run_all_gather)]
    rows += all_gather_peers(tensors)
    table = []
    for megabits in sorted(COLLECTIVE_RATES & set(grid.link_mbit)):
        set_link_rate(megabits)
        for row in results(rows, take_times(rows, rounds)):
            table.append({"link_mbit": megabits, "mebibytes": mebibytes} | row)
    return table


def main(*words: str) -> None:
    """One rank."""
    quick = "--quick" in words
    grid_path, output = [word for word in words if not word.startswith("--")]
    grid = read_grid(Path(grid_path))
    sizes = (QUICK_MEBIBYTES, QUICK_ROUNDS) if quick else (MEBIBYTES, ROUNDS)
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rows = measure(grid.quick() if quick else grid, *sizes)
    if os.environ["RANK"] == "0":
        from tools.atomic_files import atomic_files

        with atomic_files(Path(output)) as [temporary]:
            temporary.write_text(json.dumps(rows, indent=1) + "\n")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
