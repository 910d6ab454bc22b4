"""Functions for exec pools: small work on the arrays that they are given, whatever the shape."""

import numpy as np
from sample_kernels import ADD_SCALAR, AXPY, FLIP, ROW_SUMS

import graphkit as gk

BLOCK = 128


def blocks(n):
    return max(-(-n // BLOCK), 1)


def as_bytes(array):
    return array.view(array.nbytes, np.uint8)


def add_three(x, y, stream):
    """y = x + 3 in float32."""
    ADD_SCALAR(blocks(x.size), BLOCK, (x, y, 3.0, x.size), stream=stream)


def add(x, y, a, stream):
    """y = x + a in float32, with a value that a capture bakes in."""
    ADD_SCALAR(blocks(x.size), BLOCK, (x, y, float(a), x.size), stream=stream)


def add_twice_x(x, y, stream):
    """y += 2 x in float32."""
    AXPY(blocks(x.size), BLOCK, (x, y, 2.0, x.size), stream=stream)


def flip(x, y, stream):
    """Every byte of y is that of x with half of its bits turned, whatever the dtype."""
    FLIP(blocks(x.nbytes), BLOCK, (as_bytes(x), as_bytes(y), x.nbytes), stream=stream)


def flipped(values):
    """Return what ``flip`` makes of host values, as bytes."""
    return (np.frombuffer(values.tobytes(), np.uint8) ^ 0x55).tobytes()


def row_sums(x, sums, stream):
    """sums = the sum of each row of x; rows may be padded with zeros."""
    rows, columns = x.shape
    ROW_SUMS(blocks(rows), BLOCK, (x, sums, rows, columns), stream=stream)


def add_size(x, y, stream):
    """y = x + x.size: not what a padded request wants."""
    ADD_SCALAR(blocks(x.size), BLOCK, (x, y, float(x.size), x.size), stream=stream)


class Strided:
    """An array of any layout over the memory of another one, as other libraries have them."""

    def __init__(self, array, shape, strides, offset=0):
        self.array = array
        self.shape, self.strides, self.offset = shape, strides, offset

    @property
    def __cuda_array_interface__(self):
        interface = self.array.__cuda_array_interface__
        data = interface["data"][0] + self.offset, False
        return interface | {"shape": self.shape, "strides": self.strides, "data": data}


def floats(n, seed=0):
    """Return host values, the same on the device, and room for a result."""
    values = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    return values, gk.asarray(values), gk.empty(values.shape)
