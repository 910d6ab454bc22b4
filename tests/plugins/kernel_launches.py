"""Fixtures for tests of kernels: run one launch, and arrays that show what was not written."""

import numpy as np
import pytest

import graphkit as gk


@pytest.fixture
def run(stream):
    """Launch what a function of graphkit.kernels returned, and wait for it."""

    def launch_and_wait(launch):
        launch.launch(stream)
        stream.synchronize()

    return launch_and_wait


@pytest.fixture
def poisoned(runtime):
    """Make device arrays that are NaN, or the most negative integer, until a kernel writes them."""

    def make(shape, dtype=np.float32):
        kind = np.dtype(dtype)
        value = np.iinfo(kind).min if kind.kind in "iu" else np.nan
        return gk.asarray(np.full(shape, value, kind))

    return make


@pytest.fixture
def rng():
    return np.random.default_rng(20240229)
