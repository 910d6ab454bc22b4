"""Let what nobody sets differ from call to call: the padding of a struct follows nothing.

C++ hands structs to kernels of which it never wrote some bytes: padding, unused elements of an
array. What they hold is what the stack or the heap held before, so it may well be the same whenever
the same code runs, and another as soon as an object lies elsewhere. Here it is made another.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import Any

__all__ = ["with_other_unset_bytes"]

# As far below the caller's frame as libraries go until they launch.
_STACK_BYTES = 1 << 16
# Blocks of each size that are filled: the allocators hand out first what was freed last.
_BLOCKS = 8
_BLOCK_SIZES = range(16, 1040, 16)
_MOST_FRAMES = 4


class _OnStack(ctypes.Structure):
    """Passed by value, which copies it to the stack."""

    _fields_ = (("raw", ctypes.c_ubyte * _STACK_BYTES),)


def _python_function(name: str, result: Any, *arguments: Any) -> Any:
    # Looked up by [] it is an object of its own, whose types are nobody else's.
    function = ctypes.pythonapi[name]
    function.restype, function.argtypes = result, arguments
    return function


_ignore = _python_function("Py_IsInitialized", ctypes.c_int, _OnStack)
# What extensions in C++ get from malloc, and what objects of Python's are made of.
_ALLOCATORS = [
    (
        _python_function(f"PyMem_{kind}Malloc", ctypes.c_void_p, ctypes.c_size_t),
        _python_function(f"PyMem_{kind}Free", None, ctypes.c_void_p),
    )
    for kind in ("Raw", "")
]


def with_other_unset_bytes(call: Callable[[], Any], seed: int) -> Any:
    """Call a function on a stack and with a heap full of bytes that the seed decides on.

    Args:
        call: the function.
        seed: another one, other bytes, other addresses of what it allocates, another depth of the
            stack.

    Returns:
        What it returns.
    """
    random = Random(seed)
    with _filled_heap(random):
        _ignore(_OnStack.from_buffer_copy(random.randbytes(_STACK_BYTES)))
        return _deeper(call, seed % _MOST_FRAMES)


def _deeper(call: Callable[[], Any], frames: int) -> Any:
    """Call a function further down the stack: functions of Python's alone take none of it."""
    return partial(_deeper, call, frames - 1)() if frames else call()


@contextmanager
def _filled_heap(random: Random) -> Iterator[None]:
    """Leave blocks full of noise to whoever allocates next, and keep some from them."""
    kept: list[tuple[Any, int]] = []
    try:
        for allocate, free in _ALLOCATORS:
            for size in _BLOCK_SIZES:
                blocks = [block for _ in range(_BLOCKS) if (block := allocate(size))]
                for block in blocks:
                    ctypes.memmove(block, random.randbytes(size), size)
                held = random.randrange(_BLOCKS)
                kept += [(free, block) for block in blocks[:held]]
                for block in blocks[held:]:
                    free(block)
        yield
    finally:
        for free, block in kept:
            free(block)
