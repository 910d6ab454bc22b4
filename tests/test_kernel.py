"""Kernels: launching them, what a twin is given, functions that were loaded elsewhere."""

from __future__ import annotations

import threading

import ml_dtypes
import numpy as np
import pytest
from sample_kernels import ADD_SCALAR, BLOCKS, INCREMENT

import graphkit as gk
from graphkit.kernel import kernel_of, launch_attributes
from graphkit.runtime.protocol import KernelSource

N = 8
BF16 = np.dtype(ml_dtypes.bfloat16)
VEC = np.dtype([("x", np.float32), ("n", np.int64)], align=True)

_MIXED = r"""
struct Vec { float x; long long n; };
extern "C" __global__ void mixed(
    unsigned char a, double* out, short b, const Vec v, bool c, long long d, float e)
{
    out[0] = a; out[1] = b; out[2] = v.x; out[3] = v.n; out[4] = c; out[5] = d; out[6] = e;
}
"""


def _mixed(launch, a, out, b, v, c, d, e):
    out.view(7)[:] = [a, b, v["x"], v["n"], c, d, e]


MIXED = gk.Kernel(_MIXED, "mixed", twin=_mixed, types={"Vec": VEC})

_SHARED = r"""
extern "C" __global__ void shared_size(unsigned* out) {
    extern __shared__ char memory[];
    unsigned size;
    asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(size));
    memory[0] = 1;
    *out = size;
}
"""


def _shared_size(launch, out):
    out.view(1)[0] = launch.shared_mem


SHARED = gk.Kernel(_SHARED, "shared_size", twin=_shared_size)

_SHAPE = r"""
extern "C" __global__ void shape(int* out) {
    if (blockIdx.x || blockIdx.y || blockIdx.z || threadIdx.x || threadIdx.y || threadIdx.z) return;
    out[0] = gridDim.x; out[1] = gridDim.y; out[2] = gridDim.z;
    out[3] = blockDim.x; out[4] = blockDim.y; out[5] = blockDim.z;
}
"""


def _shape(launch, out):
    out.view(6)[:] = [*launch.grid, *launch.block]


SHAPE = gk.Kernel(_SHAPE, "shape", twin=_shape)

_HALVES = r"""
extern "C" __global__ void halves(
    const unsigned short* __restrict__ from, __half* h, __nv_bfloat16* b, __half a);
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern "C" __global__ void halves(
    const unsigned short* __restrict__ from, __half* h, __nv_bfloat16* b, __half a)
{
    h[0] = a; b[0] = __float2bfloat16(__half2float(a));
}
"""


@pytest.fixture
def x(runtime):
    return gk.asarray(np.arange(N, dtype=np.float32))


@pytest.fixture
def y(runtime):
    return gk.zeros(N)


# --- launching -----------------------------------------------------------------------------------


def test_a_call_launches(x, y, stream):
    ADD_SCALAR(1, 32, (x, y, 2.0, N), stream=stream)
    stream.synchronize()
    assert np.array_equal(y.get(), x.get() + 2)


def test_arguments_by_name_in_any_order(x, y, stream):
    ADD_SCALAR(1, 32, {"n": N, "a": 2.0, "y": y, "x": x}, stream=stream)
    stream.synchronize()
    assert np.array_equal(y.get(), x.get() + 2)


def test_views_and_addresses_are_pointers(x, y, stream):
    ADD_SCALAR(1, 32, (x[4:], y.ptr + 16, 2.0, 4), stream=stream)
    stream.synchronize()
    assert y.get().tolist() == [0, 0, 0, 0, 6, 7, 8, 9]


def test_scalars_and_structs_arrive_as_they_left(runtime, stream):
    out = gk.zeros(7, np.float64)
    value = np.array((1.5, 2**40), VEC)[()]
    MIXED(1, 1, (200, out, -3, value, True, -(2**50), 0.25), stream=stream)
    stream.synchronize()
    assert out.get().tolist() == [200, -3, 1.5, 2**40, 1, -(2**50), 0.25]


