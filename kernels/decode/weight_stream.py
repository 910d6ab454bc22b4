"""How the kernels that include weight_stream.cuh are compiled and launched."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphkit.kernel import Kernel, Pointer
from graphkit.runtime.protocol import DeviceAttribute

from ..launch import WARP, KernelLaunch
from .device import attribute, multiprocessors
from .sources import options

__all__ = ["MOST_VECTORS", "WeightStream", "normed"]

SUMMERS, BENCHES = 8, 16  # as in weight_stream.cuh
MOST_VECTORS = 2  # more would not leave enough registers: see the kernels for batches
_UNIT = 32 << 10  # bytes of a unit, at most
_FLIGHT = 32 << 10  # bytes that a block has asked for and that are not yet there
_MOST_STAGES = 16
_ATTENTION = 10 << 10  # of shared memory for a block of split_attention: groups of 4, heads of 64
_RESERVED = 1 << 10  # of shared memory for each block, by CUDA


@dataclass(frozen=True)
class WeightStream:
    """How rows of ``k`` bfloat16 go through the ring of a block, for a few vectors at once.

    Attributes:
        k: elements of a row.
        pairs: of rows, in all.
        blocks: that share them: one a multiprocessor.
        vectors: 1 or 2.
        unit: pairs that are fetched and summed at once.
        stages: units in the ring.
        flight: units that are asked for and not yet there, at most.
    """

    k: int
    pairs: int
    blocks: int
    vectors: int
    unit: int
    stages: int
    flight: int

    @classmethod
    def of(
        cls, argument: str, k: int, pairs: int, batch: int, blocks: int | None = None
    ) -> WeightStream:
        """Choose the pairs of a unit, and as many stages as half a multiprocessor holds.

        Args:
            argument: what holds the rows, for an error message.
            k: elements of a row.
            pairs: of rows.
            batch: vectors.
            blocks: at most one a unit; by default one a multiprocessor where units suffice.

        Raises:
            ValueError: rows that are not whole sixteen bytes, or of which four do not fit the
                shared memory of a block; a batch of more than 2.
        """
        if k % 8:
            raise ValueError(f"{argument}: expected rows of a multiple of 8 elements, came {k}")
        if batch > MOST_VECTORS:
            raise ValueError(f"batch: expected at most {MOST_VECTORS} vectors, came {batch}")
        unit = 4
        while unit > 1 and 4 * unit * k > _UNIT:
            unit //= 2
        blocks = min(-(-pairs // unit), blocks or multiprocessors())
        flight = max(1, _FLIGHT // (4 * unit * k))
        whole = attribute(DeviceAttribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
        for most in (_half_of_shared_memory(), whole):
            for stages in range(_MOST_STAGES, 1, -1):
                chosen = cls(k, pairs, blocks, batch, unit, stages, min(flight, stages))
                if chosen.shared_mem <= most:
                    return chosen
        raise ValueError(
            f"{argument}: expected rows of which four fit the {whole} bytes of shared memory that "
            f"a block may have, came rows of {2 * k} bytes"
        )

    @property
    def shared_mem(self) -> int:
        """Dynamic shared memory in bytes: ``Shared`` of weight_stream.cuh."""
        floats = (BENCHES * 2 * self.unit + 1) * self.vectors * SUMMERS
        return self.stages * (4 * self.unit * self.k + 16) + 16 * BENCHES + 4 * floats + 8

    def first_pair(self, block: int) -> int:
        """Return the first pair of a block; for the one behind the last, what comes behind all."""
        return -(-self.pairs // self.unit) * block // self.blocks * self.unit

    @property
    def options(self) -> tuple[str, ...]:
        """The -D options of weight_stream.cuh."""
        return options(
            K=self.k,
            VECTORS=self.vectors,
            UNIT=self.unit,
            STAGES=self.stages,
            FLIGHT=self.flight,
        )

    def launch(self, kernel: Kernel, args: tuple[object, ...]) -> KernelLaunch:
        """Return the launch with its blocks."""
        kernel.max_dynamic_shared_size_bytes = self.shared_mem
        block = ((SUMMERS + 2) * WARP, 1, 1)
        return KernelLaunch(kernel, (self.blocks, 1, 1), block, args, self.shared_mem)


def _half_of_shared_memory() -> int:
    """Return the bytes that two blocks of a multiprocessor may have each, beside attention's."""
    whole = attribute(DeviceAttribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
    return (whole - _ATTENTION) // 2 - _RESERVED


def normed(x: Pointer, gain: Pointer, batch: int, k: int, eps: np.float32) -> NDArray[np.float32]:
    """Return x over its root mean square, times the gain: what the twins multiply by."""
    rows = x.view((batch, k))
    mean = np.mean(rows * rows, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = rows * gain.view(k) / np.sqrt(mean + eps)
    return scaled
