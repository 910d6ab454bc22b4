"""What the products with a batch have in common on the host: tiles, checks, launches, the norm."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graphkit.kernel import Kernel, Pointer
from graphkit.runtime.protocol import DeviceAttribute

from ..launch import MULTIPROCESSORS, WARP, KernelLaunch, aligned, instance, integer
from .device import attribute, check_capability
from .half import rounded

__all__ = [
    "BATCHES",
    "MEASURED",
    "Tiles",
    "batch_of",
    "chosen_tiles",
    "launch_of",
    "most_shared",
    "norm_scale",
    "real_rows",
    "shared_tiles",
]

BATCHES = (8, 16, 32, 64)

# Two blocks of the chain fit on a multiprocessor, so that the next kernel may fetch its weights
# while this one works.
RING_BYTES = 100 << 10
MOST_STAGES = 8
MEASURED = 2048  # columns from which on tiles are those that measured best, not those of a rule
STATIC_SHARED = 10 << 10  # bytes of a block beside the dynamic ones, at most


class Tiles(NamedTuple):
    """How a product with a batch is cut; constants of the compiled kernel.

    Attributes:
        rows: rows of the weights in a tile, a multiple of ``warp_rows``.
        split: blocks of a cluster that share a tile, each with a part of k: 1, 2, 4 or 8.
        depth: elements of k in a stage: 32, 64, 128, 256 or 512. Memory likes long pieces of rows.
        stages: stages in shared memory, 2 or more; all but one are on their way.
        warp_rows: rows of a warp: 16, 32 or 64.
        warp_split: groups of warps that share a stage's k: 1, 2 or 4.
    """

    rows: int = 128
    split: int = 1
    depth: int = 64
    stages: int = 4
    warp_rows: int = 16
    warp_split: int = 1

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.rows // self.warp_rows * self.warp_split * WARP

    def count(self, rows: int) -> int:
        """Return the tiles of a matrix of so many rows."""
        return -(-rows // self.rows)

    def shared_mem(self, batch: int) -> int:
        """Return the dynamic shared memory of a block in bytes: stages, and then sums."""
        ring = self.stages * (self.rows + batch) * self.depth * 2
        return max(ring, self.warp_split * batch * (self.rows + 4) * 4)

    def options(self, batch: int, **extents: int) -> tuple[str, ...]:
        """Return the options for NVRTC that make these tiles and extents constants."""
        constants = {"batch": batch, **self._asdict(), **extents}
        return tuple(f"-D{name.upper()}={value}" for name, value in constants.items())


def chosen_tiles(tiles: Tiles | None, default: Tiles, batch: int) -> Tiles:
    """Return the tiles that were given, or the default.

    Raises:
        TypeError: when what was given is no :class:`Tiles`.
        ValueError: when no kernel can be made of them for this device.
    """
    tiles = default if tiles is None else instance("tiles", tiles, Tiles)
    rows, split, depth, stages, warp_rows, warp_split = tiles
    if (
        warp_rows not in (16, 32, 64)
        or rows % warp_rows
        or split not in (1, 2, 4, 8)
        or depth not in (32, 64, 128, 256, 512)
        or stages < 2
        or warp_split not in (1, 2, 4)
        or depth % (16 * warp_split)
        or tiles.threads // 2 % (depth // 8)  # half of the threads copy whole rows of a stage
        or not 2 * WARP <= tiles.threads <= 1024
        or tiles.shared_mem(batch) > most_shared()
    ):
        raise ValueError(f"tiles: expected what fits a block, came {tiles}")
    return tiles


def most_shared() -> int:
    """Return the bytes of dynamic shared memory that a block may have on the current device."""
    return attribute(DeviceAttribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN) - STATIC_SHARED


def _stages(batch: int, rows: int, depth: int, k: int) -> int:
    most = RING_BYTES // ((rows + batch) * depth * 2)
    return max(2, min(most, MOST_STAGES, -(-k // depth)))


def shared_tiles(n: int, k: int, batch: int, rows: tuple[int, ...] = (128, 96)) -> Tiles:
    """Return tiles for a matrix [n, k] that give most multiprocessors one block each.

    Args:
        n: rows of the matrix.
        k: its columns.
        batch: 8, 16, 32 or 64.
        rows: of a tile, to choose from; the first of those that are as good.
    """
    best, most = Tiles(rows[0]), 0
    for height in rows:
        split = 8
        while split > 1 and (-(-n // height) * split > MULTIPROCESSORS or k < split * 64):
            split //= 2
        blocks = min(-(-n // height) * split, MULTIPROCESSORS)
        if blocks > most:
            best, most = Tiles(height, split), blocks
    # A warp of 32 rows reads the inputs half as often, and its products wait less for one another.
    return best._replace(
        stages=_stages(batch, best.rows, best.depth, -(-k // best.split)),
        warp_rows=32,
        warp_split=2,
    )


# --- checks --------------------------------------------------------------------------------------


def eights(argument: str, name: str, extent: int) -> int:
    """Return an extent that is a multiple of 8.

    Raises:
        ValueError: when it is not.
    """
    if extent % 8:
        raise ValueError(f"{argument}: expected {name} that is a multiple of 8, came {extent}")
    return extent


def batch_of(argument: str, array: object, expected: tuple[int | str, ...]) -> tuple[int, int]:
    """Check a float16 input ``[batch, width]`` and return both.

    Raises:
        ValueError: when it is none, or the batch or the width is not one that a kernel is for.
    """
    batch, width = aligned(argument, array, expected, np.float16)
    if batch not in BATCHES:
        raise ValueError(f"{argument}: expected a batch of 8, 16, 32 or 64, came {batch}")
    return batch, eights(argument, "a width", width)


def real_rows(rows: object, batch: int) -> int:
    """Return the rows of a batch that are no padding: all by default.

    Raises:
        TypeError: when it is no int.
        ValueError: when there are less than 1 or more than the batch.
    """
    if rows is None:
        return batch
    return integer("rows", rows, (1, batch))


def enough_rows(argument: str, came: int, rows: int) -> None:
    """Refuse an array with fewer rows than those of the batch that are no padding.

    Raises:
        ValueError: when it has fewer.
    """
    if came < rows:
        raise ValueError(f"{argument}: expected {rows} rows or more, came {came}")


def launch_of(
    kernel: Kernel, tiles: Tiles, batch: int, blocks: int, args: tuple[object, ...]
) -> KernelLaunch:
    """Return the launch of a kernel, which is compiled and allowed its shared memory by this.

    Raises:
        ValueError: on a device before compute capability 9.0.
    """
    check_capability(kernel.name)
    shared = tiles.shared_mem(batch)
    kernel.max_dynamic_shared_size_bytes = shared
    cluster = (tiles.split, 1, 1) if tiles.split > 1 else None
    block = (tiles.threads, 1, 1)
    return KernelLaunch(kernel, (blocks, 1, 1), block, args, shared, cluster)


# --- twins ---------------------------------------------------------------------------------------


def norm_scale(
    squares: Pointer, parts: int, rows: int, batch: int, width: int, eps: float
) -> NDArray[np.float32]:
    """Return 1 / rms of each row, as [rows, 1], from the sums of squares."""
    sums = squares.view((parts, batch))[:, : int(rows)].sum(axis=0, dtype=np.float32)
    scale: NDArray[np.float32] = 1.0 / np.sqrt(sums / np.float32(width) + eps, dtype=np.float32)
    return scale.astype(np.float32)[:, None]


def floats(array: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return activations as float32."""
    return array.astype(np.float32)


def factors(weights: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return bfloat16 weights as float32, with the values that they are multiplied with."""
    return floats(rounded(floats(weights)))
