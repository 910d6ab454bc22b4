"""Named groups of nodes: variants of one graph that an exec switches on and off."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from graphkit.node import Node
from graphkit.runtime.protocol import CaptureStatus, NodeType

if TYPE_CHECKING:
    from graphkit.graph import Graph

__all__ = ["EnabledNodes", "NodeGroup", "NodeGroups"]

#: What cudaGraphNodeSetEnabled takes.
SWITCHABLE = (NodeType.KERNEL, NodeType.MEMCPY, NodeType.MEMSET)


class NodeGroup:
    """Nodes of one graph under a name, made by :meth:`graphkit.Graph.group`.

    A ``with`` block puts every node in that is added in it, by hand or by the capture::

        with graph.group("adapter"):
            graph.add_kernel_node(low_rank, grid, block, (x, y), deps=node)

    Attributes:
        name: the group's name.
    """

    def __init__(self, graph: Graph, name: str) -> None:
        self._graph = graph
        self.name = name
        self._before: list[set[int]] = []

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes that are in the group by now."""
        return tuple(self._graph.groups.members.get(self.name, ()))

    def __enter__(self) -> NodeGroup:
        before = set(_handles(self._graph))
        self._before.append(before)
        self._graph.groups.blocks.append(before)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._before:
            raise ValueError(
                f"group {self.name!r}: expected one inside of its with block, came one outside"
            )
        before = self._before.pop()
        groups = self._graph.groups
        groups.blocks = [other for other in groups.blocks if other is not before]
        if exc is None:
            added = [ptr for ptr in _handles(self._graph) if ptr not in before]
            groups.add(self.name, [self._graph.node_of(ptr) for ptr in added])

    def __repr__(self) -> str:
        return f"<NodeGroup {self.name!r} of {len(self.nodes)} nodes>"


def _handles(graph: Graph) -> list[int]:
    """Return the nodes of a graph, also while a capture still fills it."""
    runtime = graph.runtime
    if graph.captured_on is None:
        return runtime.graph_get_nodes(graph.ptr)
    info = runtime.stream_get_capture_info(graph.captured_on)
    if info.status is not CaptureStatus.ACTIVE:
        return []  # it died, and says so itself when it ends
    return runtime.graph_get_nodes(info.graph)


def check_name(name: object) -> str:
    """Return the name of a group."""
    if not isinstance(name, str):
        raise TypeError(f"name: expected a str, came {type(name).__name__}")
    if not name:
        raise ValueError("name: expected at least one character, came ''")
    return name


def check_state(enabled: object, argument: str) -> bool:
    """Return whether a node is to be on; refuse what is neither True nor False."""
    if not isinstance(enabled, (bool, np.bool_)):
        raise TypeError(f"{argument}: expected True or False, came {enabled!r}")
    return bool(enabled)


class NodeGroups:
    """The groups of one graph.

    Attributes:
        members: the nodes of each group, in the order in which they came.
        blocks: for each ``with`` block that is open, the nodes from before it that are still there.
    """

    __slots__ = ("blocks", "members")

    def __init__(self) -> None:
        self.members: dict[str, list[Node]] = {}
        self.blocks: list[set[int]] = []

    def add(self, name: str, nodes: Iterable[Node]) -> None:
        """Put nodes into a group; one that is in it already stays once.

        Raises:
            ValueError: when one can never be switched off. None is in the group then.
        """
        added = list(nodes)
        for node in added:
            if node.type not in SWITCHABLE:
                raise ValueError(
                    f"group {name!r}: expected kernel, memcpy and memset nodes, since CUDA "
                    f"switches no others, came {node!r}"
                )
        if added:
            self.members[name] = list(dict.fromkeys((*self.members.get(name, ()), *added)))

    def remove(self, node: Node) -> None:
        """Take a node out of every group."""
        for before in self.blocks:
            before.discard(node.ptr)  # CUDA may give it to a node that is added in the block
        for name, nodes in list(self.members.items()):
            if node in nodes:
                nodes.remove(node)
                if not nodes:
                    del self.members[name]

    def check(self, changes: dict[str, bool]) -> None:
        """Refuse unknown groups, and states that are neither True nor False."""
        for name, on in changes.items():
            if name not in self.members:
                known = ", ".join(sorted(self.members)) or "none"
                raise ValueError(f"{name}: expected a group of the graph ({known}), came {name!r}")
            check_state(on, name)


class EnabledNodes:
    """Which groups and nodes of an exec are off. Not locked: the exec that owns it has the turn.

    Args:
        groups: those of the exec's graph.
    """

    __slots__ = ("_groups", "_nodes_off", "_off")

    def __init__(self, groups: NodeGroups) -> None:
        self._groups = groups
        self._off: set[str] = set()
        self._nodes_off: set[Node] = set()

    @property
    def states(self) -> dict[str, bool]:
        """Whether each group is on."""
        return {name: name not in self._off for name in self._groups.members}

    def note(self, node: Node, enabled: bool) -> None:
        """Note what a node was set to."""
        (self._nodes_off.discard if enabled else self._nodes_off.add)(node)

    def forget(self, gone: Callable[[Node], bool]) -> None:
        """Drop what is known of nodes that the graph destroys."""
        self._nodes_off = {node for node in self._nodes_off if not gone(node)}

    def change(self, changes: dict[str, bool], set_node: Callable[[Node, bool], None]) -> None:
        """Switch groups; ``set_node`` is called for nodes whose state differs, and no other.

        When it raises, what was switched is switched back.
        """
        self._groups.check(changes)
        off = {name for name, on in changes.items() if not on}
        off |= self._off - changes.keys()
        members = self._groups.members
        kept_off = {node for name in off for node in members.get(name, ())}
        touched = dict.fromkeys(node for name in changes for node in members[name])
        done: list[Node] = []
        try:
            for node in touched:
                on = node not in kept_off
                if on is (node in self._nodes_off):
                    set_node(node, on)
                    self.note(node, on)
                    done.append(node)
        except BaseException:
            for node in done:
                on = node in self._nodes_off
                set_node(node, on)
                self.note(node, on)
            raise
        self._off = off
