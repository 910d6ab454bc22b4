"""A function that launches work, as its user wrote it: what it takes, and how it is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from graphkit.frameworks import current_stream

__all__ = ["UserFunction"]


class UserFunction:
    """Calls a function that launches work on the current stream with the given arrays.

    The stream is made current for CuPy and PyTorch where they are imported. A function with a
    parameter ``stream`` is given it as well.

    Args:
        fn: the function; its arguments are passed by name.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        if not callable(fn):
            raise TypeError(f"fn: expected a function that launches work, came {type(fn).__name__}")
        self._fn = fn
        self.name: str = getattr(fn, "__qualname__", type(fn).__qualname__)
        try:
            self._signature = inspect.signature(fn)
        except (TypeError, ValueError):  # a function of C that does not say
            self._signature = inspect.Signature(
                [inspect.Parameter("arguments", inspect.Parameter.VAR_KEYWORD)]
            )
        self._takes_stream = "stream" in self._signature.parameters

    def check(self, arguments: Mapping[str, object]) -> None:
        """Refuse arguments that the function does not take.

        Raises:
            TypeError: naming what is unknown or missing, and what the function takes.
        """
        given = dict(arguments)
        if self._takes_stream:
            if "stream" in arguments:
                raise TypeError("stream: expected none, since the function is given one, came one")
            given["stream"] = None
        try:
            self._signature.bind(**given)
        except TypeError as error:
            wanted = f"{self.name}{self._signature}"
            raise TypeError(f"arguments: expected those of {wanted}, came {error}") from None

    def __call__(self, arguments: Mapping[str, object], stream: object) -> Any:
        """Call the function with ``stream`` as the current stream, and return what it returns."""
        with current_stream(stream):
            if self._takes_stream:
                return self._fn(**arguments, stream=stream)
            return self._fn(**arguments)
