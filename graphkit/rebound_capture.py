"""Captures a bucket's launches on some of a request's arrays, and finds out where they are held."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import NamedTuple

from graphkit.differences import BufferWord, find_words
from graphkit.forensics import capture_call
from graphkit.frameworks import PrivateMemory
from graphkit.graph import Graph
from graphkit.pool_graph import ReboundNode
from graphkit.rebind import check_arguments, disown
from graphkit.recapture import Captured, capture_differently
from graphkit.returned import Returned
from graphkit.runtime.protocol import NodeType
from graphkit.snapshot import NodeState
from graphkit.user_function import UserFunction

__all__ = ["ReboundCapture", "capture_rebound"]

_WORD = 8  # bytes of an address


class ReboundCapture(NamedTuple):
    """A graph that reads arrays where they are: its nodes can be set to others like them.

    Attributes:
        graph: the captured graph.
        returned: what was returned meanwhile.
        nodes: those that hold the arrays' addresses.
    """

    graph: Graph
    returned: Returned
    nodes: tuple[ReboundNode, ...]

    def touched(self, name: str) -> int:
        """Return how many nodes hold the address of an array."""
        return sum(any(name == word[0] for word in node.words) for node in self.nodes)


def capture_rebound(
    launches: Callable[..., Returned],
    stream: object,
    memory: PrivateMemory,
    arrays: Mapping[str, object],
) -> ReboundCapture:
    """Capture what a call launches on some arrays, and which words follow them.

    It is captured several times, as by :func:`graphkit.bind`; as much memory as the arrays have is
    allocated meanwhile.

    Args:
        launches: called with the arrays by name.
        stream: the stream to capture on.
        memory: where what is allocated under the capture that is kept comes from.
        arrays: the arrays.

    Raises:
        RebindError: when the graph cannot be rebound, or by other nodes than kernel nodes only.
        TypeError, ValueError: for arrays that cannot be bound, such as two that overlap.
        CaptureError: when a capture died.
        Exception: whatever the call raised.
    """
    function = UserFunction(launches)
    layouts = check_arguments(function, stream, arrays, {})
    with memory.allocating():
        graph, returned = capture_call(partial(function, arrays, stream), stream)
    try:
        first = Captured(graph, returned, memory)
        captures, again = capture_differently(function, stream, first, arrays, layouts, {})
        with closing(again):
            words, _ = find_words(captures, again)
        nodes = _nodes(captures.first.snapshot.nodes, words)
    except BaseException:
        graph.close()
        raise
    disown(graph, captures.first.spans.values())
    return ReboundCapture(graph, returned, nodes)


def _nodes(states: Sequence[NodeState], words: Sequence[BufferWord]) -> tuple[ReboundNode, ...]:
    by_node: dict[int, list[tuple[str, int, int]]] = defaultdict(list)
    for word in words:
        state = states[word.number]
        if state.node.type is not NodeType.KERNEL or len(state.place) > 1 or word.offset % _WORD:
            raise state.error(
                f"follows {word.buffer}; an exec pool rebinds whole words of kernel nodes that are "
                "in no child graph",
                word.offset,
            )
        by_node[word.number].append((word.buffer, word.offset // _WORD, word.distance))
    return tuple(
        ReboundNode(states[number].place[0], states[number].data, tuple(found))
        for number, found in sorted(by_node.items())
    )