@pytest.mark.parametrize(
    ("grid", "block", "expected"),
    [
        (3, 32, [3, 1, 1, 32, 1, 1]),
        ((2, 3), (4, 5), [2, 3, 1, 4, 5, 1]),
        ([2, 3, 4], (8, 4, 2), [2, 3, 4, 8, 4, 2]),
        (np.int64(70000), np.int32(64), [70000, 1, 1, 64, 1, 1]),
    ],
)
def test_grid_and_block(runtime, stream, grid, block, expected):
    out = gk.zeros(6, np.int32)
    SHAPE(grid, block, (out,), stream=stream)
    stream.synchronize()
    assert out.get().tolist() == expected


@pytest.mark.parametrize("pairs", [{"cluster": 2}, {"cooperative": True}, {"priority": -1}])
def test_attributes_of_a_launch(runtime, stream, pairs):
    seen = gk.zeros(4, np.int32)
    BLOCKS(4, 32, (seen,), stream=stream, **pairs)
    stream.synchronize()
    assert seen.get().tolist() == [4032] * 4


def test_a_programmatic_launch_runs_after_what_it_does_not_touch(runtime, stream):
    seen, other = gk.zeros(4, np.int32), gk.zeros(4, np.int32)
    BLOCKS(4, 32, (other,), stream=stream)
    BLOCKS(4, 32, (seen,), stream=stream, programmatic=True)
    stream.synchronize()
    assert seen.get().tolist() == other.get().tolist() == [4032] * 4


def test_dynamic_shared_memory(runtime, stream):
    out = gk.zeros(1, np.uint32)
    SHARED(1, 1, (out,), stream=stream, shared_mem=1024)
    stream.synchronize()
    assert out.get() == [1024]


def test_more_than_48_kib_must_be_allowed_first(runtime, stream):
    out = gk.zeros(1, np.uint32)
    kernel = gk.Kernel(_SHARED, "shared_size", twin=_shared_size)
    kernel.max_dynamic_shared_size_bytes = 48 << 10
    with pytest.raises(gk.CudaError) as caught:
        kernel(1, 1, (out,), stream=stream, shared_mem=64 << 10)
    assert caught.value.name == "cudaErrorInvalidValue"
    kernel.max_dynamic_shared_size_bytes = 64 << 10
    assert kernel.max_dynamic_shared_size_bytes == 64 << 10
    kernel(1, 1, (out,), stream=stream, shared_mem=64 << 10)
    stream.synchronize()
    assert out.get() == [64 << 10]


def test_more_shared_memory_than_there_is_cannot_be_allowed(runtime):
    with pytest.raises(gk.CudaError):
        SHARED.max_dynamic_shared_size_bytes = 1 << 20


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"grid": 0}, ValueError, "grid: expected"),
        ({"block": (0, 1)}, ValueError, "block: expected"),
        ({"block": 1025}, ValueError, "block: expected"),
        ({"grid": 1.5}, TypeError, "grid: expected"),
        ({"args": ()}, TypeError, r"args: expected 1 arguments \(seen\), came 0"),
        ({"args": (0, 1)}, TypeError, r"args: expected 1 arguments \(seen\), came 2"),
        ({"args": {"sean": 0}}, TypeError, r"unknown \['sean'\]"),
        ({"args": (np.zeros(4, np.int32),)}, TypeError, "seen: expected an array in device memory"),
        ({"args": (1.5,)}, TypeError, "seen: expected"),
        ({"shared_mem": -1}, ValueError, "shared_mem: expected 0 or more"),
        ({"shared_mem": 1.0}, TypeError, "shared_mem: expected bytes"),
        ({"shared_mem": True}, TypeError, "shared_mem: expected bytes"),
        ({"stream": None}, TypeError, "stream: expected"),
        ({"cluster": 3}, ValueError, "cluster: expected extents that divide grid"),
        ({"cluster": 0}, ValueError, "cluster: expected"),
    ],
)
def test_a_refused_launch_launches_nothing(runtime, stream, call, error, message):
    seen = gk.zeros(4, np.int32)
    good = {"grid": 4, "block": 32, "args": (seen,), "stream": stream}
    with pytest.raises(error, match=message):
        BLOCKS(**(good | call))
    stream.synchronize()
    assert not seen.get().any()
    BLOCKS(**good)
    stream.synchronize()
    assert seen.get().all()


