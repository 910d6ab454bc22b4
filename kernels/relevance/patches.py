"""The patches of an image: how many there are, and how their kernels are launched."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from functools import partial
from typing import NamedTuple

from graphkit.kernel import Kernel
from graphkit.runtime.protocol import Dim3

from .. import launch
from ..launch import MULTIPROCESSORS, WARP, KernelLaunch, check, integer

__all__ = ["PatchGrid", "check_count", "per_warp", "source"]

source = partial(launch.source, package=__package__)

MOST_WARPS = 8

# opponent_balance and token_budget have four bytes of dynamic shared memory a patch, beside the
# static shared memory that sums go through: 1,280 bytes and 512. Of both together 48 KB need no
# permission: (49,152 - 1,280) / 4.
MOST_PATCHES = 11_968

# Of a patch: patch_luminance counts its pixels in an int, and 32 more.
MOST_SIDE = 46_340


class PatchGrid(NamedTuple):
    """The square patches that an image is cut into, numbered along the rows.

    Attributes:
        rows: patches from top to bottom.
        columns: patches from left to right.
    """

    rows: int
    columns: int

    @property
    def patches(self) -> int:
        """Patches of the image."""
        return self.rows * self.columns

    @classmethod
    def of(cls, image: object, patch: int) -> PatchGrid:
        """Cut an image into patches.

        Args:
            image: float32 [3, height, width], both of them multiples of ``patch``.
            patch: pixels of a patch's side.

        Raises:
            ValueError: when the image is not that, or has a side or more patches than kernels take.
        """
        check_count("patch", patch, 1, MOST_SIDE)
        _, height, width = check("image", image, (3, "height", "width"))
        if height % patch or width % patch:
            raise ValueError(
                f"image: expected height and width that are multiples of the patch, {patch} "
                f"pixels, came {height} x {width}"
            )
        count = height // patch * (width // patch)
        if count > MOST_PATCHES:
            raise ValueError(f"image: expected at most {MOST_PATCHES:,} patches, came {count:,}")
        return cls(height // patch, width // patch)

    @classmethod
    def of_count(cls, patches: int, columns: int) -> PatchGrid:
        """Lay so many patches in rows.

        Raises:
            TypeError: when ``columns`` is no int.
            ValueError: when that leaves a row incomplete, or they are more than kernels take.
        """
        check_count("columns", columns)
        if patches % columns:
            raise ValueError(f"columns: expected a divisor of {patches} patches, came {columns}")
        if patches > MOST_PATCHES:
            raise ValueError(
                f"columns: expected at most {MOST_PATCHES:,} patches in all, came {patches:,}"
            )
        return cls(patches // columns, columns)


def check_count(argument: str, value: object, least: int = 1, most: int = 2**31 - 1) -> int:
    """Return an int in its bounds.

    Raises:
        TypeError: when it is no int.
        ValueError: when it is out of bounds.
    """
    return integer(argument, value, (least, most))


def per_warp(kernel: Kernel, args: tuple[object, ...], patches: int) -> KernelLaunch:
    """Return the launch of a kernel that has one warp a patch.

    A block has as many warps as leave a block for every multiprocessor, so that a small image
    keeps all of them busy, too.
    """
    warps = max(1, min(patches // MULTIPROCESSORS, MOST_WARPS))
    grid: Dim3 = (-(-patches // warps), 1, 1)
    return KernelLaunch(kernel, grid, (warps * WARP, 1, 1), args)
