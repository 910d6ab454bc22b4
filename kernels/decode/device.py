"""What the kernels ask of the current device."""

from __future__ import annotations

import graphkit as gk
from graphkit.runtime.protocol import DeviceAttribute

__all__ = ["attribute", "check_capability", "multiprocessors"]


def attribute(which: DeviceAttribute) -> int:
    """Return an attribute of the current device (cudaDeviceGetAttribute)."""
    runtime = gk.current()
    return runtime.device_get_attribute(which, runtime.get_device())


def multiprocessors() -> int:
    """Return how many multiprocessors the current device has."""
    return attribute(DeviceAttribute.MULTIPROCESSOR_COUNT)


def check_capability(who: str) -> None:
    """Refuse a device that these kernels are not for.

    Args:
        who: what the error begins with.

    Raises:
        ValueError: its compute capability is before 9.0.
    """
    major = attribute(DeviceAttribute.COMPUTE_CAPABILITY_MAJOR)
    minor = attribute(DeviceAttribute.COMPUTE_CAPABILITY_MINOR)
    if major < 9:
        raise ValueError(
            f"{who}: expected compute capability 9.0 or more, which has bulk copies and clusters, "
            f"came {major}.{minor}"
        )
