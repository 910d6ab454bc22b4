"""How the kernels that include weight_stream.cuh are compiled and launched."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd

import numpy as np
from numpy.typing import NDArray

import graphkit as gk
from graphkit.kernel import Kernel, Pointer
from graphkit.runtime.protocol import DeviceAttribute

from ..launch import KernelLaunch
from .sources import options

__all__ = ["MOST_VECTORS", "WeightStream", "multiprocessors", "normed"]

THREADS = 256
MOST_VECTORS = 4
_VECTORS = (1, 2, 4)  # that a kernel is compiled for
_UNIT_BYTES = 32 << 10  # of the ring's stages; where two rows are more, those
_MOST_SUMS = 32  # rows of a unit times vectors: a lane each


@dataclass(frozen=True)
class WeightStream:
    """How rows of ``k`` bfloat16 go through the ring of a block, for a few vectors at once.

    Attributes:
        k: elements of a row.
        rows: of a unit, which is two pieces of half as many.
        vectors: 1, 2 or 4, that the kernel is compiled for.
        stages: units in the ring.
    """

    k: int
    rows: int
    vectors: int
    stages: int

    @classmethod
    def of(cls, argument: str, k: int, batch: int, stages: int, piece: int = 4) -> WeightStream:
        """Choose the rows of a unit, and as many stages as fit.

        Args:
            argument: what holds the rows, for an error message.
            k: elements of a row.
            batch: vectors.
            stages: units in the ring, at most.
            piece: how many rows lie together, in a head for example: a piece divides them.

        Raises:
            ValueError: rows that are not whole sixteen bytes, or of which two do not fit the
                shared memory of a block; a batch of more than 4.
        """
        if k % 8:
            raise ValueError(f"{argument}: expected rows of a multiple of 8 elements, came {k}")
        if batch > MOST_VECTORS:
            raise ValueError(f"batch: expected at most {MOST_VECTORS} vectors, came {batch}")
        vectors = next(size for size in _VECTORS if size >= batch)
        half = gcd(piece, 4)
        while half > 1 and (4 * half * k > _UNIT_BYTES or 2 * half * vectors > _MOST_SUMS):
            half //= 2
        most = _attribute(DeviceAttribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
        chosen = cls(k, 2 * half, vectors, stages)
        while chosen.shared_mem > most and chosen.stages > 1:
            chosen = replace(chosen, stages=chosen.stages - 1)
        if chosen.shared_mem > most:
            raise ValueError(
                f"{argument}: expected rows of which two fit the {most} bytes of shared memory "
                f"that a block may have, came rows of {2 * k} bytes"
            )
        return chosen

    @property
    def shared_mem(self) -> int:
        """Dynamic shared memory in bytes: the ring, and ``Shared`` of weight_stream.cuh."""
        warps = THREADS // 32
        floats = 2 * self.vectors * self.rows * warps + self.vectors * warps
        return self.stages * (self.rows * self.k * 2 + 8) + 4 * floats

    @property
    def options(self) -> tuple[str, ...]:
        """The -D options of weight_stream.cuh."""
        return options(
            K=self.k, ROWS=self.rows, BATCH=self.vectors, STAGES=self.stages, THREADS=THREADS
        )

    def launch(self, kernel: Kernel, units: int, args: tuple[object, ...]) -> KernelLaunch:
        """Return the launch with a block a multiprocessor, or a unit where those are fewer."""
        kernel.max_dynamic_shared_size_bytes = self.shared_mem
        blocks = min(units, multiprocessors())
        return KernelLaunch(kernel, (blocks, 1, 1), (THREADS, 1, 1), args, self.shared_mem)


def multiprocessors() -> int:
    """Return how many multiprocessors the current device has."""
    return _attribute(DeviceAttribute.MULTIPROCESSOR_COUNT)


def _attribute(attribute: DeviceAttribute) -> int:
    runtime = gk.current()
    return runtime.device_get_attribute(attribute, runtime.get_device())


def normed(x: Pointer, gain: Pointer, batch: int, k: int, eps: float) -> NDArray[np.float32]:
    """Return x over its root mean square, times the gain: what the twins multiply by."""
    rows = x.view((batch, k))
    mean = np.mean(rows * rows, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = rows * gain.view(k) / np.sqrt(mean + np.float32(eps))
    return scaled
