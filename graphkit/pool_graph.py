"""The captured graph of one bucket: copies in, the user's function, copies out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from graphkit.arrays import ArrayInfo
from graphkit.buffers import ALIGNMENT
from graphkit.device_array import DeviceArray, contiguous_strides
from graphkit.graph import Graph
from graphkit.in_flight import InFlight
from graphkit.pool_policy import KeyState
from graphkit.retarget import GraphValues
from graphkit.returned import Returned
from graphkit.runtime.protocol import KernelNodeParams
from graphkit.signature import Signature
from graphkit.staging import COPY_PADDED, CopyTemplate, PaddedCopy, templates
from graphkit.topology import topology_of

if TYPE_CHECKING:
    from graphkit.pool_exec import PoolExec

__all__ = [
    "Binding",
    "MovingNode",
    "PoolGraph",
    "ReboundNode",
    "StagedArgument",
    "StagingCopies",
    "alignment_of",
    "staging_copy",
]

_WORD = 8  # bytes of an address
_WIDEST = 16  # bytes of one load


class StagedArgument(NamedTuple):
    """One array argument as the graph of a bucket sees it.

    Attributes:
        name: the argument's name.
        memory: the staging memory, in the bucket's shape.
        array: the same as an array of the caller's library: what the function is given.
        fill: what the padding becomes, one element's bytes.
        reads: whether the request's array is copied in.
        writes: whether the result is copied back.
    """

    name: str
    memory: DeviceArray
    array: Any
    fill: bytes
    reads: bool
    writes: bool


class Binding:
    """One shape of request bound to one bucket's graph: all of the copies but the addresses.

    Args:
        graph: the bucket's graph.
        infos: the request's arrays.
        names: the names of all its arguments, in their order.
        extents: its extent of each dimension.
        alignment: what the addresses of all its arrays are multiples of.
        state: what the policy counts for the key.

    Attributes:
        graph: the bucket's graph.
        blocks: for each moving node, its argument block with zeros for the request's addresses.
        words: for each moving node, (index among the request's arguments, word of the block, what
            is added) of each address.
        masks: for each moving node, bits that no address may have set: a copy moves as many bytes
            at once, and the function's kernels were chosen for them.
        count: arguments of a request.
        result: what a request of this shape gets back.
        state: what the policy counts for the key.
        launches: requests that were answered through it.
        sets: those whose arrays had moved.
        load: what a launch adds to the batch of those in flight.
        elements: elements of a request's arrays.
        padded_elements: the same in the bucket's shape.
    """

    __slots__ = (
        "blocks", "count", "elements", "graph", "launches", "load", "masks", "padded_elements",
        "result", "sets", "state", "words",
    )  # fmt: skip

    def __init__(
        self,
        graph: PoolGraph,
        infos: Mapping[str, ArrayInfo],
        names: Sequence[str],
        extents: Sequence[int],
        alignment: int,
        state: KeyState,
    ) -> None:
        self.graph = graph
        self.state = state
        self.launches = self.sets = 0
        self.count = len(names)
        blocks: list[bytes] = []
        words: list[tuple[tuple[int, int, int], ...]] = []
        for copies in graph.copies(infos, alignment):
            block = bytearray(copies.template.bytes)
            moving = []
            for entry, name in enumerate(copies.names):
                source, target = copies.template.offsets(entry)
                ours, theirs = (target, source) if copies.inward else (source, target)
                address = graph.staged[name].memory.ptr
                block[ours : ours + _WORD] = address.to_bytes(_WORD, "little")
                moving.append((names.index(name), theirs // _WORD, 0))
            blocks.append(bytes(block))
            words.append(tuple(moving))
        masks = [alignment - 1] * len(blocks)
        for node in graph.rebound:
            blocks.append(node.arguments)
            words.append(tuple((names.index(name), word, plus) for name, word, plus in node.words))
            masks.append(ALIGNMENT - 1)
        self.blocks = tuple(blocks)
        self.words = tuple(words)
        self.masks = tuple(masks)
        self.result = None if graph.returned is None else graph.returned.cut(extents)
        self.load = InFlight.load_of(sum(info.nbytes for info in infos.values()))
        self.elements = sum(prod(info.shape) for info in infos.values())
        self.padded_elements = sum(item.memory.size for item in graph.staged.values())


class StagingCopies(NamedTuple):
    """The copies of one staging node: into the staging memory or out of it, and of what."""

    inward: bool
    template: CopyTemplate
    names: tuple[str, ...]


class ReboundNode(NamedTuple):
    """A kernel node of the function's that reads a request's arrays where they are.

    Attributes:
        place: among the graph's nodes in order.
        arguments: its argument block; what it holds of the arrays is replaced.
        words: (name, word of the block, bytes added to the array's address) of each address.
    """

    place: int
    arguments: bytes
    words: tuple[tuple[str, int, int], ...]


class MovingNode(NamedTuple):
    """A kernel node that holds addresses of a request: of its copies in or out, or a rebound one.

    Attributes:
        place: among the graph's nodes in order.
        params: what of it is the bucket's, whatever the request: all but the arguments.
    """

    place: int
    params: KernelNodeParams


class PoolGraph:
    """The graph of one bucket, in host memory; an exec is moved to it when it is asked for.

    Attributes:
        key: the signature it was captured for.
        staged: the array arguments by name.
        graph: copies in, the function, copies out.
        values: what its nodes hold.
        topology: what execs it may share; a value of its own where sharing is unsafe.
        unshareable: why sharing is unsafe, None where it is safe.
        moving: the nodes that hold a request's addresses: those that copy in and out, in order,
            then those that are rebound.
        rebound: the function's nodes that read a request's arrays where they are.
        returned: what the function returned, None for None.
        exec: the exec that holds it now.
        nodes: how many nodes it has, those inside of child graphs included.
    """

    def __init__(self, key: Signature, staged: Iterable[StagedArgument]) -> None:
        self.key = key
        self.staged = {item.name: item for item in staged}
        self.graph: Graph
        self.values: GraphValues
        self.topology: object = None
        self.unshareable: str | None = None
        self.moving: tuple[MovingNode, ...] = ()
        self.rebound: tuple[ReboundNode, ...] = ()
        self.returned: Returned | None = None
        self.exec: PoolExec | None = None
        self.nodes = 0

    @property
    def in_place(self) -> frozenset[str]:
        """The arguments that are read where the request has them."""
        return frozenset(name for node in self.rebound for name, *_ in node.words)

    def copies(
        self,
        infos: Mapping[str, ArrayInfo],
        alignment: int,
        *,
        without: Collection[str] | None = None,
    ) -> list[StagingCopies]:
        """Return the copies of each staging node, those inward first, for a request's arrays.

        Args:
            infos: the request's arrays.
            alignment: what their addresses are multiples of.
            without: arguments that are not copied in; by default those that are read in place.
        """
        left_out = self.in_place if without is None else without
        return [
            copies
            for inward in (True, False)
            for copies in self._copies(infos, alignment, left_out, inward)
        ]

    def _copies(
        self,
        infos: Mapping[str, ArrayInfo],
        alignment: int,
        without: Collection[str],
        inward: bool,
    ) -> list[StagingCopies]:
        names: list[str] = []
        copies: list[PaddedCopy] = []
        for name, item in self.staged.items():
            if not (item.reads and name not in without if inward else item.writes):
                continue
            names.append(name)
            bucket = item.memory.shape
            copies.append(staging_copy(infos[name], bucket, item.fill, alignment, inward=inward))
        made, first = [], 0
        for template in templates(copies):
            last = first + template.count
            made.append(StagingCopies(inward, template, tuple(names[first:last])))
            first = last
        return made

    def address_pairs(
        self, copies: StagingCopies, infos: Mapping[str, ArrayInfo]
    ) -> list[tuple[int, int]]:
        """Return the (source, target) addresses of some copies for a request's arrays."""
        pairs = [(infos[name].ptr, self.staged[name].memory.ptr) for name in copies.names]
        return pairs if copies.inward else [(ours, theirs) for theirs, ours in pairs]

    def fill(
        self,
        graph: Graph,
        copies: Sequence[StagingCopies],
        returned: Returned | None,
        rebound: tuple[ReboundNode, ...] = (),
    ) -> None:
        """Take over the graph that was captured for the bucket, and read what its nodes hold.

        Args:
            graph: copies in, the function, copies out.
            copies: those that were captured.
            returned: what the function returned, if anything.
            rebound: the function's nodes that read a request's arrays where they are.

        Raises:
            ValueError: when the function launches such copies of its own, as another pool does:
                whose they are could not be told.
        """
        graph.owners.append(self.staged)
        self.graph, self.returned, self.rebound = graph, returned, rebound
        self.values = GraphValues(graph)
        functions = {kernel.function(graph.runtime) for kernel in COPY_PADDED.values()}
        nodes = range(len(self.values.kinds))
        places = [place for place in nodes if self.values.function(place) in functions]
        if len(places) != len(copies):
            raise ValueError(
                f"fn: expected a function without an exec pool of its own, came {len(places)} "
                f"staging nodes where {len(copies)} were captured"
            )
        places += [node.place for node in rebound]
        self.moving = tuple(MovingNode(place, self.values.launch(place)) for place in places)
        topology = topology_of(graph)
        self.nodes, self.unshareable = topology.nodes, topology.unshareable
        self.topology = object() if topology.unshareable else (topology.key, tuple(places))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the array arguments in the bucket."""
        return {name: item.memory.shape for name, item in self.staged.items()}

    @property
    def owners(self) -> list[object]:
        """What launches of the graph use."""
        return self.graph.owners

    @property
    def places(self) -> tuple[int, ...]:
        """Where the moving nodes are among the nodes in order."""
        return tuple(node.place for node in self.moving)

    def close(self) -> None:
        """Destroy the graph (cudaGraphDestroy). Execs that hold it must be closed before."""
        self.graph.close()


def staging_copy(
    info: ArrayInfo, bucket: tuple[int, ...], fill: bytes, alignment: int, *, inward: bool
) -> PaddedCopy:
    """Return the copy of a request's array into staging memory of the bucket's shape, or back."""
    ours = contiguous_strides(bucket, info.dtype.itemsize)
    return PaddedCopy(
        extents=bucket if inward else info.shape,
        valid=info.shape,
        src_strides=info.strides if inward else ours,
        dst_strides=ours if inward else info.strides,
        itemsize=info.dtype.itemsize,
        fill=fill,
        alignment=alignment,
    )


def alignment_of(addresses: Iterable[int]) -> int:
    """Return what all addresses are a multiple of, at most the 16 bytes of one load."""
    bits = _WIDEST
    for address in addresses:
        bits |= address
    return bits & -bits
