"""One fixture, two runtimes: a test that takes ``runtime`` runs on the one chosen by --runtime."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import suppress

import pytest

import graphkit as gk
from graphkit.runtime.protocol import Runtime

pytest_plugins = ["plugins.evidence", "plugins.kernel_launches", "plugins.untraced"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--runtime",
        choices=("sim", "cuda"),
        default="sim",
        help="where tests with the `runtime` fixture run",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--runtime") == "cuda":
        # Where it is installed, PyTorch must come first: imported behind CuPy and NVRTC it cannot
        # parse its own operators' schemas any more (PyTorch 2.11, CuPy 14.2).
        with suppress(ImportError):
            import torch  # noqa: F401


@pytest.fixture
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    """The current runtime: a fresh simulator, strict in everything, or the device.

    When the test is over, graphkit must own no handle any more.
    """
    yield from _held(request, gk.use(request.config.getoption("--runtime")))


@pytest.fixture
def sim(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    """A fresh simulator, also where the rest of the run is on a device."""
    yield from _held(request, gk.use("sim"))


def _held(request: pytest.FixtureRequest, chosen: Runtime) -> Iterator[Runtime]:
    yield chosen
    # pytest holds the values of the other fixtures until later; handles among them die here.
    request.node.funcargs.clear()
    chosen.device_synchronize()
    if gk.live_handles():
        gc.collect()  # an exception that a test looked at keeps its frames until then
    assert gk.live_handles() == {}, "the test left handles behind"


@pytest.fixture
def stream(runtime: Runtime) -> Iterator[gk.Stream]:
    """A stream that can capture."""
    made = gk.Stream()
    yield made
    made.close()
