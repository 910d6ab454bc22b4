"""Rebinding: a function captured once, launched on any buffers of the same layout."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NoReturn

from graphkit.arrays import is_array
from graphkit.bound import (
    TYPE_NAMES,
    BoundBuffer,
    BoundScalar,
    BoundState,
    ExecNode,
    NotRestoredError,
    restore,
)
from graphkit.buffers import Buffer, check_no_overlap
from graphkit.compared import Span
from graphkit.counts import counted
from graphkit.differences import BufferWord, ScalarWord, find_words
from graphkit.graph import Graph
from graphkit.graph_exec import GraphExec
from graphkit.lifetime import live_captures
from graphkit.node import Node
from graphkit.recapture import Captured, capture_differently, keep_capture
from graphkit.runtime.protocol import CaptureStatus, NodeType, Runtime
from graphkit.snapshot import NodeState
from graphkit.stream import runtime_of, stream_handle
from graphkit.turn import Turn
from graphkit.user_function import UserFunction

__all__ = ["BoundGraph", "Slot", "bind", "check_arguments", "check_scalars", "disown"]


@dataclass(frozen=True)
class Slot:
    """One word of a captured graph that follows a buffer or a scalar.

    Attributes:
        buffer: name of the buffer or scalar.
        node: the node.
        place: the node's place in the graph's order, a path where it is inside of a child graph.
        kernel: the kernel's name, None for memcpy and memset nodes.
        parameter: name of the kernel's parameter, ``arg<index>`` where the signature is not known,
            ``dst`` or ``src`` of a copy or fill.
        offset: the word's place in the parameter block, in bytes.
        distance: what is added to the buffer's address, in bytes; 0 for a scalar.
        types: as what a scalar is written (codes of :mod:`struct`); empty for a buffer.
    """

    buffer: str
    node: Node
    place: tuple[int, ...]
    kernel: str | None
    parameter: str
    offset: int
    distance: int = 0
    types: tuple[str, ...] = ()

    def __str__(self) -> str:
        place = ".".join(map(str, self.place))
        what = self.node.type.name.lower() if self.kernel is None else self.kernel
        plus = f" {self.distance:+}" if self.distance else ""
        return f"{self.buffer}{plus} -> node {place} ({what}), {self.parameter} at {self.offset}"


class BoundGraph:
    """A function captured once, that launches on any buffers of the same layout.

    Made by :func:`graphkit.bind`. It keeps alive what is bound, and what was bound until the
    launches that may use it are done. Its methods may be called from several threads.

    Attributes:
        graph: the captured graph, to look at. Its nodes hold the first buffers.
        slots: which word of which node follows which buffer or scalar.
        result: what the function returned when it was captured: arrays in it are memory of the
            graph's own, which every launch writes.
    """

    def __init__(
        self,
        fn: UserFunction,
        stream: object,
        captured: Captured,
        exe: GraphExec,
        state: BoundState,
        named: Mapping[str, BoundBuffer | BoundScalar],
        slots: tuple[Slot, ...],
    ) -> None:
        self.graph: Graph = captured.graph
        self.slots = slots
        self.result: Any = captured.result
        self.stream = stream
        self._fn = fn
        self._exe = exe
        self._state = state
        self._named = dict(named)
        self._setters = {
            name: bound.setter(state)
            for name, bound in named.items()
            if isinstance(bound, BoundBuffer)
        }
        self._turn = Turn()
        self._bound: tuple[object, Callable[[], Any]] = stream, exe.launcher(stream)

    def rebind(self, /, **buffers: object) -> None:
        """Bind other buffers, or other values of scalars, for later launches.

        One write a word and one cuGraphExecKernelNodeSetParams (for copies and fills
        cudaGraphExecMemcpyNodeSetParams1D or cudaGraphExecMemsetNodeSetParams) for each node that
        holds a word of what changes; none where the address is the one that is bound. Launches
        before it are not disturbed.

        Args:
            **buffers: arrays of the dtype, shape and strides of the first ones, at least as well
                aligned, and numbers for scalars, by name; what is not named stays.

        Raises:
            TypeError: for an unknown name, another dtype, or memory of the host.
            ValueError: for another shape, strides, device or a lesser alignment, a freed array,
                buffers that overlap, or while the stream captures.
            CudaError: what CUDA refuses. Whatever is raised, the exec launches what it did before.
        """
        turn = self._turn
        try:
            turn.pop()
        except IndexError:
            turn.wait()
        except BaseException:
            turn.append(None)
            raise
        try:
            if live_captures:
                self._refuse_capturing(self._bound[0])
            if len(buffers) == 1:
                name, value = buffers.popitem()
                setter = self._setters.get(name)
                if setter is not None:
                    setter(value)
                    return
                self._rebind({name: value})
            else:
                self._rebind(buffers)
        except NotRestoredError:
            self._close()
            raise
        finally:
            turn.append(None)

    def _rebind(self, values: Mapping[str, object]) -> None:
        """Check everything, then write and set it; the caller has the turn."""
        self._exe.ptr  # noqa: B018 - refuses a closed one
        state, named = self._state, self._named
        changed: list[tuple[BoundBuffer | BoundScalar, Any, Any, object]] = []
        addresses = list(state.addresses)
        for name, value in values.items():
            bound = named.get(name)
            if bound is None:
                self._refuse_name(name)
            new: Any = bound.check(value)
            if isinstance(bound, BoundBuffer):
                addresses[bound.number] = new
            changed.append((bound, bound.held(state), new, value))
        if len(addresses) > 1 and addresses != state.addresses:
            state.check_no_overlap(addresses)
        moved = [(bound, old, new) for bound, old, new, _ in changed if old != new]
        commits: dict[int, Callable[[], Any]] = {}
        for bound, _, _ in moved:
            commits.update(bound.commits)
        try:
            for bound, _, new in moved:
                bound.write(new)
            for commit in commits.values():
                commit()
        except BaseException as error:
            restore(error, [(bound.write, old) for bound, old, _ in moved], commits.values())
            raise
        for bound, _, new, value in changed:
            bound.take(state, new, value)

    def launch(self, stream: object | None = None) -> None:
        """Launch on what is bound (cudaGraphLaunch).

        Args:
            stream: any framework's stream; the one that it was bound on by default.

        Raises:
            ValueError: when the bound graph is closed, or the stream captures.
        """
        if stream is None:
            stream = self.stream
        bound = self._bound
        if bound[0] is not stream:
            bound = self._bound = stream, self._exe.launcher(stream)
        turn = self._turn
        try:
            turn.pop()
        except IndexError:
            turn.wait()
        except BaseException:
            turn.append(None)
            raise
        try:
            if live_captures:
                self._refuse_capturing(stream)
            bound[1]()
        finally:
            turn.append(None)

    def __call__(self, /, **buffers: object) -> Any:
        """Bind what differs, launch on the stream it was bound on, and return :attr:`result`.

        As :meth:`rebind` and :meth:`launch`, with no other thread's call in between.
        """
        bound = self._bound
        if bound[0] is not self.stream:
            bound = self._bound = self.stream, self._exe.launcher(self.stream)
        turn = self._turn
        try:
            turn.pop()
        except IndexError:
            turn.wait()
        except BaseException:
            turn.append(None)
            raise
        try:
            if live_captures:
                self._refuse_capturing(self.stream)
            if len(buffers) == 1:
                name, value = buffers.popitem()
                setter = self._setters.get(name)
                if setter is not None:
                    setter(value)
                else:
                    self._rebind({name: value})
            elif buffers:
                self._rebind(buffers)
            bound[1]()
            return self.result
        except NotRestoredError:
            self._close()
            raise
        finally:
            turn.append(None)

    def _refuse_name(self, name: str) -> NoReturn:
        raise TypeError(f"{name}: expected one of {', '.join(self._named)}, came an unknown name")

    def _refuse_capturing(self, stream: object) -> None:
        handle = stream_handle(stream)
        if self._exe.runtime.stream_is_capturing(handle) is not CaptureStatus.NONE:
            raise ValueError(
                "stream: expected one that does not capture, came one that does; nothing was "
                "changed or launched"
            )

    def close(self) -> None:
        """Destroy exec and graph; launches in flight still finish, on what they were given."""
        with self._turn:
            self._close()

    def _close(self) -> None:
        self._setters.clear()
        self._named.clear()
        self._exe.close()  # it keeps until its launches are done what is let go of here
        self.graph.close()
        self.graph.disown()
        self._state.owners, self._state.replaced = [], {}

    def __enter__(self) -> BoundGraph:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        names = ", ".join(self._named) or "closed"
        nodes = len({slot.place for slot in self.slots})
        return (
            f"<BoundGraph of {self._fn.name} ({names}), {counted(len(self.slots), 'slot')} in "
            f"{counted(nodes, 'node')}>"
        )


def bind(
    fn: Callable[..., Any],
    stream: object,
    *,
    scalars: Mapping[str, Sequence[object]] | None = None,
    **buffers: object,
) -> BoundGraph:
    """Capture a function so that its buffers can be changed from launch to launch.

    The function is captured several times: on the buffers given, on them again, and on other
    memory of the same layout, of which as much is allocated meanwhile. Nothing of it runs. Words
    of the captured nodes that moved as a buffer did are that buffer's, whoever's kernels they
    belong to::

        bound = gk.bind(step, stream, x=x, y=y)
        bound.rebind(x=x2)
        bound.launch()

    What a function does at its first call only, such as compiling kernels or creating handles,
    must have happened: call it once before.

    Args:
        fn: called with the buffers and scalars by name, and with ``stream`` where it has a
            parameter of that name. The stream is current for CuPy and PyTorch.
        stream: the stream to capture and, by default, to launch on.
        scalars: for each host number that shall be changeable, two or more values of it, such as
            ``{"pos": (3, 5)}``. The first is what is bound. The more values, the less can another
            number be taken for it.
        **buffers: the arrays of device memory that the function works on, by name.

    Raises:
        TypeError: when fn does not take these arguments, or a buffer is no array on the device.
        ValueError: for buffers that are empty, freed, overlap or are another device's, and when
            the stream captures already.
        RebindError: when something in the graph follows the buffers in a way that cannot be
            rebound, when a buffer or scalar is never used, or fn launches differently each time.
        CaptureError: when a capture died.
    """
    function = UserFunction(fn)
    runtime = runtime_of(stream)
    given = check_scalars(scalars, buffers)
    if not buffers and not given:
        raise TypeError("buffers: expected at least one buffer or scalar, came none")
    layouts = check_arguments(function, stream, buffers, given)
    first = keep_capture(
        function, stream, {**buffers, **{name: values[0] for name, values in given.items()}}
    )
    try:
        captures, again = capture_differently(function, stream, first, buffers, layouts, given)
        with closing(again):
            buffer_words, scalar_words = find_words(captures, again)
        nodes = captures.first.snapshot.nodes
        words: list[BufferWord | ScalarWord] = [*buffer_words, *scalar_words]
        for word in words:
            _check_settable(runtime, nodes[word.number], word)
        exe = first.graph.instantiate()
    except BaseException:
        first.close()
        raise
    disown(first.graph, captures.first.spans.values())
    first.graph.owners.append((function, first.memory))
    held = {number: ExecNode(exe, nodes[number]) for number in {word.number for word in words}}
    named: dict[str, BoundBuffer | BoundScalar] = {}
    for number, (name, layout) in enumerate(layouts.items()):
        mine = [word for word in buffer_words if word.buffer == name]
        commits = {word.number: held[word.number].commit for word in mine}
        cells = [(held[word.number].cell(word.offset), word.distance) for word in mine]
        named[name] = BoundBuffer(number, layout, cells, commits)
    for name, values in given.items():
        theirs = [word for word in scalar_words if word.scalar == name]
        commits = {word.number: held[word.number].commit for word in theirs}
        places = [
            (
                held[word.number].bytes_at(word.offset, max(map(struct.calcsize, word.codes))),
                word.codes,
            )
            for word in theirs
        ]
        named[name] = BoundScalar(name, values[0], places, commits)
    slots = tuple(_slot(nodes[word.number], word) for word in words)
    state = BoundState(exe, buffers, layouts, held)
    return BoundGraph(function, stream, first, exe, state, named, slots)


def check_scalars(
    scalars: Mapping[str, Sequence[object]] | None,
    buffers: Mapping[str, object],
    *,
    numbers: bool = True,
) -> dict[str, tuple[object, ...]]:
    """Return the values of each scalar; refuse what is no such mapping."""
    if scalars is None:
        return {}
    if not isinstance(scalars, Mapping):
        raise TypeError(f"scalars: expected a dict of values, came {type(scalars).__name__}")
    found = {}
    for name, values in scalars.items():
        if name in buffers:
            raise TypeError(f"{name}: expected a buffer or a scalar, came both")
        if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
            raise TypeError(f"{name}: expected two or more values, came {values!r}")
        if numbers and any(is_array(item) or not hasattr(item, "__float__") for item in values):
            raise TypeError(f"{name}: expected numbers, came {values!r}")
        if len(values) < 2 or any(one == other for one, other in combinations(values, 2)):
            raise ValueError(f"{name}: expected two or more different values, came {values!r}")
        found[name] = tuple(values)
    return found


def check_arguments(
    fn: UserFunction,
    stream: object,
    buffers: Mapping[str, object],
    scalars: Mapping[str, Sequence[object]],
) -> dict[str, Buffer]:
    """Refuse, before anything is captured, what cannot be bound; return the buffers' layouts."""
    if "stream" in buffers or "stream" in scalars:
        raise TypeError("stream: expected another name, since fn is given the stream by it")
    fn.check({**buffers, **scalars})
    runtime = runtime_of(stream)
    if runtime.stream_is_capturing(stream_handle(stream)) is not CaptureStatus.NONE:
        raise ValueError("stream: expected one that does not capture, came one that does")
    layouts = {name: Buffer(name, array, runtime) for name, array in buffers.items()}
    check_no_overlap(layouts, {name: layout.address for name, layout in layouts.items()})
    return layouts


