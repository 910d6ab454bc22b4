"""One node of a graph: its handle, its kind, and the values it holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from graphkit.arrays import ArrayInfo, describe, device_pointer
from graphkit.counts import counted
from graphkit.lifetime import Handle
from graphkit.runtime.protocol import (
    DependencyType,
    Dim3,
    EdgeData,
    KernelNodePort,
    LaunchAttribute,
    LaunchAttributeID,
    MemAllocNodeParams,
    MemcpyKind,
    MemcpyNodeParams,
    MemFreeNodeParams,
    MemsetNodeParams,
    NodeType,
)

__all__ = [
    "Argument",
    "Difference",
    "GraphEdge",
    "KernelNodeValues",
    "Node",
    "NodeValues",
    "check_paired",
    "edge_data",
    "memcpy_params",
    "memset_params",
    "memset_pattern",
    "node_differences",
    "several_nodes",
]


@dataclass(frozen=True)
class Argument:
    """One argument of a kernel node.

    Attributes:
        name: the parameter's name, ``arg<index>`` where the signature is not known.
        offset: its place in the parameter block, in bytes.
        size: its size in bytes.
        value: an address, a NumPy scalar, or bytes where the type is not known.
    """

    name: str
    offset: int
    size: int
    value: object

    def __str__(self) -> str:
        if isinstance(self.value, bytes):
            return f"{self.name}=0x{self.value[::-1].hex()}"
        if type(self.value) is int:
            return f"{self.name}={self.value:#x}"
        return f"{self.name}={self.value}"


@dataclass(frozen=True)
class KernelNodeValues:
    """The parameters of a kernel node, with its arguments read back.

    Attributes:
        name: the function's name. It is no identity: compare ``function``.
        function: the CUfunction.
        grid: blocks along x, y, z.
        block: threads of a block along x, y, z.
        shared_mem: dynamic shared memory of a block in bytes.
        args: the arguments in order.
        attributes: launch attributes other than CUDA's defaults.
    """

    name: str
    function: int
    grid: Dim3
    block: Dim3
    shared_mem: int
    args: tuple[Argument, ...]
    attributes: tuple[LaunchAttribute, ...] = field(default=())

    @property
    def cluster(self) -> Dim3 | None:
        """Blocks of a cluster along x, y, z, None without clusters."""
        found = self._attribute(LaunchAttributeID.CLUSTER_DIMENSION)
        return None if found is None else (found[0], found[1], found[2])

    @property
    def cooperative(self) -> bool:
        """Whether all blocks must run at once."""
        return bool((self._attribute(LaunchAttributeID.COOPERATIVE) or (0,))[0])

    @property
    def priority(self) -> int:
        """The priority; smaller is more urgent. A captured kernel has that of its stream."""
        return (self._attribute(LaunchAttributeID.PRIORITY) or (0,))[0]

    def _attribute(self, id_: LaunchAttributeID) -> tuple[int, ...] | None:
        return next((item.value for item in self.attributes if item.id is id_), None)


NodeValues = (
    KernelNodeValues
    | MemcpyNodeParams
    | MemsetNodeParams
    | MemAllocNodeParams
    | MemFreeNodeParams
    | None
)


class Node:
    """A node of a :class:`graphkit.Graph`. Graphs make nodes; there is nothing to construct.

    Attributes:
        ptr: the cudaGraphNode_t.
        type: its kind.
    """

    __slots__ = ("__weakref__", "graph_handle", "ptr", "type")

    def __init__(self, graph_handle: Handle, ptr: int, type_: NodeType) -> None:
        # The handle, not the Graph: a cycle would leave destruction to the garbage collector.
        self.graph_handle = graph_handle
        self.ptr = ptr
        self.type = type_

    def __repr__(self) -> str:
        return f"<Node {self.type.name.lower()} {self.ptr:#x}>"


@dataclass(frozen=True)
class GraphEdge:
    """One dependency: ``to_node`` waits for ``from_node``, how is in ``data``."""

    from_node: Node
    to_node: Node
    data: EdgeData

    @property
    def programmatic(self) -> bool:
        """Whether this is a programmatic edge (PDL)."""
        return self.data.type == 1

    @property
    def launch_completion(self) -> bool:
        """Whether ``to_node`` may start once all blocks of ``from_node`` have started."""
        return self.data.from_port == KernelNodePort.LAUNCH_COMPLETION


def edge_data(
    from_node: Node, to_node: Node, programmatic: bool, launch_completion: bool
) -> EdgeData:
    """Return the data of an edge; a programmatic one joins kernel nodes only."""
    if not programmatic and not launch_completion:
        return EdgeData()
    for node, argument in ((from_node, "from_node"), (to_node, "to_node")):
        if node.type is not NodeType.KERNEL:
            raise TypeError(
                f"{argument}: expected a kernel node for a programmatic edge, came {node!r}"
            )
    port = KernelNodePort.LAUNCH_COMPLETION if launch_completion else KernelNodePort.PROGRAMMATIC
    return EdgeData(int(port), 0, int(DependencyType.PROGRAMMATIC))


def several_nodes(nodes: Node | Iterable[Node], argument: str) -> tuple[Node, ...]:
    """Return what a call was given as one node or several."""
    if isinstance(nodes, Node):
        return (nodes,)
    try:
        return tuple(nodes)
    except TypeError:
        kind = type(nodes).__name__
        raise TypeError(f"{argument}: expected a Node or several, came {kind}") from None


def check_paired(argument: str, mine: int, theirs: int) -> None:
    """Refuse a graph whose nodes are not paired with those of an exec any more.

    Args:
        argument: what the caller asked about.
        mine: how many nodes the exec has.
        theirs: how many the graph has that its values came from.
    """
    if mine != theirs:
        raise ValueError(
            f"{argument}: expected {counted(mine, 'node')} in the graph where its values came from,"
            f" came {counted(theirs, 'node')}; some were added or removed since, so update the "
            "exec from a graph of as many, or make a new one"
        )


class Difference(NamedTuple):
    """One value that differs between two nodes."""

    what: str
    old: object
    new: object

    def __str__(self) -> str:
        return f"{self.what}: {self.old} -> {self.new}"


def node_differences(old: NodeValues, new: NodeValues) -> list[Difference]:
    """List what differs between the values of two nodes, argument by argument."""
    if type(old) is not type(new):
        return [Difference("type", type(old).__name__, type(new).__name__)]
    if isinstance(old, KernelNodeValues) and isinstance(new, KernelNodeValues):
        found = [
            Difference(name, getattr(old, name), getattr(new, name))
            for name in ("name", "function", "grid", "block", "shared_mem", "attributes")
            if getattr(old, name) != getattr(new, name)
        ]
        if len(old.args) != len(new.args):
            return [*found, Difference("arguments", len(old.args), len(new.args))]
        return found + [
            Difference(a.name, a.value, b.value)
            for a, b in zip(old.args, new.args, strict=True)
            if a.value != b.value
        ]
    if isinstance(old, tuple) and isinstance(new, tuple):
        return [
            Difference(name, a, b)
            for name, a, b in zip(old._fields, old, new, strict=True)
            if a != b
        ]
    return []


# --- the geometry of copies and fills ------------------------------------------------------------


def memcpy_params(dst: object, src: object, nbytes: int | None = None) -> MemcpyNodeParams:
    """Return the parameters of a copy between two arrays or addresses.

    Arrays without gaps give a 1-D copy; views give a 2-D or 3-D one, whatever has the fewest
    dimensions.

    Args:
        dst: an array on the device or the host, or an address.
        src: likewise, of the same shape and dtype (or, without gaps, of as many bytes).
        nbytes: how much to copy; needed when either is an address.

    Raises:
        TypeError: when dtypes differ, or an address comes without ``nbytes``.
        ValueError: when sizes differ, nothing is to be copied, or more than three dimensions
            would be needed.
    """
    if isinstance(dst, np.ndarray) and not dst.flags.writeable:
        raise ValueError("dst: expected an array that may be written, came a read-only one")
    if isinstance(dst, int) or isinstance(src, int) or nbytes is not None:
        return _memcpy_bytes(dst, src, nbytes)
    target, source = describe(dst, "dst"), describe(src, "src")
    kind = _kind(target, source)
    if not target.nbytes:
        raise ValueError("dst: expected at least one element to copy, came none")
    if target.contiguous and source.contiguous:
        if target.nbytes != source.nbytes:
            raise ValueError(
                f"src: expected {target.nbytes} bytes as dst has, came {source.nbytes}"
            )
        size = target.nbytes
        return MemcpyNodeParams(target.ptr, size, 1, source.ptr, size, 1, size, 1, 1, kind)
    if target.shape != source.shape:
        raise ValueError(f"src: expected shape {target.shape} as dst has, came {source.shape}")
    if target.dtype != source.dtype:
        raise TypeError(f"src: expected dtype {target.dtype} as dst has, came {source.dtype}")
    axes = _merge_axes(target, source)
    for info, argument, at in ((target, "dst", 1), (source, "src", 2)):
        if any(axis[at] <= 0 for axis in axes):
            raise ValueError(f"{argument}: expected positive strides, came {info.strides}")
    itemsize = target.dtype.itemsize
    width, inner = itemsize, len(axes)
    if axes and axes[-1][1:] == (itemsize, itemsize):
        width, inner = axes[-1][0] * itemsize, len(axes) - 1
    if inner > 2:
        raise ValueError(f"dst: expected a copy of at most 3 dimensions, came {inner + 1}")
    height, dst_pitch, src_pitch = axes[inner - 1] if inner > 0 else (1, width, width)
    depth, dst_slice, src_slice = axes[inner - 2] if inner > 1 else (1, dst_pitch, src_pitch)
    if dst_slice % dst_pitch or src_slice % src_pitch:
        raise ValueError(
            "dst: expected slices a whole number of rows apart, came "
            f"{dst_slice} and {src_slice} bytes with rows of {dst_pitch} and {src_pitch}"
        )
    if depth > 1 and min(dst_slice // dst_pitch, src_slice // src_pitch) < height:
        raise ValueError(
            f"dst, src: expected slices that do not overlap, came strides {target.strides} and "
            f"{source.strides} in shape {target.shape}"
        )
    return MemcpyNodeParams(
        target.ptr,
        dst_pitch,
        max(dst_slice // dst_pitch, height),
        source.ptr,
        src_pitch,
        max(src_slice // src_pitch, height),
        width,
        height,
        depth,
        kind,
    )


def check_address(value: int, argument: str) -> int:
    """Return an address, or refuse what no pointer can be."""
    if isinstance(value, bool) or not 0 < value < 2**64:
        raise ValueError(f"{argument}: expected an array or an address, came {value!r}")
    return value


def _check_nbytes(nbytes: object, addresses: str) -> int:
    if nbytes is None:
        raise TypeError(f"nbytes: expected a size, since {addresses} is an address; came none")
    if not isinstance(nbytes, (int, np.integer)) or isinstance(nbytes, bool):
        raise TypeError(f"nbytes: expected a size as an int, came {nbytes!r}")
    if not 0 < nbytes < 2**64:
        raise ValueError(f"nbytes: expected at least 1, came {nbytes}")
    return int(nbytes)


def _memcpy_bytes(dst: object, src: object, nbytes: int | None) -> MemcpyNodeParams:
    size = _check_nbytes(nbytes, "dst or src")
    addresses, on_host = [], []
    for value, argument in ((dst, "dst"), (src, "src")):
        if isinstance(value, int):
            addresses.append(check_address(value, argument))
            continue
        info = describe(value, argument)
        if not info.contiguous or info.nbytes < size:
            raise ValueError(
                f"{argument}: expected {size} bytes without gaps, came {info.nbytes} in shape "
                f"{info.shape} with strides {info.strides}"
            )
        addresses.append(info.ptr)
        on_host.append(info.on_host)
    # The driver tells by the address what kind of memory it is.
    kind = MemcpyKind.DEFAULT
    if len(on_host) == 2:
        kind = MemcpyKind(2 * (not on_host[1]) + (not on_host[0]))
    return MemcpyNodeParams(addresses[0], size, 1, addresses[1], size, 1, size, 1, 1, kind)


def _kind(dst: ArrayInfo, src: ArrayInfo) -> MemcpyKind:
    return MemcpyKind(2 * (not src.on_host) + (not dst.on_host))


def _merge_axes(dst: ArrayInfo, src: ArrayInfo) -> list[tuple[int, int, int]]:
    """Return (extent, dst stride, src stride) of the fewest axes that say the same.

    The widest stride comes first: which element is copied when makes no difference.
    """
    axes = zip(dst.shape, dst.strides, src.strides, strict=True)
    steps = sorted((axis for axis in axes if axis[0] != 1), key=lambda axis: axis[1:], reverse=True)
    merged: list[tuple[int, int, int]] = []
    for axis in steps:
        extent, dst_step, src_step = axis
        if merged and merged[-1][1:] == (extent * dst_step, extent * src_step):
            merged[-1] = (merged[-1][0] * extent, dst_step, src_step)
        else:
            merged.append(axis)
    return merged


def memset_params(dst: object, value: object, nbytes: int | None = None) -> MemsetNodeParams:
    """Return the parameters of a fill.

    Args:
        dst: a device array, or an address.
        value: what each element becomes, in the array's dtype; for an address a byte, 0 to 255.
        nbytes: how much to fill; needed when ``dst`` is an address, and only then.

    Raises:
        TypeError: when an address comes without ``nbytes``, or an array with it.
        ValueError: when CUDA cannot repeat the value: elements of 8 bytes whose halves differ, or
            a view of more than two dimensions.
    """
    if isinstance(dst, int):
        size = _check_nbytes(nbytes, "dst")
        if not isinstance(value, int) or not 0 <= value <= 255:
            raise ValueError(f"value: expected a byte for {size} bytes, came {value!r}")
        return MemsetNodeParams(check_address(dst, "dst"), size, value, 1, size, 1)
    if nbytes is not None:
        raise TypeError(
            f"nbytes: expected none, since dst is an array and all of it is filled, came {nbytes!r}"
        )
    info = device_pointer(dst, "dst")
    if not info.nbytes:
        raise ValueError("dst: expected at least one element to fill, came none")
    pattern, size = memset_pattern(value, info.dtype)
    itemsize = info.dtype.itemsize
    axes = _merge_axes(info, info)
    if not axes or axes[-1][1] != itemsize:
        axes.append((1, itemsize, itemsize))  # rows of one element
    if len(axes) == 1:
        return MemsetNodeParams(info.ptr, info.nbytes, pattern, size, info.nbytes // size, 1)
    if len(axes) > 2 or axes[0][1] <= 0:
        raise ValueError(
            "dst: expected rows without gaps in at most 2 dimensions, came strides "
            f"{info.strides} in shape {info.shape}"
        )
    (height, pitch, _), (extent, _, _) = axes
    return MemsetNodeParams(info.ptr, pitch, pattern, size, extent * itemsize // size, height)


def memset_pattern(value: object, dtype: np.dtype[Any]) -> tuple[int, int]:
    """Return what CUDA is to repeat so that elements become ``value``, and its size in bytes."""
    raw, size = _element(value, dtype).tobytes(), dtype.itemsize
    if size not in (1, 2, 4):
        if size % 4 or raw != raw[:4] * (size // 4):
            raise ValueError(
                f"value: expected one that repeats every 4 bytes for {dtype}, came {value!r}"
            )
        raw, size = raw[:4], 4
    return int.from_bytes(raw, "little"), size


def _element(value: object, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return one element of ``dtype``; refuse a value that it cannot hold."""
    item = np.asarray(value)
    lost = item.dtype.kind == "c" and dtype.kind != "c"  # the imaginary part would be
    if item.shape != () or item.dtype.kind not in "biufcV" or lost:
        raise TypeError(f"value: expected a scalar for {dtype}, came {value!r}")
    with np.errstate(all="ignore"):
        element = item.astype(dtype)
    # Floats may round; an integer is itself or not there.
    if dtype.kind in "iub" and element != item:
        raise ValueError(f"value: expected one that {dtype} can hold, came {value!r}")
    return element
