"""Small kernels with twins, for tests."""

from __future__ import annotations

import numpy as np

import graphkit as gk

_ADD_SCALAR = r"""
extern "C" __global__ void add_scalar(const float* x, float* y, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] + a;
}
"""


def _add_scalar(launch: gk.Launch, x: gk.Pointer, y: gk.Pointer, a: float, n: int) -> None:
    count = min(n, launch.grid[0] * launch.block[0])
    y.view(count)[:] = x.view(count) + a


_AXPY = r"""
extern "C" __global__ void axpy(const float* x, float* y, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = fmaf(a, x[i], y[i]);
}
"""


def _axpy(launch: gk.Launch, x: gk.Pointer, y: gk.Pointer, a: float, n: int) -> None:
    count = min(n, launch.grid[0] * launch.block[0])
    # A fused multiply-add rounds once; float64 holds the product of two float32 exactly.
    y.view(count)[:] = a.astype(np.float64) * x.view(count) + y.view(count)


_INCREMENT = r"""
extern "C" __global__ void increment(int* p, int by) {
    if (blockIdx.x == 0 && threadIdx.x == 0) *p += by;
}
"""


def _increment(launch: gk.Launch, p: gk.Pointer, by: int) -> None:
    p.view(1)[0] += by


_BLOCKS = r"""
extern "C" __global__ void blocks(int* seen) {
    if (threadIdx.x == 0) seen[blockIdx.x] = gridDim.x * 1000 + blockDim.x;
}
"""


def _blocks(launch: gk.Launch, seen: gk.Pointer) -> None:
    seen.view(launch.grid[0])[:] = launch.grid[0] * 1000 + launch.block[0]


_NOTE = r"""
extern "C" __global__ void note(int* seen, int first, int second) {
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        seen[0] = first;
        seen[1] = second;
        seen[2] = gridDim.x;
    }
}
"""


def _note(launch: gk.Launch, seen: gk.Pointer, first: int, second: int) -> None:
    seen.view(3)[:] = first, second, launch.grid[0]


_FLIP = r"""
extern "C" __global__ void flip(const unsigned char* x, unsigned char* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] ^ 0x55;
}
"""


def _flip(launch: gk.Launch, x: gk.Pointer, y: gk.Pointer, n: int) -> None:
    count = min(n, launch.grid[0] * launch.block[0])
    y.view(count)[:] = x.view(count) ^ 0x55


_ROW_SUMS = r"""
extern "C" __global__ void row_sums(const float* x, float* sums, int rows, int columns) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    float sum = 0.0f;
    for (int i = 0; i < columns; i++) sum += x[row * columns + i];
    sums[row] = sum;
}
"""


def _row_sums(launch: gk.Launch, x: gk.Pointer, sums: gk.Pointer, rows: int, columns: int) -> None:
    count = min(rows, launch.grid[0] * launch.block[0])
    # One addition after the other, as the kernel does it.
    sums.view(count)[:] = np.add.accumulate(x.view((count, columns)), axis=1)[:, -1]


ADD_SCALAR = gk.Kernel(_ADD_SCALAR, "add_scalar", twin=_add_scalar)
AXPY = gk.Kernel(_AXPY, "axpy", twin=_axpy)
INCREMENT = gk.Kernel(_INCREMENT, "increment", twin=_increment)
BLOCKS = gk.Kernel(_BLOCKS, "blocks", twin=_blocks)
NOTE = gk.Kernel(_NOTE, "note", twin=_note)
FLIP = gk.Kernel(_FLIP, "flip", twin=_flip)
ROW_SUMS = gk.Kernel(_ROW_SUMS, "row_sums", twin=_row_sums)