def test_threads_pack_apart(runtime):
    counters = [gk.zeros(1, np.int32) for _ in range(4)]

    def work(counter):
        stream = gk.Stream(runtime=runtime)
        for _ in range(50):
            INCREMENT(1, 1, (counter, 1), stream=stream)
        stream.synchronize()

    threads = [threading.Thread(target=work, args=(counter,)) for counter in counters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [int(counter.get()[0]) for counter in counters] == [50] * 4


def test_attributes_are_those_that_differ_from_the_default():
    assert launch_attributes(4) == ()
    ids = gk.LaunchAttributeID
    assert launch_attributes((4, 2), (2, 1), True, -1, True) == (
        (ids.CLUSTER_DIMENSION, (2, 1, 1)),
        (ids.COOPERATIVE, (1,)),
        (ids.PRIORITY, (-1,)),
        (ids.PROGRAMMATIC_STREAM_SERIALIZATION, (1,)),
    )


# --- what a kernel is ----------------------------------------------------------------------------


def test_repr_shows_the_signature():
    assert (
        repr(ADD_SCALAR) == "<Kernel add_scalar(const float32* x, float32* y, float32 a, int32 n)>"
    )


def test_a_kernel_that_is_not_in_the_source_is_refused_at_once():
    with pytest.raises(ValueError, match="expected a definition of `__global__ void absent"):
        gk.Kernel(_SHAPE, "absent")


def test_half_types_are_read_from_the_source():
    kernel = gk.Kernel(_HALVES, "halves")
    assert [str(item) for item in kernel.parameters] == [
        "const uint16* from",
        "float16* h",
        "bfloat16* b",
        "float16 a",
    ]


def test_a_function_is_loaded_once_and_known_by_its_handle(runtime):
    handle = ADD_SCALAR.function()
    assert ADD_SCALAR.function() == handle
    assert kernel_of(runtime, handle) is ADD_SCALAR
    assert runtime.func_get_name(handle) == "add_scalar"
    assert kernel_of(runtime, handle + 1) is None


def test_a_signature_that_the_compiled_function_contradicts(runtime):
    # As large an unknown struct as the dtype says it is not.
    wrong = gk.Kernel.wrap(MIXED.function(), name="mixed")
    assert len(wrong.parameters) == 7
    with pytest.raises(ValueError, match=r"expected the \(offset, size\) of parameters"):
        gk.Kernel.wrap(MIXED.function(), "double* out")


# --- functions loaded elsewhere ------------------------------------------------------------------


def test_wrap_a_function_without_a_signature(x, y, stream):
    kernel = gk.Kernel.wrap(ADD_SCALAR.function())
    assert kernel.name == "add_scalar"
    assert [(item.name, item.size) for item in kernel.parameters] == [
        ("arg0", 8),
        ("arg1", 8),
        ("arg2", 4),
        ("arg3", 4),
    ]
    kernel(1, 32, (x, y, np.float32(2), N), stream=stream)
    stream.synchronize()
    assert np.array_equal(y.get(), x.get() + 2)
    with pytest.raises(TypeError, match="arg2: expected 4 bytes"):
        kernel(1, 32, (x, y, 2.0, N), stream=stream)


def test_wrap_a_function_with_a_signature(x, y, stream):
    kernel = gk.Kernel.wrap(
        ADD_SCALAR.function(), "const float* from, float* to, float a, int n", name="other"
    )
    assert kernel.name == "other"
    kernel(1, 32, {"from": x, "to": y, "a": 2, "n": N}, stream=stream)
    stream.synchronize()
    assert np.array_equal(y.get(), x.get() + 2)


def test_wrap_takes_what_cupy_makes(x, y, stream):
    class RawKernel:
        """CuPy's: its function is ``kernel.ptr``, its source ``code``."""

        def __init__(self, kernel):
            self.kernel = type("Function", (), {"ptr": kernel.function()})()
            self.code = kernel.code

    kernel = gk.Kernel.wrap(RawKernel(ADD_SCALAR))
    assert [item.name for item in kernel.parameters] == ["x", "y", "a", "n"]
    kernel(1, 32, (x, y, 2.0, N), stream=stream)
    stream.synchronize()
    assert np.array_equal(y.get(), x.get() + 2)


@pytest.mark.parametrize("function", [None, 0, True, "add_scalar", object(), len])
def test_wrap_refuses_what_is_no_function(runtime, function):
    with pytest.raises(TypeError, match="function: expected a CuPy RawKernel"):
        gk.Kernel.wrap(function)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"signature": 5}, "signature: expected a str, came int"),
        ({"name": b"k"}, "name: expected a str, came bytes"),
        ({"types": "Vec"}, "types: expected NumPy dtypes by their C name, came str"),
    ],
)
def test_wrap_refuses_options_of_other_types(runtime, options, message):
    with pytest.raises(TypeError, match=f"^{message}"):
        gk.Kernel.wrap(ADD_SCALAR.function(), **options)


