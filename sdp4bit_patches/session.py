"""What all bucket groups and optimizers share: the configuration, progress, scratch, topologies, telemetry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from sdp4bit_patches import topology
from sdp4bit_patches.config import SLOW_DTYPES, CommConfig
from sdp4bit_patches.duo import Duo, DuoBucket
from sdp4bit_patches.exact_reduce_scatter import keeps_shards_in_order
from sdp4bit_patches.gradient_turns import BucketTurns, GradientTurns
from sdp4bit_patches.progress import Scratch, StreamProgress, ThreadProgress, make_progress
from sdp4bit_patches.slow_policy import SlowPolicy
from sdp4bit_patches.telemetry import Telemetry
from sdp4bit_patches.topology import Topology

# Tied embeddings on the first and last pipeline stage are rounded by one name, so that the two copies stay equal.
SHARED_EMBEDDING_BUCKET = 2**24 - 1

QUANTIZED_MODEL_DTYPES = (torch.bfloat16, torch.float16)


def is_shared_embedding(bucket: Any) -> bool:
    """Whether a bucket holds the embedding that the first and last pipeline stage share; it is alone in its bucket."""
    return any(getattr(parameter, "shared_embedding", False) for parameter in bucket.params_list)


def _has_main(bucket: Any) -> bool:
    """Whether its parameters have fp32 main parameters beside them."""
    return bucket.param_data is not None and bucket.param_data.dtype in QUANTIZED_MODEL_DTYPES


class Session:
    """Lives from `install` to `uninstall`. What needs a device or a process group is made at first use."""

    def __init__(self, config: CommConfig) -> None:
        self.config = config
        self.telemetry = Telemetry(config.log_compression_interval)
        # Called with the model chunks when all messages are planned, and after every optimizer step.
        self.on_ready: Callable[[list[Any]], None] | None = None
        self.on_step: Callable[[int], None] | None = None
        self._progress: ThreadProgress | StreamProgress | None = None
        self._scratch: Scratch | None = None
        # By ranks, and whether for the slow channel, whose groups are its own.
        self._topologies: dict[tuple[tuple[int, ...], bool], Topology] = {}
        self._slow_groups: dict[tuple[int, ...], dist.ProcessGroup] = {}
        self._duo: Duo | None = None
        self._host_group: dist.ProcessGroup | None = None
        self._decided = 0
        self._num_buckets = 0
        # Optimizer steps since the start.
        self.num_steps = 0

    def progress(self, device: torch.device) -> ThreadProgress | StreamProgress:
        """The one place where communication runs."""
        self._progress = self._progress or make_progress(device)
        return self._progress

    def scratch(self, device: torch.device) -> Scratch:
        """The memory between hops."""
        self._scratch = self._scratch or Scratch(device)
        return self._scratch

    @property
    def scratch_bytes(self) -> int:
        """The size of the scratch memory, once the buckets are planned."""
        return self._scratch.num_bytes if self._scratch else 0

    @property
    def node_memory_bytes(self) -> int:
        """What this rank's nodes share in memory, all of their ranks together, once the buckets are planned."""
        memories = [found.node_memory for found in self._topologies.values()]
        return sum(memory.num_bytes for memory in memories if memory)

    def topology(self, group: dist.ProcessGroup, is_slow: bool = False) -> Topology:
        """The nodes of a group, found once for each channel; all of its ranks ask in the same order."""
        key = (tuple(dist.get_process_group_ranks(group)), is_slow)
        if key not in self._topologies:
            backend = self._slow_backend if is_slow else None
            share_memory = self.config.node_channel == "memory"
            self._topologies[key] = topology.discover(
                group, self.config.node_size, backend, share_memory, self.config.nodes
            )
        return self._topologies[key]

    def slow_group(self, group: dist.ProcessGroup) -> dist.ProcessGroup:
        """The ranks of `group` on the slow channel; all of them ask in the same order."""
        ranks = dist.get_process_group_ranks(group)
        if tuple(ranks) not in self._slow_groups:
            self._slow_groups[tuple(ranks)] = topology.own_group(ranks, group, self._slow_backend)
        return self._slow_groups[tuple(ranks)]

    @property
    def _slow_backend(self) -> str | None:
        return "gloo" if self.config.duo_slow_channel == "host" else None

    @property
    def duo(self) -> Duo | None:
        """The second gradient sync; None before the first bucket of it."""
        return self._duo

    def make_turns(self, buffer: Any) -> GradientTurns | None:
        """Two sides for a grad buffer, where the second sync can read all of its gradients in their place."""
        gradients, group = buffer.grad_data, buffer.data_parallel_group
        reads = gradients.device.type == "cpu" and gradients.dtype == torch.float32
        if not reads or not all(self.uses_duo(bucket, group.size()) for bucket in buffer.buckets):
            return None
        slow_topology = self.topology(group, is_slow=True)
        return GradientTurns(buffer, slow_topology.node_memory) if keeps_shards_in_order(slow_topology) else None

    def make_duo_bucket(self, bucket: Any, group: dist.ProcessGroup, turns: BucketTurns | None) -> DuoBucket:
        """The second sync of a bucket over `group`, on the configured channel."""
        device = bucket.grad_data.device
        channel = torch.device("cpu") if self.config.duo_slow_channel == "host" else device
        slow_topology = self.topology(group, is_slow=True)
        if self._host_group is None:
            everybody = list(range(dist.get_world_size()))
            self._host_group = topology.own_group(everybody, dist.group.WORLD, "gloo")
        first = SLOW_DTYPES.index(self.config.duo_slow_dtype)
        if self._duo is None:
            policy = SlowPolicy(self.config.duo_policy == "adaptive", first)
            self._duo = Duo(channel, policy, self.telemetry.measures)
        return DuoBucket(bucket.grad_data.numel(), slow_topology, device, channel, turns)

    def decide_slow_policy(self, step: int) -> None:
        """Let all ranks of the job look at whether the slow sync pays; every rank asks in every step."""
        if step == self._decided:
            return
        self._decided = step
        words = self._duo.policy.decide(self._largest)
        if words and dist.get_rank() == 0:
            print(f" step {step}: {words}", flush=True)

    def _largest(self, values: list[float]) -> list[float]:
        """Element-wise maximum over all ranks, on the host."""
        largest = torch.tensor(values, dtype=torch.float64, device="cpu")
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self._host_group)
        return largest.tolist()

    def uses_duo(self, bucket: Any, group_size: int) -> bool:
        """Whether a bucket's gradients are synced a second time: where the first sync is quantized."""
        return self.config.fast_slow_grad_reduce and _has_main(bucket) and self.quantizes_gradients(bucket, group_size)

    def name_bucket(self, bucket: Any) -> int:
        """The bucket's name in the keys of random numbers, the same on all ranks of its group."""
        if is_shared_embedding(bucket):
            return SHARED_EMBEDDING_BUCKET
        self._num_buckets += 1
        return self._num_buckets - 1

    def quantizes_gradients(self, bucket: Any, group_size: int) -> bool:
        """Whether a bucket of a data-parallel group of `group_size` ranks is reduced in quantized form."""
        return self.config.quantized_gradients and self._is_worth_it(bucket, group_size)

    def quantizes_weights(self, bucket: Any, group_size: int) -> bool:
        """Whether its parameters are gathered in quantized form; fp32 parameters have no main copy to differ from."""
        return self.config.compresses_weights and _has_main(bucket) and self._is_worth_it(bucket, group_size)

    def _is_worth_it(self, bucket: Any, group_size: int) -> bool:
        return group_size > 1 and bucket.grad_data.numel() >= self.config.min_quantized_bucket
