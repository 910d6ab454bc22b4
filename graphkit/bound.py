"""What is bound to a captured graph now, and how each buffer and scalar of it is changed."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from graphkit.arrays import is_array
from graphkit.buffers import Buffer, check_no_overlap
from graphkit.device_array import DeviceArray
from graphkit.errors import RebindError
from graphkit.frameworks import FINGERPRINTS
from graphkit.graph_exec import GraphExec
from graphkit.readback import read_kernel_block
from graphkit.runtime.protocol import NodeType
from graphkit.scalar_codes import encode
from graphkit.snapshot import NodeState

__all__ = [
    "TYPE_NAMES",
    "BoundBuffer",
    "BoundScalar",
    "BoundState",
    "ExecNode",
    "NotRestoredError",
    "restore",
]

# How many replaced buffers are held before an event says when they are free, and how many bytes: an
# event for each would cost several times what the change itself does.
_REPLACED_LIMIT = 128
_REPLACED_BYTES = 256 << 20


# The codes of :mod:`struct`, as NumPy calls them.
TYPE_NAMES = {
    "<i": "int32",
    "<I": "uint32",
    "<q": "int64",
    "<Q": "uint64",
    "<f": "float32",
    "<d": "float64",
}


class ExecNode:
    """The parameters that an exec holds for one node, and the call that sets them.

    ``cells`` gives a place for a word at an offset; ``commit`` hands all of it to CUDA.
    """

    def __init__(self, exe: GraphExec, state: NodeState) -> None:
        node, runtime = state.node, exe.runtime
        self.commit: Callable[[], Any]
        if node.type is NodeType.KERNEL:
            params, block = read_kernel_block(node)
            # CUDA is given the addresses of the block's memory: it must live as long as this.
            self._block = block
            self._view = block.view
            params = params._replace(kernel_params=block.kernel_params, extra=block.extra)
            self.commit = runtime.kernel_node_setter(exe.ptr, node.ptr, params)
            return
        words = (ctypes.c_uint64 * 2).from_buffer_copy(state.data.ljust(16, b"\0"))
        self._view = memoryview(words).cast("B")
        cells = self._view.cast("Q")
        exec_, ptr = exe.ptr, node.ptr
        if node.type is NodeType.MEMCPY:
            copy = runtime.graph_memcpy_node_get_params(ptr)

            def commit_copy() -> None:
                new = copy._replace(dst=cells[0], src=cells[1])
                runtime.graph_exec_memcpy_node_set_params(exec_, ptr, new)

            self.commit = commit_copy
        else:
            fill = runtime.graph_memset_node_get_params(ptr)

            def commit_fill() -> None:
                new = fill._replace(dst=cells[0])
                runtime.graph_exec_memset_node_set_params(exec_, ptr, new)

            self.commit = commit_fill

    def cell(self, offset: int) -> memoryview:
        """Return the 8-byte word at an offset."""
        return self._view[offset : offset + 8].cast("Q")

    def bytes_at(self, offset: int, size: int) -> memoryview:
        """Return the bytes of a scalar."""
        return self._view[offset : offset + size]


class BoundState:
    """What a bound graph holds, shared with the functions that change it.

    They must not refer to the bound graph: the cycle would leave destruction to the garbage
    collector. ``addresses``, ``spans`` and ``owners`` are by the buffer's number.
    """

    __slots__ = ("_extents", "addresses", "buffers", "exe", "nodes", "owners", "replaced", "spans")

    def __init__(
        self,
        exe: GraphExec,
        arrays: Mapping[str, object],
        buffers: dict[str, Buffer],
        nodes: Mapping[int, ExecNode],
    ) -> None:
        self.exe = exe
        self.nodes = nodes  # CUDA reads their memory whenever one of them is set
        self.buffers = buffers
        self._extents = [(buffer.low, buffer.high) for buffer in buffers.values()]
        self.addresses = [buffer.address for buffer in buffers.values()]
        self.spans: list[tuple[int, int]] = [
            (buffer.address + buffer.low, buffer.address + buffer.high)
            for buffer in buffers.values()
        ]
        # What is bound, and what was and launches may still use. The graph's owners are what its
        # execs keep until their launches are done.
        self.owners = [arrays[name] for name in buffers]
        # By their ids: whoever goes back and forth between a few buffers needs no event.
        self.replaced: dict[int, object] = {}
        exe.graph.owners.append((self.owners, self.replaced))

    def let_go(self) -> None:
        """Hand what was replaced over to the events that say when launches are done with it."""
        replaced = list(self.replaced.values())
        self.replaced.clear()
        self.exe.release(replaced)

    def check_no_overlap(self, addresses: Sequence[int]) -> None:
        """Refuse buffers at these addresses that share an element."""
        spans = [
            (address + low, address + high)
            for address, (low, high) in zip(addresses, self._extents, strict=True)
        ]
        spans.sort()
        if any(one[1] > other[0] for one, other in pairwise(spans)):
            check_no_overlap(self.buffers, dict(zip(self.buffers, addresses, strict=True)))


class BoundBuffer:
    """A buffer of a bound graph: its words, and how to set the nodes that hold them."""

    def __init__(
        self,
        number: int,
        buffer: Buffer,
        words: list[tuple[memoryview, int]],
        commits: dict[int, Callable[[], Any]],
    ) -> None:
        self.number = number
        self.buffer = buffer
        self.commits = commits
        self.check: Callable[[Any], Any] = buffer.check
        span = buffer.high - buffer.low
        self.replaced_limit = min(_REPLACED_LIMIT, _REPLACED_BYTES // span)
        self._words = words

    def held(self, state: BoundState) -> Any:
        """Return the address that is bound."""
        return state.addresses[self.number]

    def write(self, address: Any) -> None:
        """Write the address into every word."""
        for cell, distance in self._words:
            cell[0] = address + distance

    def take(self, state: BoundState, address: Any, owner: object) -> None:
        """Note what has been set, and whose it is."""
        number, buffer = self.number, self.buffer
        state.addresses[number] = address
        state.spans[number] = (address + buffer.low, address + buffer.high)
        replaced = state.owners[number]
        if replaced is not owner:
            state.replaced[id(replaced)] = replaced
            state.owners[number] = owner
            if len(state.replaced) > self.replaced_limit:
                state.let_go()

    def setter(self, state: BoundState) -> Callable[[Any], None]:
        """Return what binds one array to this buffer alone: the hot path.

        Everything is at hand in it, and the checks of arrays of ours are written out.
        """
        check, number, write = self.check, self.number, self.write
        low, high = self.buffer.low, self.buffer.high
        addresses, spans = state.addresses, state.spans
        owners, replaced, limit = state.owners, state.replaced, self.replaced_limit
        commits = tuple(self.commits.values())
        # With one buffer there is none to overlap; with one word there is nothing to go through.
        alone = len(spans) == 1
        single = len(self._words) == 1
        cell, distance = self._words[0]
        commit = commits[0]
        # Mostly a node has one word: then each is written and set in turn.
        pairs = (
            [(*word, each) for word, each in zip(self._words, commits, strict=True)]
            if len(self._words) == len(commits)
            else []
        )
        info, runtime, name = self.buffer.info, self.buffer.runtime, self.buffer.name
        shape, strides, dtype = info.shape, info.strides, info.dtype
        mask = self.buffer.alignment - 1
        layouts = self.buffer.layouts

        def set_buffer(value: Any) -> None:
            kind = type(value)
            address: int
            if kind is DeviceArray:
                address = value.memory.value
                if (
                    address
                    and value.shape == shape
                    and value.strides == strides
                    and value.dtype is dtype
                    and value.runtime is runtime
                ):
                    address += value.offset
                    if address & mask:
                        check(value)  # refuses it
                else:
                    address = check(value)
            elif kind in layouts:
                address, layout = FINGERPRINTS[kind](value, name)
                if layout != layouts[kind] or not address or address & mask:
                    address = check(value)
            else:
                address = check(value)
            old = addresses[number]
            if address != old:
                if not alone:
                    start, end = address + low, address + high
                    for one, other in spans:
                        if one < end and start < other:
                            # Perhaps only the old place of this buffer, or an interleaved view.
                            state.check_no_overlap(
                                [*addresses[:number], address, *addresses[number + 1 :]]
                            )
                            break
                try:
                    if single:
                        cell[0] = address + distance
                        commit()
                    elif pairs:
                        for word, apart, each in pairs:
                            word[0] = address + apart
                            each()
                    else:
                        write(address)
                        for each in commits:
                            each()
                except BaseException as error:
                    restore(error, [(write, old)], commits)
                    raise
                addresses[number] = address
                if not alone:
                    spans[number] = (start, end)
            owner = owners[number]
            if owner is not value:
                replaced[id(owner)] = owner
                owners[number] = value
                if len(replaced) > limit:
                    state.let_go()

        return set_buffer


class NotRestoredError(RebindError):
    """A change failed half way, and so did undoing it."""


def restore(
    error: BaseException,
    writes: Sequence[tuple[Callable[[Any], None], Any]],
    commits: Iterable[Callable[[], Any]],
) -> None:
    """Write and set again what an exec held before a change of it failed."""
    try:
        for write, held in writes:
            write(held)
        for commit in commits:
            commit()
    except Exception as again:
        raise NotRestoredError(
            f"a change failed half way ({error}), and so did undoing it ({again}); the bound graph "
            "is closed, since nobody knows what it would launch"
        ) from error


class BoundScalar:
    """A scalar of a bound graph: the words that are its value."""

    def __init__(
        self,
        name: str,
        value: object,
        words: list[tuple[memoryview, tuple[str, ...]]],
        commits: dict[int, Callable[[], Any]],
    ) -> None:
        self.name = name
        self.commits = commits
        self._words = words
        self._held = self.check(value)

    def check(self, value: object) -> tuple[bytes, ...]:
        """Return the bytes of each word.

        Raises:
            TypeError: when the value is no number, or no integer where a word is one.
            ValueError: when a word cannot hold it, or the captures do not tell how it would.
        """
        if is_array(value) or not hasattr(value, "__float__"):
            raise TypeError(f"{self.name}: expected a number, came {type(value).__name__}")
        return tuple(self._bytes(value, types) for _, types in self._words)

    def _bytes(self, value: object, types: tuple[str, ...]) -> bytes:
        if not hasattr(value, "__index__") and not any(code[1] in "fd" for code in types):
            raise TypeError(f"{self.name}: expected an integer, came {value!r}")
        # A 4-byte number with zeros behind it looks like an 8-byte one: what is written must be
        # right as either, or it is not written.
        by_width: dict[int, set[bytes]] = {}
        widest = max(map(struct.calcsize, types))
        for code in types:
            raw = encode(code, value)
            found = by_width.setdefault(struct.calcsize(code), set())
            if raw is not None:
                found.add(raw.ljust(widest, b"\0"))
        if not all(by_width.values()) or len(set().union(*by_width.values())) != 1:
            names = " and ".join(TYPE_NAMES[code] for code in types)
            raise ValueError(
                f"{self.name}: expected a number that is the same as {names}, which are what the "
                f"captures leave open, came {value!r}"
            )
        return next(iter(by_width[widest]))

    def held(self, _state: BoundState) -> Any:
        """Return the bytes that are bound."""
        return self._held

    def write(self, raws: Any) -> None:
        """Write the bytes into every word."""
        for (cell, _), raw in zip(self._words, raws, strict=True):
            cell[:] = raw

    def take(self, _state: BoundState, raws: Any, _value: object) -> None:
        """Note what has been set."""
        self._held = raws
