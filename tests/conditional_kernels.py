"""Kernels that decide: they count, write flags, and set conditions."""

from __future__ import annotations

import numpy as np

import graphkit as gk

_STEP = r"""
extern "C" __global__ void step(int* counter, int* flag, int limit) {
    *counter += 1;
    *flag = *counter < limit;
}
"""


def _step(launch, counter, flag, limit):
    counter.view(1)[0] += 1
    flag.view(1)[0] = counter.view(1)[0] < limit


_PUT = r"""
extern "C" __global__ void put(unsigned* out, unsigned value) {
    *out = value;
}
"""


def _put(launch, out, value):
    out.view(1)[0] = value


_MIX = r"""
extern "C" __global__ void mix(const unsigned* a, unsigned* out, unsigned k) {
    *out = *out * 3 + *a * 5 + k;
}
"""


def _mix(launch, a, out, k):
    value = out.view(1)
    value[:] = value * np.uint32(3) + a.view(1) * np.uint32(5) + k


_REMAINDER = r"""
extern "C" __global__ void rest(const unsigned* a, unsigned* out, unsigned by) {
    *out = *a % by;
}
"""


def _remainder(launch, a, out, by):
    out.view(1)[0] = a.view(1)[0] % by


_DECREMENT = r"""
extern "C" __global__ void decrement(unsigned* counter) {
    *counter -= 1;
}
"""


def _decrement(launch, counter):
    counter.view(1)[0] -= np.uint32(1)


_SET = r"""
extern "C" __device__ __cudart_builtin__ void cudaGraphSetConditional(
    cudaGraphConditionalHandle handle, unsigned int value);
extern "C" __global__ void step_handle(
    int* counter, int limit, cudaGraphConditionalHandle handle) {
    *counter += 1;
    cudaGraphSetConditional(handle, *counter < limit);
}
extern "C" __global__ void set_handle(cudaGraphConditionalHandle handle, unsigned value) {
    cudaGraphSetConditional(handle, value);
}
"""


def _step_handle(launch, counter, limit, handle):
    counter.view(1)[0] += 1
    launch.set_conditional(handle, counter.view(1)[0] < limit)


def _set_handle(launch, handle, value):
    launch.set_conditional(handle, value)


# One step of Euclid's algorithm for as many pairs as the block has threads.
_EUCLID = r"""
extern "C" __global__ void euclid(int* a, int* b, int* more) {
    const int i = threadIdx.x;
    int x = a[i], y = b[i];
    if (y) {
        const int rest = x % y;
        x = y;
        y = rest;
    }
    a[i] = x;
    b[i] = y;
    const int any = __syncthreads_or(y);
    if (i == 0) *more = any != 0;
}
"""


def _euclid(launch, a, b, more):
    x, y = a.view(launch.block[0]), b.view(launch.block[0])
    rest = np.where(y, x % np.where(y, y, 1), 0)
    x[:] = np.where(y, y, x)
    y[:] = rest
    more.view(1)[0] = bool(y.any())


STEP = gk.Kernel(_STEP, "step", twin=_step)
PUT = gk.Kernel(_PUT, "put", twin=_put)
MIX = gk.Kernel(_MIX, "mix", twin=_mix)
REMAINDER = gk.Kernel(_REMAINDER, "rest", twin=_remainder)
DECREMENT = gk.Kernel(_DECREMENT, "decrement", twin=_decrement)
STEP_HANDLE = gk.Kernel(_SET, "step_handle", twin=_step_handle)
SET_HANDLE = gk.Kernel(_SET, "set_handle", twin=_set_handle)
EUCLID = gk.Kernel(_EUCLID, "euclid", twin=_euclid)
