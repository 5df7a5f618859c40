"""Writes the tensors of a checkpoint from the training process itself.

megatron-core's own writer forks a process per file and keeps a manager process per rank, made for asynchronous saves.
For a save that training waits for, that costs seconds at the first checkpoint, leaves the managers behind when a rank
is killed, and waits for ever when a forked writer is. The files are the same.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedBase, ShardedObject, ShardedStateDict, is_main_replica
from megatron.core.dist_checkpointing.strategies.base import SaveShardedStrategy
from megatron.core.dist_checkpointing.strategies.torch import MCoreSavePlanner, mcore_to_pyt_state_dict
from torch.distributed import checkpoint


class InProcessSave(SaveShardedStrategy):
    """megatron-core's ``torch_dist`` format through torch's own file writer."""

    def __init__(self) -> None:
        super().__init__("torch_dist", 1)

    def save(self, sharded_state_dict: ShardedStateDict, checkpoint_dir: str | Path) -> None:
        """Write this rank's main replicas; called by all ranks."""
        by_key: dict[str, list[ShardedBase]] = defaultdict(list)
        for part in nested_values(sharded_state_dict):
            if is_main_replica(part.replica_id):
                by_key[part.unique_key if isinstance(part, ShardedObject) else part.key].append(part)
        checkpoint.save(
            mcore_to_pyt_state_dict(by_key, is_loading=False),
            storage_writer=checkpoint.FileSystemWriter(checkpoint_dir),
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )

    @property
    def can_handle_sharded_objects(self) -> bool:
        """Objects are stored as bytes beside the tensors."""
        return True
