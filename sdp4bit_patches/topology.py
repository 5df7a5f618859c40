"""Node-local and cross-node groups, made from the ranks that a process group really has.

Two ways were weighed to find the nodes: arithmetic on LOCAL_WORLD_SIZE and the parallel sizes, which breaks for
expert groups, pipelines inside a node and uneven nodes; and asking every rank for its host. The second was chosen.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import distributed_c10d

from sdp4bit_patches.gloo_device import GlooDevice, in_torch
from sdp4bit_patches.node_memory import NodeMemory, NodeMemoryError


@dataclass(frozen=True)
class Topology:
    """The ranks of one data-parallel group by node, and the groups of the hops between them.

    `nodes[n]` lists node n's ranks within the group, in ascending order; nodes are ordered by their first rank.
    `flat_group` spans all ranks; `intra_group` this rank's node; `inter_group` the ranks in this rank's place on every
    node. All three are this package's own: what the training script does on its groups can't get between.
    `intra_group` and `inter_group` are None where `shape` has a single level.
    `node_memory` is shared by the ranks of this rank's node; None where there is none, for the reason `node_network`.
    """

    nodes: tuple[tuple[int, ...], ...]
    rank: int
    flat_group: dist.ProcessGroup
    intra_group: dist.ProcessGroup | None
    inter_group: dist.ProcessGroup | None
    node_memory: NodeMemory | None = None
    node_network: str = ""

    @property
    def size(self) -> int:
        """Ranks in all."""
        return sum(map(len, self.nodes))

    def shard_size(self, num_elements: int) -> int:
        """Elements of one rank's shard of a bucket.

        Raises:
            ValueError: they do not split into equal shards.
        """
        if num_elements % self.size:
            raise ValueError(f"{num_elements} elements do not split among {self.size} ranks: pad the bucket")
        return num_elements // self.size

    @property
    def node(self) -> int:
        """This rank's node."""
        return next(index for index, ranks in enumerate(self.nodes) if self.rank in ranks)

    @property
    def local_rank(self) -> int:
        """This rank's place on its node."""
        return self.nodes[self.node].index(self.rank)

    @property
    def shape(self) -> str:
        """The hops a reduce-scatter takes: `two-level`, `intra` or `inter` alone, `uneven` (one hop over all)."""
        return shape(self.nodes)

    @property
    def description(self) -> str:
        """The nodes in words, `2 nodes x 4 ranks` say."""
        sizes = [len(ranks) for ranks in self.nodes]
        if len(set(sizes)) == 1:
            return f"{len(sizes)} node{'s' * (len(sizes) > 1)} x {sizes[0]} rank{'s' * (sizes[0] > 1)}"
        return f"nodes of {' + '.join(map(str, sizes))} ranks"


def shape(nodes: Sequence[Sequence[int]]) -> str:
    """See `Topology.shape`."""
    sizes = {len(ranks) for ranks in nodes}
    if len(nodes) == 1:
        return "intra"
    if len(sizes) > 1:
        return "uneven"
    return "inter" if sizes == {1} else "two-level"


def group_by_node(names: Sequence[object]) -> tuple[tuple[int, ...], ...]:
    """Ranks of equal name together: `group_by_node("aabb")` is ((0, 1), (2, 3))."""
    nodes: dict[object, list[int]] = {}
    for rank, name in enumerate(names):
        nodes.setdefault(name, []).append(rank)
    return tuple(map(tuple, nodes.values()))


def discover(
    group: dist.ProcessGroup,
    node_size: int | None = None,
    backend: str | None = None,
    share_memory: bool = True,
    nodes_of_ranks: Sequence[int] | None = None,
) -> Topology:
    """Find the nodes of `group` and make the groups of its hops; every rank of `group` calls it, in the same order.

    backend: of the groups that are made; that of `group` by default.
    node_size: ranks of a node by their number in the whole job (rank // node_size); None compares host names.
    share_memory: let the ranks of a node exchange through memory, where they pair and the backend is gloo.
    nodes_of_ranks: the node of every rank of the job, instead of both; one may span hosts, a region's say.

    Raises:
        ValueError: `nodes_of_ranks` is of another number of ranks.
    """
    hosts: list[object] = [None] * group.size()
    dist.all_gather_object(hosts, (_node_name(node_size, nodes_of_ranks), socket.gethostname()), group=group)
    names = [name for name, _ in hosts]
    nodes = group_by_node(names)
    ranks = dist.get_process_group_ranks(group)
    rank = group.rank()
    intra = inter = None
    with GlooDevice().serves_new_groups():
        flat_group = own_group(ranks, group, backend)
        if shape(nodes) == "two-level":
            node = next(members for members in nodes if rank in members)
            place = [members[node.index(rank)] for members in nodes]
            both = ([ranks[member] for member in members] for members in (node, place))
            intra, inter = (own_group(members, group, backend) for members in both)
    node_group = flat_group if shape(nodes) == "intra" else intra
    one_host = len({hosts[member][1] for members in nodes if rank in members for member in members}) == 1
    memory = _node_memory(node_group, share_memory) if one_host else (None, "the node spans several hosts")
    return Topology(nodes, rank, flat_group, intra, inter, *memory)


def _node_name(node_size: int | None, nodes_of_ranks: Sequence[int] | None) -> object:
    """What the ranks of this rank's node have in common."""
    if nodes_of_ranks is None:
        return socket.gethostname() if node_size is None else dist.get_rank() // node_size
    given, ranks = len(nodes_of_ranks), dist.get_world_size()
    if given != ranks:
        raise ValueError(f"--node-of-rank has {given} numbers, the job {ranks} ranks; give one for every rank")
    return nodes_of_ranks[dist.get_rank()]


def _node_memory(node_group: dist.ProcessGroup | None, share_memory: bool) -> tuple[NodeMemory | None, str]:
    """See `Topology`: the memory, or why there is none."""
    if node_group is None or node_group.size() == 1 or dist.get_backend(node_group) != "gloo":
        return None, ""
    if not share_memory:
        return None, "--node-channel network"
    try:
        return NodeMemory(node_group), ""
    except NodeMemoryError as error:
        return None, str(error)


def own_group(ranks: list[int], like: dist.ProcessGroup, backend: str | None = None) -> dist.ProcessGroup:
    """A new group that only its own ranks take part in making; time-out and default backend are those of `like`."""
    with _name_of_group(ranks):
        return dist.new_group(
            ranks, timeout=_timeout(like), backend=backend or dist.get_backend(like), use_local_synchronization=True
        )


_num_groups: Counter[tuple[int, ...]] = Counter()


@contextmanager
def _name_of_group(ranks: list[int]) -> Iterator[None]:
    """Have torch name the new group by its ranks and a count of our groups of these ranks.

    torch itself counts all groups of the process into the name. That number differs between pipeline stages, and ranks
    that wait for each other under different names wait for ever.
    """
    count = _num_groups[tuple(ranks)]
    _num_groups[tuple(ranks)] += 1
    name = f"sdp4bit_patches:{'_'.join(map(str, ranks))}:{count}"
    with in_torch(_process_group_name=lambda *_args, **_kwargs: distributed_c10d.GroupName(name)):
        yield


def _timeout(group: dist.ProcessGroup) -> timedelta | None:
    backend = next(iter(group._device_types), None)
    options = getattr(group._get_backend(backend), "options", None) if backend else None
    return getattr(options, "_timeout", None)
