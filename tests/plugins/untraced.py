"""Runs tests marked `untraced` without coverage's tracer.

pytest-cov's own `no_cover` stops the collecting, but in a process of pytest-xdist the tracer goes
on being called, and that is what takes the time.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator

import pytest


@pytest.hookimpl(hookwrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None]:
    """Take the tracer away while such a test runs."""
    tracer = sys.gettrace()
    if tracer is None or pyfuncitem.get_closest_marker("untraced") is None:
        yield
        return
    sys.settrace(None)
    threading.settrace(None)  # type: ignore[arg-type]
    try:
        yield
    finally:
        sys.settrace(tracer)
        threading.settrace(tracer)
