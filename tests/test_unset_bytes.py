"""Unset bytes: what the heap and the stack hand out differs from seed to seed."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest

from graphkit.unset_bytes import with_other_unset_bytes

SIZE = 208


def found():
    """Return what fresh memory of the C library's heap holds, but for its first words."""
    allocate, free = ctypes.pythonapi["PyMem_RawMalloc"], ctypes.pythonapi["PyMem_RawFree"]
    allocate.restype, free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    block = allocate(ctypes.c_size_t(SIZE))
    held = ctypes.string_at(block, SIZE)[32:]
    free(block)
    return held


def test_the_heap_holds_something_else_each_time():
    assert len({with_other_unset_bytes(found, seed) for seed in range(1, 6)}) == 5


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux where the stack is")
def test_the_stack_holds_something_else_each_time():
    def below():
        for line in Path("/proc/self/maps").read_text(encoding="ascii").splitlines():
            if "[stack]" in line:
                low, _, high = line.split()[0].partition("-")
                low, high = int(low, 16), int(high, 16)
        return ctypes.string_at(low, high - low)

    one, other = (with_other_unset_bytes(below, seed) for seed in (4, 8))
    size = min(len(one), len(other))
    changed = sum(a != b for a, b in zip(one[-size:], other[-size:], strict=True))
    assert changed > 1 << 15


def test_results_and_errors_come_out():
    assert with_other_unset_bytes(lambda: 7, 3) == 7
    with pytest.raises(KeyError, match="mine"):
        with_other_unset_bytes(lambda: {}["mine"], 3)
