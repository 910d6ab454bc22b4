"""A number of things, in words."""

from __future__ import annotations

__all__ = ["counted"]


def counted(count: int, what: str) -> str:
    """Return the number and the noun, in the plural but for one."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
