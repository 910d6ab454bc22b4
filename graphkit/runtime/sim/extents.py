"""Which bytes a copy or a fill spans, and which of them CUDA refuses before it runs."""

from __future__ import annotations

from graphkit.runtime.protocol import MemcpyKind, MemcpyNodeParams, MemsetNodeParams
from graphkit.runtime.sim.memory import MemoryTable
from graphkit.runtime.sim.refusal import Code, Refused

__all__ = ["check_copy", "check_fill"]

# Whether (dst, src) must be memory that the device reaches. The other side may be anything: with
# unified addressing, CUDA copies between two device addresses under any kind.
_ON_DEVICE = {
    MemcpyKind.HOST_TO_HOST: (False, False),
    MemcpyKind.HOST_TO_DEVICE: (True, False),
    MemcpyKind.DEVICE_TO_HOST: (False, True),
    MemcpyKind.DEVICE_TO_DEVICE: (True, True),
    MemcpyKind.DEFAULT: (False, False),
}


def check_copy(memory: MemoryTable, params: MemcpyNodeParams) -> None:
    """Refuse a copy (1) whose addresses do not fit its kind, are freed, or end too early."""
    sides = ((params.dst, params.dst_span), (params.src, params.src_span))
    for (address, nbytes), device in zip(sides, _ON_DEVICE[params.kind], strict=True):
        _check(memory, address, nbytes, f"a copy of kind {params.kind.name}", device)


def check_fill(memory: MemoryTable, params: MemsetNodeParams) -> None:
    """Refuse a fill (1) of memory that the device does not reach, is freed, or ends too early."""
    _check(memory, params.dst, params.span, "a memset", True)


def _check(memory: MemoryTable, address: int, nbytes: int, what: str, device: bool) -> None:
    found = memory.find(address)
    if found is None:
        wrong = device or not address
    else:
        # What an alloc node allocates need not be there before the graph runs.
        gone = found.freed and not found.of_graph
        wrong = gone or address + nbytes > found.address + found.nbytes
    if wrong:
        raise Refused(
            Code.INVALID_VALUE,
            f"{nbytes} bytes at {address:#x} in {what}: {memory.describe(address)}",
        )
