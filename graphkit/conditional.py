"""Conditional nodes: loops and branches that a device integer decides while the graph runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from graphkit.conditional_handle import ConditionalHandle
from graphkit.errors import CudaError
from graphkit.kernel import Kernel, Launch, Pointer
from graphkit.node import Node
from graphkit.runtime.protocol import CaptureStatus, ConditionalNodeType, NodeType, Runtime
from graphkit.statuses import StatusCode

if TYPE_CHECKING:
    from graphkit.graph import Graph

__all__ = [
    "SET_CONDITIONAL",
    "Conditional",
    "Conditionals",
    "check_body_graph",
    "check_cases",
]

Bodies = TypeVar("Bodies", covariant=True)

_BODY_TYPES = {
    NodeType.KERNEL,
    NodeType.MEMCPY,
    NodeType.MEMSET,
    NodeType.GRAPH,
    NodeType.EMPTY,
    NodeType.CONDITIONAL,
}


def _set_conditional(launch: Launch, handle: np.uint64, flag: Pointer) -> None:
    launch.set_conditional(int(handle), int(flag.view(1, dtype=np.uint32)[0]))


#: One thread that sets a condition to what a device integer holds.
SET_CONDITIONAL = Kernel(
    (files(__package__) / "conditional.cu").read_text(encoding="utf-8"),
    "set_conditional",
    twin=_set_conditional,
)


class Conditional(Generic[Bodies]):
    """A conditional node and its bodies. Graphs make these; there is nothing to construct.

    A ``with`` block around the adding of nodes gives the body, or a tuple of them::

        loop = graph.while_(flag)
        with loop as body:
            body.add_kernel_node(step, grid, block, (x, flag))
        graph.add_memcpy_node(host, x, deps=loop.node)

    The block of a loop over a device integer is needed, since its end appends the kernel that
    looks at the integer again.

    Attributes:
        node: the conditional node, for the ``deps`` of later nodes.
        type: whether it is an if, a while or a switch.
        bodies: the body graphs; of an if the second is its else.
        handle: the condition.
    """

    def __init__(
        self,
        type_: ConditionalNodeType,
        node: Node,
        bodies: tuple[Graph, ...],
        handle: ConditionalHandle,
        flag: object | None,
        given: Bodies,
    ) -> None:
        self.type = type_
        self.node = node
        self.bodies = bodies
        self.handle = handle
        self._given = given
        # What a body must look at again; None is nothing.
        self._flag = flag if type_ is ConditionalNodeType.WHILE else None
        self._entered = False
        self._missing = "its with block was not entered" if self._flag is not None else ""

    def __enter__(self) -> Bodies:
        if self._entered:
            raise ValueError(
                f"{self._name}: expected a fresh one, came one that was entered before"
            )
        self._entered = True
        self._missing = "its with block has not ended"
        return self._given

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None:
            self._missing = f"its with block raised {type(exc).__name__}"
            return
        if self.bodies[0].conditionals.capture_failed():
            self._missing = "the capture around it failed"  # and says so itself when it ends
            return
        # What a failed capture left of a body is not touched any more: CUDA may have taken it.
        if self._flag is not None and not self._body_failed:
            self._append_setter(self.bodies[0])
        self._missing = ""

    def _append_setter(self, body: Graph) -> None:
        """Let the end of the body look at the flag again, behind everything else in it."""
        nodes = body.nodes
        if not nodes:
            self._missing = "its body is empty"
            raise ValueError(f"{self._name}: expected nodes in the body, came none: it never ends")
        followed = {edge.from_node.ptr for edge in body.edges}
        sinks = [node for node in nodes if node.ptr not in followed]
        setter = body.add_kernel_node(SET_CONDITIONAL, 1, 1, (self.handle, self._flag), deps=sinks)
        body.conditionals.setters.add(setter.ptr)
        body.conditionals.ended = True
        self._flag = None

    @property
    def _name(self) -> str:
        return self.type.name.lower()

    @property
    def _body_failed(self) -> bool:
        return any(body.conditionals.failed for body in self.bodies)

    def missing(self) -> str:
        """Say why the node cannot be launched yet; an empty str when it can."""
        if not self._missing and self._body_failed:
            return "a capture into its body failed"
        is_while = self.type is ConditionalNodeType.WHILE
        if not self._missing and is_while and not self.bodies[0].nodes:
            return "its body is empty, and it would never end"
        return self._missing

    def body_name(self, index: int) -> str:
        """Say which body one is: the title of its cluster in :meth:`graphkit.Graph.dot`."""
        match self.type:
            case ConditionalNodeType.IF:
                return ("then", "else")[index]
            case ConditionalNodeType.WHILE:
                return "while"
            case ConditionalNodeType.SWITCH:
                return f"case {index}"

    def __repr__(self) -> str:
        return f"<Conditional {self._name} {self.node.ptr:#x}>"


class Conditionals:
    """The conditional nodes and handles of one graph, as far as graphkit added them.

    Attributes:
        nodes: what was added, by cudaGraphNode_t.
        handles: every handle made for the graph.
        setters: the kernel nodes that set conditions to what flags hold, by cudaGraphNode_t.
        spare: handles of nodes that CUDA refused, for the next ones, each with the kernel that sets
            it where that could not be taken out again.
        in_body: whether the graph is the body of a conditional node, or inside of one.
        ended: whether it is a body that no node may be added to any more.
        captured: of a body inside of what is being captured, the runtime and the stream.
        failed: whether a capture into this body failed, so that nobody knows what is in it.
    """

    __slots__ = ("captured", "ended", "failed", "handles", "in_body", "nodes", "setters", "spare")

    def __init__(self) -> None:
        self.nodes: dict[int, Conditional[object]] = {}
        self.handles: list[ConditionalHandle] = []
        self.setters: set[int] = set()
        self.spare: list[tuple[ConditionalHandle, Node | None]] = []
        self.in_body = False
        self.ended = False
        self.captured: tuple[Runtime, int] | None = None
        self.failed = False

    def capture_failed(self) -> bool:
        """Return whether the capture around a body is dead, and CUDA destroys the body with it."""
        if self.captured is None:
            return False
        runtime, stream = self.captured
        return runtime.stream_is_capturing(stream) is not CaptureStatus.ACTIVE

    def note_capture(self, captured: tuple[Runtime, int] | None) -> None:
        """Tell all bodies inside that a capture around them has begun, or has ended."""
        for body in self.all_bodies():
            body.conditionals.captured = captured

    def bodies(self) -> Iterator[Graph]:
        """Yield the bodies of all nodes."""
        for conditional in self.nodes.values():
            yield from conditional.bodies

    def all_bodies(self) -> Iterator[Graph]:
        """Yield the bodies of all nodes, and those inside of them."""
        for body in self.bodies():
            yield body
            yield from body.conditionals.all_bodies()

    def refuse_add(self) -> None:
        """Refuse to add behind the last node of a loop's body, or to a body that is gone."""
        if self.capture_failed():
            code = int(StatusCode.CAPTURE_INVALIDATED)
            raise CudaError("cuGraphAddNode", code, "the capture around this body has failed")
        if self.ended:
            raise ValueError(
                "graph: expected a body whose with block has not ended, came one that has: behind "
                "its last node the condition is set already"
            )

    def refuse_kind(self, type_: NodeType) -> None:
        """Refuse a kind of node that the body of a conditional node may not have."""
        if self.in_body:
            check_body_type(type_, "graph")

    def refuse_copy(self, argument: str, what: str) -> None:
        """Refuse to copy a graph with conditional nodes, or the body of one."""
        if self.nodes or self.in_body:
            came = "one with a conditional node" if self.nodes else "the body of one"
            raise ValueError(
                f"{argument}: expected a graph without conditional nodes, since CUDA {what} none, "
                f"came {came}"
            )

    def refuse_instantiate(self, live: Sequence[object]) -> None:
        """Refuse what CUDA cannot make executable, or what would not end."""
        if self.in_body:
            raise ValueError(
                "graph: expected a graph of its own, came the body of a conditional node; "
                "instantiate the graph that the node is in"
            )
        if not self.nodes and not self.handles:
            return
        self._refuse_incomplete()
        if live:
            raise ValueError(
                "graph: expected one without an exec, since CUDA lets a graph with conditional "
                f"nodes have one at a time, came one with {live[0]!r}; close that first"
            )

    def _refuse_incomplete(self) -> None:
        if self.spare:
            raise ValueError(
                "graph: expected a conditional node for every handle, came a handle whose node "
                "CUDA refused; add another node over a flag, or build the graph anew"
            )
        for handle in self.handles:
            if handle.node is None:
                raise ValueError(
                    f"graph: expected a conditional node for every handle, came {int(handle):#x} "
                    "without; pass it to while_(), if_() or switch()"
                )
        for conditional in self.nodes.values():
            missing = conditional.missing()
            if missing:
                raise ValueError(
                    f"graph: expected conditional nodes that are complete, came {conditional!r}: "
                    f"{missing}"
                )
        for body in self.bodies():
            body.conditionals._refuse_incomplete()


# --- what is refused -----------------------------------------------------------------------------


def check_cases(n: object) -> int:
    """Return how many bodies a switch has."""
    if not isinstance(n, (int, np.integer)) or isinstance(n, bool):
        raise TypeError(f"n: expected an int, came {type(n).__name__}")
    if not 1 <= n < 2**32:
        raise ValueError(f"n: expected 1 to 2**32 - 1 bodies, came {n}")
    return int(n)


def check_body_type(type_: NodeType, argument: str) -> None:
    """Refuse a kind of node that CUDA forbids in the body of a conditional node."""
    if type_ not in _BODY_TYPES:
        raise ValueError(
            f"{argument}: expected a kernel, memcpy, memset, empty, child graph or conditional "
            "node, since CUDA allows nothing else in the body of a conditional node, came one of "
            f"type {type_.name.lower()}"
        )


def check_body_graph(child: Graph, argument: str) -> None:
    """Refuse a graph with a node, in whatever depth, that no body may have."""
    for node in child.nodes:
        check_body_type(node.type, argument)
        if node.type is NodeType.GRAPH:
            check_body_graph(child.child_graph(node), argument)
