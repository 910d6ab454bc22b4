"""An exec of a pool: it holds one bucket's graph at a time, with the addresses of one request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from graphkit.graph_exec import GraphExec
from graphkit.node import Node
from graphkit.pool_graph import Binding, PoolGraph
from graphkit.readback import read_kernel_block
from graphkit.retarget import ExecTarget
from graphkit.runtime.protocol import KernelNodeParams
from graphkit.update_report import UpdateReport

__all__ = ["PoolExec"]

_WORD = 8  # bytes of an address


class _ExecNode:
    """A moving node of an exec: its arguments, and the call that sets the node to them.

    Attributes:
        words: the arguments as 8-byte words, some of which are addresses.
        commit: set the node to the arguments (cuGraphExecKernelNodeSetParams).
    """

    __slots__ = ("_block", "_exec", "_node", "_setters", "_view", "commit", "words")

    def __init__(self, exec_: GraphExec, node: Node) -> None:
        self._exec = exec_
        self._node = node
        self._block = read_kernel_block(node)[1]
        self._view = self._block.view
        whole = len(self._view) // _WORD * _WORD
        self.words = self._view[:whole].cast("Q")
        self._setters: dict[KernelNodeParams, Callable[[], Any]] = {}
        self.commit: Callable[[], Any]

    def bind(self, params: KernelNodeParams, arguments: bytes) -> None:
        """Take over a bucket's launch configuration and arguments for another request."""
        self._view[:] = arguments
        commit = self._setters.get(params)
        if commit is None:
            block = self._block
            ours = params._replace(kernel_params=block.kernel_params, extra=block.extra)
            commit = self._exec.runtime.kernel_node_setter(self._exec.ptr, self._node.ptr, ours)
            self._setters[params] = commit
        self.commit = commit


class PoolExec:
    """An executable graph that serves all buckets of one topology, one after the other.

    Attributes:
        number: what the policy calls it.
        holds: the bucket whose graph it has now.
        binding: the shape of request it is bound to, None when none of ``holds``.
        addresses: the arrays of that request.
        launch: launch it on the pool's stream.
    """

    def __init__(self, number: int, graph: PoolGraph, stream: object) -> None:
        self.number = number
        self.binding: Binding | None = None
        self.addresses: list[int] = []
        self.exec = graph.graph.instantiate(upload_stream=stream)
        self._target = ExecTarget(self.exec)
        self.launch = self.exec.launcher(stream)
        self.holds = graph
        # CUDA finds an exec's nodes by those of the graph that it was made from.
        nodes = graph.graph.nodes
        self._nodes = [_ExecNode(self.exec, nodes[item.place]) for item in graph.moving]
        graph.exec = self  # last: another thread may look at it from now on

    def bind(self, binding: Binding) -> None:
        """Take over what another shape of request has in the moving nodes; addresses follow."""
        parts = zip(self._nodes, binding.graph.moving, binding.blocks, strict=True)
        for node, moving, arguments in parts:
            node.bind(moving.params, arguments)
        self._moving = [
            (node.words, words, mask, node.commit)
            for node, words, mask in zip(self._nodes, binding.words, binding.masks, strict=True)
        ]
        self.binding = binding
        self.addresses = [0] * binding.count  # no array is there

    def put(self, binding: Binding, addresses: list[int]) -> bool:
        """Set the moving nodes to a request of the bucket that is held, where it differs.

        Returns:
            False when an address is less aligned than the binding takes; the exec must then be put
            to another binding before it is launched.
        """
        if self.binding is not binding:
            self.bind(binding)
        before = self.addresses
        if addresses == before:
            return True
        self.binding = None  # whatever comes in between: half of the nodes may be set
        for words, moving, mask, commit in self._moving:
            moved = False
            for index, word, distance in moving:
                address = addresses[index]
                if address != before[index]:
                    if address & mask:
                        return False
                    words[word] = address + distance
                    moved = True
            if moved:
                commit()
        self.binding, self.addresses = binding, addresses
        return True

    def setters(self, graph: PoolGraph, places: Sequence[int]) -> Sequence[Callable[[], Any]]:
        """Return the calls that move it to another bucket by the nodes that differ."""
        return self._target.setters(graph.values, places)

    def set_nodes(self, graph: PoolGraph, setters: Sequence[Callable[[], Any]]) -> None:
        """Move to another bucket by setting the nodes that differ."""
        self._let_go()
        for commit in setters:
            commit()
        self._hold(graph)

    def update(self, graph: PoolGraph) -> UpdateReport:
        """Move to another bucket by a whole update."""
        held = self._let_go()
        report = self._target.update(graph.graph)
        self._hold(graph if report else held)
        return report

    def forget(self, graph: PoolGraph) -> None:
        """Drop what was kept for moving to a graph that is given up."""
        self._target.forget(graph.values)

    def _let_go(self) -> PoolGraph:
        self.binding = None
        self.holds.exec = None
        return self.holds

    def _hold(self, graph: PoolGraph) -> None:
        self.holds = graph
        graph.exec = self

    def close(self) -> None:
        """Destroy the exec; launches in flight still finish."""
        self._let_go()
        self.exec.close()
