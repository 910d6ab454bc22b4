"""Device and pinned memory: host memory with a table of who owns which bytes."""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections import deque
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from graphkit.errors import SimulationError
from graphkit.runtime.protocol import MemoryType
from graphkit.runtime.sim.refusal import Code, Refused

__all__ = ["Allocation", "MemoryTable", "host_bytes"]

_ALIGNMENT = 512
_POISON = 0xFF


def host_bytes(address: int, nbytes: int) -> NDArray[np.uint8]:
    """View host memory that no table knows: it must be alive, as for any C function."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


class Allocation:
    """One block of simulated device memory or of pinned host memory."""

    __slots__ = ("address", "bytes", "freed", "freeing", "nbytes", "of_graph", "storage", "type")

    def __init__(self, nbytes: int, kind: MemoryType) -> None:
        self.storage: NDArray[np.uint8] = np.empty(nbytes + _ALIGNMENT, dtype=np.uint8)
        skip = -self.storage.ctypes.data % _ALIGNMENT
        self.bytes: NDArray[np.uint8] = self.storage[skip : skip + nbytes]
        self.address = int(self.bytes.ctypes.data)
        self.nbytes = nbytes
        self.type = kind
        self.freed = False
        self.freeing = False  # cudaFreeAsync was called and has not run yet
        self.of_graph = False  # an alloc node's: freed and allocated again by every launch

    def describe(self) -> str:
        """Say what this is, for an error message."""
        if self.of_graph:
            state = ", which is not allocated now" if self.freed else ""
            return f"graph allocation of {self.nbytes} bytes at 0x{self.address:x}{state}"
        kind = "device" if self.type is MemoryType.DEVICE else "pinned host"
        state = "freed " if self.freed else ""
        return f"{state}{kind} allocation of {self.nbytes} bytes at 0x{self.address:x}"


class MemoryTable:
    """Every allocation by address, with the freed ones that are still in quarantine."""

    def __init__(
        self, total: int, uninitialized: Literal["nan", "zero", "keep"], quarantine: int
    ) -> None:
        self.total = total
        self.used = 0
        self._uninitialized = uninitialized
        self._quarantine_limit = quarantine
        self._quarantine: deque[Allocation] = deque()
        self._quarantined = 0
        self._addresses: list[int] = []
        self._by_address: dict[int, Allocation] = {}

    # --- allocating and freeing

    def allocate(self, nbytes: int, kind: MemoryType) -> Allocation:
        """Allocate ``nbytes`` (at least 1) of device or pinned memory.

        Raises:
            Refused: 2 when simulated device memory, or the host's own, has run out.
        """
        if kind is MemoryType.DEVICE:
            self._check_room(nbytes)
        try:
            allocation = Allocation(nbytes, kind)
        except (MemoryError, ValueError):  # the latter for what no address space holds
            raise Refused(
                Code.MEMORY_ALLOCATION, f"the host has no {nbytes} bytes to simulate with"
            ) from None
        self._fill(allocation)
        if kind is MemoryType.DEVICE:
            self.used += nbytes
        self._enter(allocation)
        return allocation

    def _enter(self, allocation: Allocation) -> None:
        index = bisect_right(self._addresses, allocation.address)
        self._addresses.insert(index, allocation.address)
        self._by_address[allocation.address] = allocation

    # --- what alloc nodes allocate: an address for good, memory behind it from time to time

    def reserve(self, nbytes: int) -> Allocation:
        """Return an address range with no memory behind it yet."""
        try:
            allocation = Allocation(nbytes, MemoryType.DEVICE)
        except (MemoryError, ValueError):  # the latter for what no address space holds
            raise Refused(
                Code.MEMORY_ALLOCATION, f"the host has no {nbytes} bytes to simulate with"
            ) from None
        allocation.of_graph = allocation.freed = True
        self._enter(allocation)
        return allocation

    def map(self, allocation: Allocation) -> None:
        """Put fresh memory behind a reserved address range."""
        allocation.freed = False
        self._fill(allocation)

    def unmap(self, allocation: Allocation) -> None:
        """Take the memory behind a reserved address range away."""
        allocation.freed = True
        self._fill(allocation)

    def forget(self, allocation: Allocation) -> None:
        """Give up an address range, into quarantine."""
        allocation.freed, allocation.of_graph = True, False
        self._retire(allocation)

    def take(self, nbytes: int) -> None:
        """Count device memory that has no address, such as what an executable graph takes.

        Raises:
            Refused: 2 when simulated device memory has run out.
        """
        self._check_room(nbytes)
        self.used += nbytes

    def give_back(self, nbytes: int) -> None:
        """End what :meth:`take` counted."""
        self.used -= nbytes

    def _check_room(self, nbytes: int) -> None:
        if self.used + nbytes > self.total:
            raise Refused(
                Code.MEMORY_ALLOCATION,
                f"{nbytes} bytes asked for, {self.total - self.used} of {self.total} free",
            )

    def exact(self, address: int, kind: MemoryType) -> Allocation:
        """Return the live allocation that starts at ``address``.

        Raises:
            Refused: 1 when there is none of that kind.
        """
        allocation = self._by_address.get(address)
        if (
            allocation is None
            or allocation.type is not kind
            or allocation.freed
            or allocation.freeing
            or allocation.of_graph
        ):
            raise Refused(
                Code.INVALID_VALUE,
                f"0x{address:x} is not the start of a live allocation: {self.describe(address)}",
            )
        return allocation

    def free(self, allocation: Allocation) -> None:
        """Free an allocation; its bytes stay in quarantine, poisoned, as long as there is room."""
        allocation.freed = True
        self._fill(allocation)
        if allocation.type is MemoryType.DEVICE:
            self.used -= allocation.nbytes
        self._retire(allocation)

    def _retire(self, allocation: Allocation) -> None:
        self._quarantine.append(allocation)
        self._quarantined += allocation.nbytes
        while self._quarantined > self._quarantine_limit:
            oldest = self._quarantine.popleft()
            self._quarantined -= oldest.nbytes
            self._addresses.pop(bisect_right(self._addresses, oldest.address) - 1)
            del self._by_address[oldest.address]

    def live(self, kind: MemoryType) -> int:
        """Count the live allocations of one kind."""
        return sum(a.type is kind and not a.freed for a in self._by_address.values())

    def _fill(self, allocation: Allocation) -> None:
        if self._uninitialized == "nan":
            allocation.bytes.fill(_POISON)
        elif self._uninitialized == "zero" and not allocation.freed:
            allocation.bytes.fill(0)

    # --- looking up

    def find(self, address: int) -> Allocation | None:
        """Return the allocation, live or in quarantine, that holds ``address``."""
        index = bisect_right(self._addresses, address) - 1
        if index < 0:
            return None
        allocation = self._by_address[self._addresses[index]]
        return allocation if address < allocation.address + allocation.nbytes else None

    def live_at(self, address: int) -> Allocation | None:
        """Return the live allocation that holds ``address``, or the alloc node's that will be."""
        allocation = self.find(address)
        if allocation is None or (allocation.freed and not allocation.of_graph):
            return None
        return allocation

    def describe(self, address: int) -> str:
        """Say what ``address`` is, for an error message."""
        allocation = self.find(address)
        if allocation is not None:
            offset = address - allocation.address
            return f"byte {offset} of the {allocation.describe()}"
        index = bisect_right(self._addresses, address) - 1
        if index >= 0:
            below = self._by_address[self._addresses[index]]
            past = address - below.address - below.nbytes
            if past < 4096:
                return f"{past} bytes past the end of the {below.describe()}"
        return "no allocation of the simulator; ordinary host memory or a stray address"

    def device_view(self, address: int, nbytes: int, who: str) -> NDArray[np.uint8]:
        """View memory that device code may touch.

        Raises:
            SimulationError: freed, unknown, pageable host memory, or out of bounds.
        """
        allocation = self.find(address)
        if allocation is None or allocation.freed:
            raise SimulationError(
                f"{who} touches {nbytes} bytes at 0x{address:x}: {self.describe(address)}"
            )
        offset = address - allocation.address
        if offset + nbytes > allocation.nbytes:
            over = offset + nbytes - allocation.nbytes
            raise SimulationError(
                f"{who} touches {nbytes} bytes at 0x{address:x}, which is byte {offset} of the "
                f"{allocation.describe()}: {over} bytes too many"
            )
        return allocation.bytes[offset : offset + nbytes]

    def any_view(self, address: int, nbytes: int, who: str) -> NDArray[np.uint8]:
        """View memory that a copy may touch: as :meth:`device_view`, or pageable host memory."""
        if self.find(address) is None:
            return host_bytes(address, nbytes)
        return self.device_view(address, nbytes, who)
