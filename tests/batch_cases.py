"""Operands of the projections of a batch, and the same mathematics in float64."""

from typing import NamedTuple

import ml_dtypes
import numpy as np

import graphkit as gk

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
BATCHES = (8, 16, 32, 64)
EPS = 1e-5
# float32 sums of products, relative to the largest; and what bfloat16 and float16 round.
SUMS = {"rtol": 1e-5, "atol": 2e-4}
ROUNDED = {"rtol": 2**-7, "atol": 2e-3}
HALVED = {"rtol": 2**-10, "atol": 5e-4}


class Extents(NamedTuple):
    """Of a model."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int


BUNDLED = Extents(192, 480, 6, 2, 32, 256)  # the model that the package brings along
ODD = Extents(264, 712, 3, 1, 48, 520)  # no extent is whole stages or whole tiles
MODELS = {"bundled": BUNDLED, "odd": ODD}


def bfloat16(rng, *shape, scale=1.0):
    return (scale * rng.standard_normal(shape)).astype(BFLOAT16)


def float16(rng, *shape):
    return rng.standard_normal(shape).astype(np.float16)


class Stream:
    """A residual stream on the device, as the kernels hand it on, and what it means in float64."""

    def __init__(self, rng, batch, hidden, parts=3):
        self.xg = float16(rng, batch, hidden)
        self.squares = (hidden * rng.uniform(0.1, 2.0, (parts, batch))).astype(np.float32)
        mean = self.squares.astype(np.float64).sum(axis=0) / hidden
        self.normalized = self.xg.astype(np.float64) / np.sqrt(mean + EPS)[:, None]

    def on_device(self):
        return gk.asarray(self.xg), gk.asarray(self.squares)


def product(rows, matrix):
    """Return rows @ matrix.T in float64."""
    return rows.astype(np.float64) @ matrix.astype(np.float64).T


def close(actual, expected, **tolerance):
    """Compare arrays of any float."""
    np.testing.assert_allclose(actual.astype(np.float64), expected, **tolerance)
