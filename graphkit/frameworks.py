"""What CuPy and PyTorch must be told: a stand-in until the real one is merged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from graphkit.device_array import DeviceArray

__all__ = ["PrivateMemory", "current_stream", "view_like"]


@contextmanager
def current_stream(_stream: object) -> Iterator[None]:
    """Make a stream current for CuPy and PyTorch."""
    yield


class PrivateMemory:
    """Memory of a capture's own."""

    @contextmanager
    def allocating(self) -> Iterator[None]:
        """Let allocations of this thread come from here."""
        yield

    def close(self) -> None:
        """Give the memory back."""


def view_like(_example: object, array: DeviceArray) -> Any:
    """Return an array of the example's library over our memory."""
    return array
