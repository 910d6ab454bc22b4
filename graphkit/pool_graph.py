"""The captured graph of one bucket: copies in, the user's function, copies out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from graphkit.arrays import ArrayInfo
from graphkit.device_array import DeviceArray, contiguous_strides
from graphkit.graph import Graph
from graphkit.in_flight import InFlight
from graphkit.kernel import Kernel
from graphkit.pool_policy import KeyState
from graphkit.retarget import GraphValues
from graphkit.returned import Returned
from graphkit.runtime.protocol import Dim3
from graphkit.signature import Signature
from graphkit.staging import COPY_PADDED, CopyTemplate, PaddedCopy, templates
from graphkit.topology import topology_of

if TYPE_CHECKING:
    from graphkit.pool_exec import PoolExec

__all__ = [
    "Binding",
    "PoolGraph",
    "StagedArgument",
    "StagingCopies",
    "StagingNode",
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
        blocks: for each staging node, its argument block with zeros for the request's addresses.
        words: for each staging node, (index among the request's arguments, word of the block) of
            each address.
        count: arguments of a request.
        mask: bits that no address may have set; a copy moves as many bytes at once.
        result: what a request of this shape gets back.
        state: what the policy counts for the key.
        launches: requests that were answered through it.
        sets: those whose arrays had moved.
        load: what a launch adds to the batch of those in flight.
        elements: elements of a request's arrays.
        padded_elements: the same in the bucket's shape.
    """

    __slots__ = (
        "blocks", "count", "elements", "graph", "launches", "load", "mask", "padded_elements",
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
        self.mask = alignment - 1
        self.count = len(names)
        blocks: list[bytes] = []
        words: list[tuple[tuple[int, int], ...]] = []
        for copies in graph.copies(infos, alignment):
            block = bytearray(copies.template.bytes)
            moving = []
            for entry, name in enumerate(copies.names):
                source, target = copies.template.offsets(entry)
                ours, theirs = (target, source) if copies.inward else (source, target)
                address = graph.staged[name].memory.ptr
                block[ours : ours + _WORD] = address.to_bytes(_WORD, "little")
                moving.append((names.index(name), theirs // _WORD))
            blocks.append(bytes(block))
            words.append(tuple(moving))
        self.blocks = tuple(blocks)
        self.words = tuple(words)
        self.result = None if graph.returned is None else graph.returned.cut(extents)
        self.load = InFlight.load_of(sum(info.nbytes for info in infos.values()))
        self.elements = sum(prod(info.shape) for info in infos.values())
        self.padded_elements = sum(item.memory.size for item in graph.staged.values())


class StagingCopies(NamedTuple):
    """The copies of one staging node: into the staging memory or out of it, and of what."""

    inward: bool
    template: CopyTemplate
    names: tuple[str, ...]


class StagingNode(NamedTuple):
    """A kernel node that copies between a request's arrays and the staging memory.

    Attributes:
        place: among the graph's nodes in order.
        kernel: what copies.
        grid: blocks along x, y, z: the bucket's, whatever the request.
        block: threads of a block along x, y, z.
    """

    place: int
    kernel: Kernel
    grid: Dim3
    block: Dim3


class PoolGraph:
    """The graph of one bucket, in host memory; an exec is moved to it when it is asked for.

    Attributes:
        key: the signature it was captured for.
        staged: the array arguments by name.
        graph: copies in, the function, copies out.
        values: what its nodes hold.
        topology: what execs it may share; a value of its own where sharing is unsafe.
        unshareable: why sharing is unsafe, None where it is safe.
        staging: the nodes that copy in and out, in order.
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
        self.staging: tuple[StagingNode, ...] = ()
        self.returned: Returned | None = None
        self.exec: PoolExec | None = None
        self.nodes = 0

    def copies(self, infos: Mapping[str, ArrayInfo], alignment: int) -> list[StagingCopies]:
        """Return the copies of each staging node, those inward first, for a request's arrays."""
        return [
            copies for inward in (True, False) for copies in self._copies(infos, alignment, inward)
        ]

    def _copies(
        self, infos: Mapping[str, ArrayInfo], alignment: int, inward: bool
    ) -> list[StagingCopies]:
        names: list[str] = []
        copies: list[PaddedCopy] = []
        for name, item in self.staged.items():
            if not (item.reads if inward else item.writes):
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
        self, graph: Graph, copies: Sequence[StagingCopies], returned: Returned | None
    ) -> None:
        """Take over the graph that was captured for the bucket, and read what its nodes hold.

        Args:
            graph: copies in, the function, copies out.
            copies: those that were captured.
            returned: what the function returned, if anything.

        Raises:
            ValueError: when the function launches such copies of its own, as another pool does:
                whose they are could not be told.
        """
        graph.owners.append(self.staged)
        self.graph, self.returned = graph, returned
        self.values = GraphValues(graph)
        functions = {kernel.function(graph.runtime) for kernel in COPY_PADDED.values()}
        nodes = range(len(self.values.kinds))
        places = [place for place in nodes if self.values.function(place) in functions]
        if len(places) != len(copies):
            raise ValueError(
                f"fn: expected a function without an exec pool of its own, came {len(places)} "
                f"staging nodes where {len(copies)} were captured"
            )
        self.staging = tuple(
            StagingNode(place, item.template.kernel, item.template.grid, item.template.block)
            for place, item in zip(places, copies, strict=True)
        )
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
        """Where the staging nodes are among the nodes in order."""
        return tuple(node.place for node in self.staging)

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