def _slot(state: NodeState, word: BufferWord | ScalarWord) -> Slot:
    where = (state.node, state.place, state.kernel, state.name_at(word.offset), word.offset)
    if isinstance(word, BufferWord):
        return Slot(word.buffer, *where, distance=word.distance)
    return Slot(word.scalar, *where, types=tuple(TYPE_NAMES[code] for code in word.codes))


def _check_settable(runtime: Runtime, state: NodeState, word: BufferWord | ScalarWord) -> None:
    """Refuse a word in a node that CUDA cannot change in an exec."""
    if state.node.type is NodeType.KERNEL:
        return
    if isinstance(word, ScalarWord):
        raise state.error(
            f"follows {word.scalar}, and holds no number that can be set", word.offset
        )
    if state.node.type is NodeType.MEMSET:
        return
    if state.node.type is NodeType.MEMCPY:
        copy = runtime.graph_memcpy_node_get_params(state.node.ptr)
        if copy.height == copy.depth == 1:
            return
        raise state.error(
            f"copies {word.buffer} in more than one dimension, and CUDA changes the addresses of "
            "1-D copies only: copy an array without gaps, or with a kernel",
            word.offset,
        )
    raise state.error(f"follows {word.buffer}, and holds no address that can be set", word.offset)


def disown(graph: Graph, spans: Iterable[Span]) -> None:
    """Let a graph forget the first buffers: what is bound is kept by the bound graph."""
    spans = list(spans)

    def ours(item: object) -> bool:
        if not is_array(item):
            return False
        try:
            layout = Buffer("owner", item, graph.runtime)
        except (TypeError, ValueError):
            return False
        mine = layout.span(layout.address)
        return any(span.low <= mine.low and mine.high <= span.high for span in spans)

    graph.owners[:] = [item for item in graph.owners if not ours(item)]
