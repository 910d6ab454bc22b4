"""The CUDA C++ of this folder: a kernel's source with its headers in it, and its -D options."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

__all__ = ["options", "source"]

_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"\n', re.MULTILINE)


@cache
def source(stem: str) -> str:
    """Return the source of a kernel of this folder, each header of the folder in it once.

    NVRTC is given one text and no include path.
    """
    seen: set[str] = set()

    def text(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        written = (files(__package__) / name).read_text(encoding="utf-8")
        return _INCLUDE.sub(lambda include: text(include[1]), written)

    return text(f"{stem}.cu")


def options(**extents: int | str) -> tuple[str, ...]:
    """Return ``-DNAME=value`` for each extent that a kernel is compiled for."""
    return tuple(f"-D{name}={value}" for name, value in extents.items())
