"""What launch attributes demand of the device: clusters that fit, grids that run all at once."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from graphkit.runtime.protocol import Dim3, LaunchAttributeID
from graphkit.runtime.sim.functions import MAX_SHARED_MEMORY
from graphkit.runtime.sim.refusal import Code, Refused

__all__ = ["MULTIPROCESSORS", "check_cluster", "check_cooperative"]

#: Small, so that nobody tunes for it.
MULTIPROCESSORS = 4
# Of compute capability 9.0: CUDA C Programming Guide, technical specifications.
_BLOCKS_PER_MULTIPROCESSOR = 32
_THREADS_PER_MULTIPROCESSOR = 2048
# Without the attribute for clusters that are not portable.
_BLOCKS_PER_CLUSTER = 8

Attributes = Mapping[LaunchAttributeID, tuple[int, ...]]


def check_cluster(grid: Dim3, attributes: Attributes) -> None:
    """Refuse (912) a cluster that does not divide the grid, or is too large."""
    cluster = attributes.get(LaunchAttributeID.CLUSTER_DIMENSION, (0, 0, 0))
    if not any(cluster):
        return
    if any(c < 1 or n % c for n, c in zip(grid, cluster, strict=True)):
        raise Refused(Code.INVALID_CLUSTER_SIZE, f"cluster {cluster} in a grid of {grid}")
    if prod(cluster) > _BLOCKS_PER_CLUSTER:
        raise Refused(
            Code.INVALID_CLUSTER_SIZE,
            f"cluster {cluster}: {prod(cluster)} blocks, at most {_BLOCKS_PER_CLUSTER}",
        )


def check_cooperative(grid: Dim3, block: Dim3, shared_mem: int, attributes: Attributes) -> None:
    """Refuse (720) a cooperative grid whose blocks cannot all run at once."""
    if not any(attributes.get(LaunchAttributeID.COOPERATIVE, (0,))):
        return
    at_once = min(_BLOCKS_PER_MULTIPROCESSOR, _THREADS_PER_MULTIPROCESSOR // prod(block))
    if shared_mem:
        at_once = min(at_once, MAX_SHARED_MEMORY // shared_mem)
    if prod(grid) > at_once * MULTIPROCESSORS:
        raise Refused(
            Code.COOPERATIVE_LAUNCH_TOO_LARGE,
            f"{prod(grid)} blocks of {prod(block)} threads and {shared_mem} bytes of shared "
            f"memory, of which {at_once * MULTIPROCESSORS} run at once",
        )
