"""A rank of a job with --layout: prints which processes, as the launcher counts them, share its groups."""

from __future__ import annotations

import json
import os
import sys

from megatron.training.arguments import parse_args
from megatron.training.validation import validate_args


def main() -> None:
    process = int(os.environ["LOCAL_RANK"])
    args = validate_args(parse_args(sys.argv[1:]), int(os.environ["WORLD_SIZE"]))
    from sdp4bit_patches import cpu_device

    cpu_device.install()
    import torch.distributed as dist
    from megatron.core import parallel_state

    from megatron.training.initialize import initialize_megatron
    from sdp4bit_patches import topology

    initialize_megatron(args)
    groups = {
        "data": parallel_state.get_data_parallel_group(),
        "pipeline": parallel_state.get_pipeline_model_parallel_group(),
    }
    members = {}
    for name, group in groups.items():
        processes: list[object] = [None] * group.size()
        dist.all_gather_object(processes, process, group=group)
        members[name] = processes
    nodes = tuple(map(int, args.node_of_rank.split(",")))
    members["data-parallel nodes"] = topology.discover(groups["data"], nodes_of_ranks=nodes).description
    members["all nodes"] = topology.discover(dist.group.WORLD, nodes_of_ranks=nodes).description
    # Text and line end in one write: torchrun's processes are unbuffered, and another's line must not come between.
    sys.stdout.write(json.dumps({"process": process, "rank": dist.get_rank()} | members) + "\n")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
