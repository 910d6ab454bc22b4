"""How the kernels that include weight_stream.cuh are compiled and launched."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

import graphkit as gk
from graphkit.kernel import Kernel, Pointer
from graphkit.runtime.protocol import DeviceAttribute

from ..launch import WARP, KernelLaunch
from .sources import options

__all__ = ["MOST_VECTORS", "WeightStream", "half_of_shared_memory", "multiprocessors", "normed"]

WARPS, MOST_VECTORS = 8, 4  # as in weight_stream.cuh
_VECTORS = (1, 2, 4)  # that a kernel is compiled for
_SEGMENT = 128  # chunks of sixteen bytes that a warp takes of a row, at least
_STAGES = 8  # of a ring, at most
_RESERVED = 1 << 10  # of shared memory for each block, by CUDA
_STATIC = 512  # what a kernel may have beside the ring


@dataclass(frozen=True)
class WeightStream:
    """How rows of ``k`` bfloat16 go through the rings of a block, for a few vectors at once.

    Attributes:
        k: elements of a row.
        pairs: of rows, in all.
        blocks: that share them: one a multiprocessor.
        vectors: 1, 2 or 4, that the kernel is compiled for.
        split: segments of a row.
        stages: pairs in the ring of a warp.
    """

    k: int
    pairs: int
    blocks: int
    vectors: int
    split: int
    stages: int

    @classmethod
    def of(cls, argument: str, k: int, pairs: int, batch: int) -> WeightStream:
        """Choose the segments of a row, and as many stages as half a multiprocessor holds.

        Args:
            argument: what holds the rows, for an error message.
            k: elements of a row.
            pairs: of rows.
            batch: vectors.

        Raises:
            ValueError: rows that are not whole sixteen bytes, or too long for the rings; a batch of
                more than 4.
        """
        if k % 8:
            raise ValueError(f"{argument}: expected rows of a multiple of 8 elements, came {k}")
        if batch > MOST_VECTORS:
            raise ValueError(f"batch: expected at most {MOST_VECTORS} vectors, came {batch}")
        vectors = next(size for size in _VECTORS if size >= batch)
        split = WARPS
        while split > 1 and k // 8 < split * _SEGMENT:
            split //= 2
        blocks = min(pairs, multiprocessors())
        chosen = cls(k, pairs, blocks, vectors, split, _STAGES)
        whole = _attribute(DeviceAttribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
        for most in (half_of_shared_memory(), whole):
            for stages in range(_STAGES, 0, -1):
                chosen = replace(chosen, stages=stages)
                if chosen.shared_mem + _STATIC <= most and (stages > 1 or most == whole):
                    return chosen
        raise ValueError(
            f"{argument}: expected at most {whole} bytes of shared memory a block, came rows of "
            f"{2 * k} bytes, {pairs} pairs of them, which take {chosen.shared_mem}"
        )

    @property
    def shared_mem(self) -> int:
        """Dynamic shared memory in bytes: the rings, and ``Shared`` of weight_stream.cuh."""
        segment = 16 * -(-self.k // 8 // self.split)
        floats = (2 * self.most_pairs + 1) * self.vectors * self.split
        return WARPS * self.stages * (2 * segment + 8) + 4 * floats

    @property
    def most_pairs(self) -> int:
        """Pairs of a block, at most."""
        return -(-self.pairs // self.blocks)

    @property
    def options(self) -> tuple[str, ...]:
        """The -D options of weight_stream.cuh."""
        return options(
            K=self.k,
            VECTORS=self.vectors,
            SPLIT=self.split,
            STAGES=self.stages,
            MOST_PAIRS=self.most_pairs,
        )

    def launch(self, kernel: Kernel, args: tuple[object, ...]) -> KernelLaunch:
        """Return the launch with its blocks."""
        kernel.max_dynamic_shared_size_bytes = self.shared_mem
        return KernelLaunch(
            kernel, (self.blocks, 1, 1), (WARPS * WARP, 1, 1), args, self.shared_mem
        )


def half_of_shared_memory() -> int:
    """Return the bytes that two blocks of a multiprocessor may have each."""
    whole = _attribute(DeviceAttribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
    return (whole + _RESERVED) // 2 - _RESERVED


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
