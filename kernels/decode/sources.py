"""The CUDA C++ of this folder: a kernel's source with its headers in it, and its -D options."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from functools import partial

from .. import launch

__all__ = ["options", "source"]

source = partial(launch.source, package=__package__)


def options(**extents: int | str) -> tuple[str, ...]:
    """Return ``-DNAME=value`` for each extent that a kernel is compiled for."""
    return tuple(f"-D{name}={value}" for name, value in extents.items())
