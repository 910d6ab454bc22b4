"""What executable graphs take of a device's memory, as its free memory shows it."""

from __future__ import annotations

from math import ceil, gcd

__all__ = ["ExecMemory"]

# Growth in steps of so many bytes or more is CUDA taking memory in pieces.
_LEAST_PIECE = 64 << 10


class ExecMemory:
    """Learns from the free memory how much more of it execs will take.

    CUDA takes memory for execs in pieces of megabytes and may keep what closed ones leave. So an
    exec shows as nothing or as a whole piece, and what was taken stays taken until the free memory
    says otherwise. As many execs and nodes as were there fit again; beyond those, a piece more is
    to be expected: on an H200 an exec of 10 nodes takes 112 KB, and one of 1,000 takes 2.4 MB.

    Attributes:
        taken: bytes that execs have taken of the device and not given back.
        nodes: nodes of the execs that are there.
        node_bytes: bytes that a node was measured to take, at most; 0 before the first.
        gives_back: whether closing an exec frees memory; None as long as nobody saw.
    """

    def __init__(self) -> None:
        self.taken = 0
        self.nodes = 0
        self.node_bytes = 0.0
        self._execs = 0
        # The most nodes, and the most execs, that were there at a time in what is taken now.
        self._proven, self._proven_execs = 0, 0
        self._piece = 0  # what every growth so far was a multiple of
        self.gives_back: bool | None = None

    def made(self, nodes: int, nbytes: int) -> None:
        """Note an exec of so many nodes, and by how much free memory shrank meanwhile."""
        self.nodes += nodes
        self._execs += 1
        self._proven = max(self._proven, self.nodes)
        self._proven_execs = max(self._proven_execs, self._execs)
        if nbytes > 0:
            self.taken += nbytes
            self._piece = gcd(self._piece, nbytes)
        if self._proven == self.nodes:
            self.node_bytes = self.taken / max(self.nodes, 1)

    def closed(self, nodes: int, nbytes: int) -> None:
        """Note that an exec is gone, and by how much free memory grew meanwhile."""
        if nbytes > 0:
            self.gives_back = True
            self.taken = max(self.taken - nbytes, 0)
            self._proven, self._proven_execs = self.nodes - nodes, self._execs - 1
        elif self.share(nodes) >= max(self._piece, _LEAST_PIECE):
            self.gives_back = False
        self.nodes -= nodes
        self._execs -= 1

    def refused(self) -> None:
        """Note that what was closed last had been too much: only what is left fits again."""
        self._proven, self._proven_execs = self.nodes, self._execs

    def change(self, nodes: int, fewer: int = 0, fewer_execs: int = 0) -> int:
        """Return by how many bytes more, or less, the device's memory is expected to be taken.

        Args:
            nodes: of the exec that is to be made, 0 for none.
            fewer: nodes of execs that are closed before.
            fewer_execs: how many those are.

        Before anything was measured that is 0: the first exec is made, and closed if it turns out
        to be too much. A guess could refuse it for ever.
        """
        if self.gives_back:
            return self._in_pieces((nodes - fewer) * self.node_bytes)
        if not nodes:  # worth a try where nobody knows
            return 0 if self.gives_back is False else -self.share(fewer)
        beyond = max(self.nodes - fewer + nodes - self._proven, 0) * self.node_bytes
        if self._execs - fewer_execs >= self._proven_execs and self._piece >= _LEAST_PIECE:
            beyond = max(beyond, 1)
        return self._in_pieces(beyond)

    def _in_pieces(self, nbytes: float) -> int:
        if nbytes <= 0 or self._piece < _LEAST_PIECE:
            return ceil(nbytes)
        return ceil(nbytes / self._piece) * self._piece

    def share(self, nodes: int) -> int:
        """Return the part of the bytes taken that execs of so many nodes answer for."""
        return self.taken * nodes // max(self.nodes, 1)
