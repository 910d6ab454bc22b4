"""The launch configuration of a kernel: grid, block, shared memory and attributes, checked."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from graphkit.runtime.protocol import Dim3, LaunchAttribute, LaunchAttributeID

__all__ = [
    "check_cluster",
    "check_priority",
    "check_shared_mem",
    "dim3",
    "launch_attributes",
]

_MAX_CLUSTER = 16


def dim3(value: object, argument: str) -> Dim3:
    """Return grid, block or cluster extents as (x, y, z).

    Limits: CUDA C Programming Guide, technical specifications, compute capability 3.0 and later.

    Args:
        value: an int, or one to three ints.
        argument: its name in a message; ``"block"`` has limits of its own.

    Raises:
        TypeError: when it is neither an int nor a sequence of one to three.
        ValueError: when an extent is below 1, or more than CUDA allows.
    """
    # Told by exact types: an abstract base class asked for each costs more than adding a node.
    if type(value) is int:
        x, y, z = value, 1, 1
    elif type(value) is tuple and len(value) == 3 and _plain(*value):
        x, y, z = value
    else:
        x, y, z = _extents(value, argument)
    if argument == "block":
        if not (0 < x <= 1024 and 0 < y <= 1024 and 0 < z <= 64):
            raise ValueError(f"block: expected extents of 1 to (1024, 1024, 64), came {value!r}")
        if x * y * z > 1024:
            raise ValueError(f"block: expected at most 1024 threads, came {x * y * z} ({value!r})")
    elif not (0 < x < 2**31 and 0 < y < 2**16 and 0 < z < 2**16):
        raise ValueError(
            f"{argument}: expected extents of 1 to (2147483647, 65535, 65535), came {value!r}"
        )
    return x, y, z


def _plain(x: object, y: object, z: object) -> bool:
    return type(x) is int and type(y) is int and type(z) is int


def _extents(value: object, argument: str) -> Dim3:
    extents: tuple[Any, ...]
    if isinstance(value, (int, np.integer)):
        extents = (value,)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        extents = tuple(value)
    else:
        raise TypeError(f"{argument}: expected an int or 1 to 3 ints, came {value!r}")
    if not 1 <= len(extents) <= 3:
        raise ValueError(f"{argument}: expected 1 to 3 extents, came {value!r}")
    if not all(isinstance(extent, (int, np.integer)) for extent in extents):
        raise TypeError(f"{argument}: expected ints, came {value!r}")
    x, y, z = (*(int(extent) for extent in extents), 1, 1)[:3]
    return x, y, z


def check_shared_mem(nbytes: object, argument: str = "shared_mem") -> int:
    """Return dynamic shared memory in bytes, or refuse it."""
    if type(nbytes) is int and 0 <= nbytes < 2**32:  # the usual case, first
        return nbytes
    if not isinstance(nbytes, (int, np.integer)) or isinstance(nbytes, bool):
        raise TypeError(f"{argument}: expected bytes as an int, came {type(nbytes).__name__}")
    if not 0 <= nbytes < 2**32:
        raise ValueError(f"{argument}: expected 0 or more bytes, below 2**32, came {nbytes}")
    return int(nbytes)


def check_priority(priority: object) -> int:
    """Return the priority of a stream or a kernel, or refuse it; CUDA clamps what fits an int."""
    if not isinstance(priority, (int, np.integer)) or isinstance(priority, bool):
        raise TypeError(f"priority: expected an int, came {priority!r}")
    if not -(2**31) <= priority < 2**31:
        raise ValueError(f"priority: expected a number of 32 bits, came {priority}")
    return int(priority)


def check_cluster(extents: Dim3, blocks: Dim3, argument: str = "cluster") -> None:
    """Refuse a cluster that does not divide a grid, or that no device can place.

    Eight blocks fit everywhere; up to 16 where the kernel allows it (the attribute
    CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED), else CUDA refuses them with 912.
    """
    if any(n % c for n, c in zip(blocks, extents, strict=True)):
        if argument == "grid":
            raise ValueError(f"grid: expected a multiple of the cluster {extents}, came {blocks}")
        raise ValueError(f"cluster: expected extents that divide grid {blocks}, came {extents}")
    if prod(extents) > _MAX_CLUSTER:
        raise ValueError(f"cluster: expected at most {_MAX_CLUSTER} blocks, came {extents}")


def launch_attributes(
    grid: int | Sequence[int],
    cluster: int | Sequence[int] | None = None,
    cooperative: bool = False,
    priority: int | None = None,
    programmatic: bool = False,
) -> tuple[LaunchAttribute, ...]:
    """Return the launch attributes that differ from CUDA's defaults.

    Raises:
        ValueError: when the cluster does not divide the grid, or has more than 16 blocks.
    """
    attributes: list[LaunchAttribute] = []
    if cluster is not None:
        extents = dim3(cluster, "cluster")
        blocks = dim3(grid, "grid")
        check_cluster(extents, blocks)
        attributes.append(LaunchAttribute(LaunchAttributeID.CLUSTER_DIMENSION, extents))
    if cooperative:
        attributes.append(LaunchAttribute(LaunchAttributeID.COOPERATIVE, (1,)))
    if priority is not None:
        attributes.append(LaunchAttribute(LaunchAttributeID.PRIORITY, (check_priority(priority),)))
    if programmatic:
        serialization = LaunchAttributeID.PROGRAMMATIC_STREAM_SERIALIZATION
        attributes.append(LaunchAttribute(serialization, (1,)))
    return tuple(attributes)
