"""The CUDA C++ source of the kernels of this folder."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

__all__ = ["source"]

_INCLUDE = re.compile(r'^#include "([\w.]+\.cuh)"$', re.MULTILINE)


@cache
def source(stem: str) -> str:
    """Return the source of a kernel, with the files of this folder that it includes in place."""
    folder = files(__package__)
    text = (folder / f"{stem}.cu").read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda found: (folder / found[1]).read_text(encoding="utf-8"), text)