def test_a_wrapped_function_belongs_to_its_runtime(runtime):
    kernel = gk.Kernel.wrap(ADD_SCALAR.function())
    other = gk.use("sim")
    with pytest.raises(ValueError, match="expected the runtime it was wrapped in"):
        kernel.function(other)


def test_what_the_compiler_says_is_in_the_error(runtime, stream):
    broken = 'extern "C" __global__ void broken(int* p) { *p = undeclared; }'
    kernel = gk.Kernel(broken, "broken")
    before = gk.live_handles()
    # The simulator has no compiler, and nothing to run without a twin.
    with pytest.raises(gk.GraphkitError, match=r"undeclared|twin"):
        kernel(1, 1, (0,), stream=stream)
    assert gk.live_handles() == before


# --- twins ---------------------------------------------------------------------------------------


def run_twin(twin, code, args, name="k", grid=1, block=1):
    stream = gk.Stream()
    gk.Kernel(code, name, twin=twin)(grid, block, args, stream=stream)
    try:
        stream.synchronize()
    finally:
        stream.close()


POINTERS = 'extern "C" __global__ void k(const float* x, float* y, void* p, int n) {}'


def test_a_twin_is_given_pointers_and_scalars(sim):
    seen = {}

    def twin(launch, x, y, p, n):
        seen.update(launch=launch, x=x.address, null=bool(p), there=bool(x), n=n)
        assert x.view(2).dtype == np.float32
        assert x.view((2, 2)).shape == (2, 2)
        assert x.view(np.int64(2)).shape == (2,)
        assert x.view(2, offset=2).tolist() == [2, 3]
        assert x.view(4, dtype=np.uint16).nbytes == 8
        assert y.view(0).shape == (0,)

    array = gk.asarray(np.arange(4, dtype=np.float32))
    run_twin(twin, POINTERS, (array, array, 0, 4), grid=(2, 3), block=64)
    assert seen.pop("launch") == gk.Launch((2, 3, 1), (64, 1, 1), 0)
    assert seen == {"x": array.ptr, "null": False, "there": True, "n": 4}
    assert type(seen["n"]) is np.int32


def test_what_is_const_cannot_be_written(sim):
    def twin(launch, x, y, p, n):
        x.view(2)[:] = 0

    array = gk.zeros(4)
    with pytest.raises(ValueError, match="read-only"):
        run_twin(twin, POINTERS, (array, array, 0, 4))


