"""Staging memory for one argument of a pool's function, shared by all buckets."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np

from graphkit.device_array import DeviceArray
from graphkit.lifetime import Handle
from graphkit.runtime.protocol import Runtime

__all__ = ["Arena"]


class Arena:
    """Device memory that one argument is staged in, whatever bucket a request falls into.

    Launches on one stream follow each other, so that one piece of memory serves all. Graphs hold
    its address: when a larger argument comes, new memory is taken, and the old one lives on with
    the graphs that know it.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._memory: DeviceArray | None = None
        self._held: WeakKeyDictionary[Handle, int] = WeakKeyDictionary()

    @property
    def nbytes(self) -> int:
        """Bytes of the memory, also of what only older graphs use."""
        return sum(self._held.values())

    def growth(self, nbytes: int) -> int:
        """Return how many bytes :meth:`reserve` would allocate."""
        return 0 if self._memory is not None and nbytes <= self._memory.nbytes else nbytes

    def reserve(self, nbytes: int) -> DeviceArray:
        """Return memory of at least ``nbytes`` (cudaMalloc where it must grow)."""
        if self._memory is None or nbytes > self._memory.nbytes:
            self._memory = DeviceArray(nbytes, np.uint8, runtime=self._runtime)
            self._held[self._memory.memory] = nbytes
        return self._memory
