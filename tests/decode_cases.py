"""Operands of the kernels for one and two rows, whole models, and the same in float64."""

from __future__ import annotations

import json

import numpy as np
from batch_cases import BFLOAT16, EPS, Extents, bfloat16
from graphkit.kernels.llama import BUNDLED_MODEL, Checkpoint, LlamaConfig
from llama import reference

import graphkit as gk

# The bundled model's, and two of which nothing is whole: rows are 33 chunks of sixteen bytes.
MODELS = {
    "bundled": Extents(192, 480, 6, 2, 32, 256),
    "odd": Extents(264, 712, 3, 1, 48, 521),
    "narrow heads": Extents(264, 712, 6, 2, 40, 521),
}
# float32 sums in another order, of products that are exact.
SUMS = {"rtol": 1e-5, "atol": 2e-4}
# Numbers that a block table may hold of a cache with so many pages, and none of which is one.
NO_PAGES = {
    "before": lambda pages: -1,
    "behind": lambda pages: pages,
    "least": lambda pages: -(2**31),
    "most": lambda pages: 2**31 - 1,
}
# What exp2 and exp are approximated by.
EXPONENTS = {"rtol": 1e-4, "atol": 1e-4}


def floats(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def normalized(x, gain):
    """Return the normalized rows in float64."""
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(axis=1, keepdims=True) + EPS) * gain.astype(np.float64)


def tables(length, head_dim):
    angles = np.arange(length)[:, None] / 100 ** (np.arange(0, head_dim, 2) / head_dim)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def turned(heads, position, length):
    """Return heads [heads, head_dim] at a position, by complex numbers."""
    cosines, sines = tables(length, heads.shape[-1])
    half = heads.shape[-1] // 2
    pairs = heads[:, :half] + 1j * heads[:, half:]
    pairs = pairs * (cosines[position] + 1j * sines[position].astype(np.float64))
    return np.concatenate((pairs.real, pairs.imag), axis=-1)


def first_largest(values, indices):
    """Return the lowest index of the largest value; a NaN is less than anything."""
    known = values[~np.isnan(values)]
    return indices[values == known.max()].min() if len(known) else indices.min()


class Cache:
    """Keys or values of sequences, laid out with or without pages.

    Attributes:
        rows: bfloat16 [batch, kv_heads, max_len, head_dim].
        array: the same as the kernels find it.
        table: int32 [batch, pages of a sequence] in no order, or None.
    """

    def __init__(self, rows, page=0):
        self.rows, self.page, self.table = rows, page, None
        self.array = rows
        if page:
            batch, kv_heads, max_len, head_dim = rows.shape
            pages = batch * max_len // page
            rng = np.random.default_rng(pages)  # keys and values share a table
            self.table = rng.permutation(pages + 2)[:pages].astype(np.int32)
            self.table = self.table.reshape(batch, max_len // page)
            self.array = np.full((pages + 2, kv_heads, page, head_dim), np.nan, BFLOAT16)
            split = rows.reshape(batch, kv_heads, -1, page, head_dim)
            self.array[self.table] = np.moveaxis(split, 1, 2)

    def whole(self, array):
        """Return what lies in an array of this layout as [batch, kv_heads, max_len, head_dim]."""
        if not self.page:
            return array
        pages = array[self.table]  # [batch, pages, kv_heads, page, head_dim]
        return np.moveaxis(pages, 2, 1).reshape(self.rows.shape)


class Fenced:
    """A copy of an array on the device, with as much as one of its first axis on both sides.

    Attributes:
        array: the copy.
    """

    def __init__(self, array, fence=np.nan):
        around = np.full((1, *array.shape[1:]), fence, array.dtype)
        self._memory = gk.asarray(np.concatenate((around, array, around)))
        self._fence = self._memory.get()[[0, -1]].tobytes()
        self.array = self._memory[1:-1]

    def check(self):
        """Check that nothing was written around the array."""
        assert self._memory.get()[[0, -1]].tobytes() == self._fence


def off_boundary(array):
    """Return a copy of an array on the device, 8 bytes behind a 16-byte boundary."""
    memory = gk.zeros(16 + array.nbytes, np.uint8)
    copy = memory[8 : 8 + array.nbytes].view(array.shape, array.dtype)
    copy.set(array)
    return copy


# --- whole models --------------------------------------------------------------------------------


def bundled(**changes):
    """Return config.json, weights and checkpoint of the bundled model."""
    values = json.loads((BUNDLED_MODEL / "config.json").read_text()) | changes
    weights = Checkpoint.load(BUNDLED_MODEL).tensors
    return values, weights, Checkpoint(LlamaConfig.from_dict(values), weights)


def model(extents, seed=0, dtype=BFLOAT16.type, **changes):
    """Return config.json, weights and checkpoint of a small random model."""
    hidden, inner, heads, kv_heads, head_dim, vocabulary = extents
    values = reference.config(
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocabulary,
        **changes,
    )
    weights = reference.tensors(values, seed, dtype)
    return values, weights, Checkpoint(LlamaConfig.from_dict(values), weights)


__all__ = [
    "BFLOAT16", "EPS", "EXPONENTS", "MODELS", "NO_PAGES", "SUMS", "Cache", "Extents", "Fenced",
    "bfloat16", "bundled", "first_largest", "floats", "model", "normalized", "off_boundary",
    "tables", "turned",
]  # fmt: skip