def test_an_untyped_pointer_needs_a_dtype(sim):
    def twin(launch, x, y, p, n):
        p.view(1, dtype=np.int8)
        p.view(1)

    array = gk.zeros(4)
    with pytest.raises(TypeError, match=r"p: expected a dtype for `8 bytes\* p`"):
        run_twin(twin, POINTERS, (array, array, array, 4))


@pytest.mark.parametrize(("shape", "offset"), [(5, 0), (1, 4), (1, -1), ((2, 3), 0), (1 << 40, 0)])
def test_a_view_past_the_end_of_the_memory(sim, shape, offset):
    def twin(launch, x, y, p, n):
        y.view(shape, offset)

    array = gk.zeros(4)
    with pytest.raises(gk.SimulationError, match="bytes"):
        run_twin(twin, POINTERS, (array, array, 0, 4))


def test_a_view_of_freed_memory(sim):
    def twin(launch, x, y, p, n):
        y.view(1)

    array = gk.zeros(4)
    address = array.ptr
    array.free()
    with pytest.raises(gk.SimulationError, match="freed"):
        run_twin(twin, POINTERS, (0, address, 0, 4))


def test_a_view_through_a_null_pointer(sim):
    def twin(launch, x, y, p, n):
        x.view(1)

    with pytest.raises(gk.SimulationError):
        run_twin(twin, POINTERS, (0, 0, 0, 4))


def test_two_kernels_that_race_are_told(sim):
    counter = gk.zeros(1, np.int32)
    one, other = gk.Stream(), gk.Stream()
    INCREMENT(1, 1, (counter, 1), stream=one)
    INCREMENT(1, 1, (counter, 1), stream=other)
    with pytest.raises(gk.SimulationError, match="race"):
        sim.device_synchronize()
    counter.set([7])
    INCREMENT(1, 1, (counter, 1), stream=one)
    one.synchronize()
    assert counter.get() == [8]


def test_a_twin_must_be_there_where_there_is_no_compiler(sim):
    kernel = gk.Kernel(_SHAPE, "shape")
    with pytest.raises(gk.NotSimulated, match="twin"):
        kernel(1, 1, (gk.zeros(6, np.int32),), stream=0)


def test_a_function_unknown_to_graphkit_has_no_kernel(runtime):
    source = KernelSource(SHAPE.code, "shape", (), ((0, 8),), lambda launch: None)
    loaded = runtime.function_load(source)
    assert kernel_of(runtime, loaded.handle) is None


_VEC = 'extern "C" __global__ void k(Vec v) {}'


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((b"", "k"), {}, "code: expected a str, came bytes"),
        (("void k() {}", None), {}, "name: expected a str, came NoneType"),
        (("void k() {}", ""), {}, "name: expected the kernel's name"),
        (("void k() {}", "k"), {"twin": 1}, "twin: expected a function, came int"),
        (("void k() {}", "k"), {"options": "-std=c++17"}, "options: expected a sequence of str"),
        ((_VEC, "k"), {"types": 5}, "types: expected NumPy dtypes by their C name, came int"),
        ((_VEC, "k"), {"types": [("Vec", "f4")]}, "types: expected NumPy dtypes by .*, came list"),
        ((_VEC, "k"), {"types": {5: "f4"}}, "types: expected C names, came 5"),
        ((_VEC, "k"), {"types": {"Vec": 5}}, r"types\['Vec'\]: expected a NumPy dtype .*, came 5"),
        (
            (_VEC, "k"),
            {"types": {"Vec": object}},
            r"types\['Vec'\]: expected a NumPy dtype of byte",
        ),
        ((_VEC, "k"), {"types": {"Vec": "V0"}}, r"types\['Vec'\]: expected a NumPy dtype"),
        ((_VEC, "k"), {"types": {"Vec": None}}, r"types\['Vec'\]: expected a NumPy dtype"),
    ],
)
def test_kernels_that_cannot_be(arguments, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        gk.Kernel(*arguments, **options)
