"""Parameters: the CUDA C signature as it is written in the wild, and values packed and refused."""

from __future__ import annotations

import ctypes

import ml_dtypes
import numpy as np
import pytest
from sample_kernels import ADD_SCALAR

import graphkit as gk
from graphkit.c_signature import parse_signature
from graphkit.launch_config import dim3
from graphkit.params import ArgumentBlock

BF16 = np.dtype(ml_dtypes.bfloat16)
VEC = np.dtype([("x", np.float32), ("y", np.float32), ("n", np.int64)])


def text(signature, **kwargs):
    return [str(item) for item in parse_signature(signature, **kwargs)]


# --- one parameter -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declaration", "expected"),
    [
        ("int n", "int32 n"),
        ("const int n", "int32 n"),
        ("int const n", "int32 n"),
        ("unsigned n", "uint32 n"),
        ("unsigned int n", "uint32 n"),
        ("signed int n", "int32 n"),
        ("short n", "int16 n"),
        ("short int n", "int16 n"),
        ("unsigned short int n", "uint16 n"),
        ("long n", "int64 n"),
        ("long int n", "int64 n"),
        ("long unsigned int n", "uint64 n"),
        ("unsigned long n", "uint64 n"),
        ("long long n", "int64 n"),
        ("long long int n", "int64 n"),
        ("unsigned long long n", "uint64 n"),
        ("unsigned long long int n", "uint64 n"),
        ("int64_t n", "int64 n"),
        ("int32_t n", "int32 n"),
        ("uint8_t n", "uint8 n"),
        ("std::uint16_t n", "uint16 n"),
        ("size_t n", "uint64 n"),
        ("std::size_t n", "uint64 n"),
        ("ptrdiff_t n", "int64 n"),
        ("uintptr_t n", "uint64 n"),
        ("char c", "int8 c"),
        ("unsigned char c", "uint8 c"),
        ("bool b", "bool b"),
        ("float a", "float32 a"),
        ("double a", "float64 a"),
        ("half a", "float16 a"),
        ("__half a", "float16 a"),
        ("__nv_bfloat16 a", "bfloat16 a"),
        ("cudaGraphConditionalHandle h", "uint64 h"),
        ("cudaTextureObject_t t", "uint64 t"),
        ("int n = 4", "int32 n"),
        ("[[maybe_unused]] int n", "int32 n"),
        # unnamed
        ("int", "int32 arg0"),
        ("unsigned int", "uint32 arg0"),
        ("long long", "int64 arg0"),
        ("long int", "int64 arg0"),
        ("unsigned long long int", "uint64 arg0"),
        ("float*", "float32* arg0"),
        ("const float* __restrict__", "const float32* arg0"),
        # pointers
        ("float* x", "float32* x"),
        ("float *x", "float32* x"),
        ("float * x", "float32* x"),
        ("float*x", "float32* x"),
        ("const float* x", "const float32* x"),
        ("float const* x", "const float32* x"),
        ("float const * const x", "const float32* x"),
        ("float* const x", "float32* x"),
        ("const float* __restrict__ x", "const float32* x"),
        ("const float *__restrict__ x", "const float32* x"),
        ("float* __restrict x", "float32* x"),
        ("const volatile int* flag", "const int32* flag"),
        ("unsigned char* bytes", "uint8* bytes"),
        ("unsigned long long* counter", "uint64* counter"),
        ("const __half* __restrict__ w", "const float16* w"),
        ("const __nv_bfloat16* __restrict__ w", "const bfloat16* w"),
        ("void* p", "8 bytes* p"),
        ("const void* p", "const 8 bytes* p"),
        ("half2* v", "8 bytes* v"),
        ("struct Foo* f", "8 bytes* f"),
        ("float** rows", "8 bytes* rows"),
        ("float* const* rows", "const 8 bytes* rows"),
        # a pointer to pointers to const: the pointers themselves may be written
        ("const float** rows", "8 bytes* rows"),
        ("const float* const* rows", "const 8 bytes* rows"),
        ("float x[]", "float32* x"),
        ("float x[16]", "float32* x"),
        ("const int x[4][4]", "const int32* x"),
        ("float (*tiles)[16]", "float32* tiles"),
    ],
)
def test_one_parameter(declaration, expected):
    assert text(declaration) == [expected]


def test_empty_lists():
    assert text("") == text("void") == text("  void ") == []


def test_structs_by_value():
    found = parse_signature(
        "Vec v, const __grid_constant__ Vec w, struct Vec u", types={"Vec": VEC}
    )
    assert [(item.name, item.offset, item.size) for item in found] == [
        ("v", 0, 16),
        ("w", 16, 16),
        ("u", 32, 16),
    ]
    assert found[0].dtype == VEC


def test_a_struct_is_aligned_as_its_widest_member():
    found = parse_signature("char c, Vec v", types={"Vec": VEC})
    assert [item.offset for item in found] == [0, 8]
    nested = np.dtype([("c", np.uint8), ("v", np.int16, (3,))], align=True)
    found = parse_signature("char c, Nested v", types={"Nested": nested})
    assert [item.offset for item in found] == [0, 2]


def test_types_may_have_template_arguments():
    found = parse_signature("Pair<int, float> p, int n", types={"Pair<int, float>": np.int64})
    assert [item.name for item in found] == ["p", "n"]


def test_an_unknown_type_says_how_to_give_its_size():
    with pytest.raises(ValueError, match=r"parameter 1 `float4 v`; pass types=\{\"float4\": "):
        parse_signature("int n, float4 v")


def test_a_name_twice_is_refused():
    with pytest.raises(ValueError, match=r"expected distinct parameter names, came \['x'\] twice"):
        parse_signature("float* x, int x")


@pytest.mark.parametrize(
    ("signature", "offsets"),
    [
        ("char a, short b, int c, long d", [0, 2, 4, 8]),
        ("int a, float* b, bool c, double d", [0, 8, 16, 24]),
        ("bool a, bool b, half c, bool d, int e", [0, 1, 2, 4, 8]),
        ("float* a, char b, float* c", [0, 8, 16]),
    ],
)
def test_offsets_follow_natural_alignment(signature, offsets):
    assert [item.offset for item in parse_signature(signature)] == offsets


# --- a whole file --------------------------------------------------------------------------------

FILE = r"""
#include <cuda_fp16.h>
// extern "C" __global__ void commented_out(double* nothing);
/* __global__ void scale(char a, char b, char c) { } */
#define THREADS 256
static __device__ float square(float x) { return x * x; }

extern "C" __global__ void __launch_bounds__(THREADS, 2)
scale_all(const float* __restrict__ x,   // [n], the input (of any sign)
          float* __restrict__ y,         /* [n], the output, may be x */
          float a,
          int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    printf("/* not a comment: %d", i);
    if (i < n) y[i] = a * square(x[i]);
}

extern "C" __global__ void scale(float* x, size_t n);

extern "C" __global__ void scale(float* x, size_t n) { printf("*/"); }

extern "C"
__global__
void
__launch_bounds__(128)
last(
    __half *h,
    unsigned
        long long seed
)
{ }

extern "C" __global__ void nothing() { }
extern "C" __global__ void nothing_either(void) { }
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("scale_all", ["const float32* x", "float32* y", "float32 a", "int32 n"]),
        ("scale", ["float32* x", "uint64 n"]),
        ("last", ["float16* h", "uint64 seed"]),
        ("nothing", []),
        ("nothing_either", []),
    ],
)
def test_a_kernel_is_found_among_others(name, expected):
    assert text(FILE, name=name) == expected


@pytest.mark.parametrize("name", ["commented_out", "square", "scal", "ast", "THREADS"])
def test_what_is_no_kernel_is_not_found(name):
    with pytest.raises(ValueError, match=rf"expected a definition of `__global__ void {name}\("):
        parse_signature(FILE, name)


def test_a_file_that_ends_in_a_signature_is_refused():
    with pytest.raises(ValueError, match="expected a closing parenthesis"):
        parse_signature("__global__ void f(int a, ", "f")


# --- values --------------------------------------------------------------------------------------


def block(signature, **kwargs):
    return ArgumentBlock(parse_signature(signature, **kwargs))


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("int", 5, np.int32(5)),
        ("int", -5, np.int32(-5)),
        ("int", np.int32(7), np.int32(7)),
        ("int", np.array(7, np.int32), np.int32(7)),
        ("int", True, np.int32(1)),
        ("unsigned", 2**32 - 1, np.uint32(2**32 - 1)),
        ("long long", -(2**63), np.int64(-(2**63))),
        ("size_t", 2**64 - 1, np.uint64(2**64 - 1)),
        ("unsigned char", 255, np.uint8(255)),
        ("bool", True, np.bool_(True)),
        ("bool", np.False_, np.bool_(False)),
        ("float", 1.5, np.float32(1.5)),
        ("float", 3, np.float32(3)),
        ("float", float("-inf"), np.float32("-inf")),
        ("float", 1e39, np.float32("inf")),
        ("half", -1e5, np.float16("-inf")),
        ("__nv_bfloat16", 1e39, BF16.type("inf")),
        ("double", 0.1, np.float64(0.1)),
        ("half", 0.5, np.float16(0.5)),
        ("half", 3, np.float16(3)),
        ("__nv_bfloat16", 0.5, BF16.type(0.5)),
        ("__nv_bfloat16", 3, BF16.type(3)),
        ("__nv_bfloat16", BF16.type(1.5), BF16.type(1.5)),
        ("float*", 0, 0),
        ("float*", 2**48, 2**48),
        ("float*", np.uint64(2**48), 2**48),
    ],
)
def test_a_value_is_packed_and_read(kind, value, expected):
    packed = block(f"{kind} v")
    packed.pack((value,))
    found = packed.value(0)
    assert found == expected
    assert getattr(found, "dtype", int) == getattr(expected, "dtype", int)


@pytest.mark.parametrize(
    ("kind", "value", "error"),
    [
        ("int", 2**31, ValueError),
        ("unsigned", -1, ValueError),
        ("unsigned char", 256, ValueError),
        ("int", 1.0, TypeError),
        ("int", np.int64(1), TypeError),
        ("int", "1", TypeError),
        ("int", None, TypeError),
        ("int", (1, 2), TypeError),
        ("int", np.zeros(3, np.int32), TypeError),
        ("float", np.float64(1), TypeError),
        ("float", 1j, TypeError),
        ("half", np.float32(1), TypeError),
        ("bool", 1, TypeError),
        ("bool", 0.5, TypeError),
        ("float*", -1, ValueError),
        ("float*", 2**64, ValueError),
        ("float*", np.int64(-1), ValueError),
        ("float*", 1.0, TypeError),
        ("float*", None, TypeError),
        ("float*", True, TypeError),
        ("float*", "x", TypeError),
        ("float*", np.zeros(3, np.float32), TypeError),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(kind, value, error):
    packed = block(f"{kind} wanted")
    with pytest.raises(error, match=r"^wanted: expected"):
        packed.pack((value,))


def test_struct_values():
    packed = block("int n, Vec v", types={"Vec": VEC})
    value = np.array((1.0, 2.0, 3), VEC)
    packed.pack((1, value[()]))
    assert packed.value(1) == value
    with pytest.raises(TypeError, match=r"^v: expected"):
        packed.pack((1, (1.0, 2.0, 3)))
    with pytest.raises(TypeError, match=r"^v: expected"):
        packed.pack((1, 5))


def test_values_of_unknown_type_are_bytes_of_the_right_size():
    packed = ArgumentBlock((gk.Parameter("v", 0, 4), gk.Parameter("w", 8, 8)))
    packed.pack((b"abcd", np.float64(2)))
    assert packed.value(0) == b"abcd"
    assert packed.value(1) == np.float64(2).tobytes()
    packed.pack((-2, 2**63))
    assert packed.value(0) == b"\xfe\xff\xff\xff"
    for value, error in ((b"abc", ValueError), (2**32, ValueError), (np.float64(1), ValueError)):
        with pytest.raises(error, match=r"^v: expected 4 bytes"):
            packed.pack((value, 0))
    with pytest.raises(TypeError, match=r"^v: expected 4 bytes as bytes, int, NumPy scalar"):
        packed.pack(([1], 0))


def test_an_array_is_packed_as_its_address(runtime):
    array = gk.zeros((4, 4))
    packed = block("const float* x, void* p, float** q")
    packed.pack((array, array[1:], array))
    assert [packed.value(i) for i in range(3)] == [array.ptr, array.ptr + 16, array.ptr]


def test_an_array_for_a_parameter_of_unknown_type(runtime):
    array = gk.zeros(4)
    packed = ArgumentBlock((gk.Parameter("v", 0, 8), gk.Parameter("w", 8, 4)))
    packed.pack((array, 0))
    assert packed.value(0) == array.ptr.to_bytes(8, "little")
    with pytest.raises(TypeError, match="v: expected an array in device memory"):
        packed.pack((np.zeros(4), 0))
    with pytest.raises(ValueError, match="w: expected 4 bytes, came 8"):
        packed.pack((array, array))


def test_arrays_of_another_dtype_and_freed_ones_are_refused(runtime):
    packed = block("float* x")
    with pytest.raises(TypeError, match="x: expected an array of float32, came int8"):
        packed.pack((gk.zeros(4, np.int8),))
    with pytest.raises(TypeError, match="x: expected an array in device memory"):
        packed.pack((gk.empty_pinned(4),))
    gone = gk.zeros(4)
    gone.free()
    with pytest.raises(ValueError, match="freed"):
        packed.pack((gone,))


def test_the_layout_that_cuda_reads():
    packed = block("char a, double b, short c")
    packed.pack((1, 2.0, 3))
    table = (ctypes.c_uint64 * 3).from_address(packed.kernel_params)
    assert ctypes.c_int8.from_address(table[0]).value == 1
    assert ctypes.c_double.from_address(table[1]).value == 2
    assert ctypes.c_int16.from_address(table[2]).value == 3
    assert [address - table[0] for address in table] == [0, 8, 16]
    assert not packed.extra


def test_a_block_through_extra_is_one_piece():
    packed = ArgumentBlock(parse_signature("int a, float* b"), nbytes=24)
    packed.pack((1, 4096))
    words = (ctypes.c_uint64 * 5).from_address(packed.extra)
    assert [words[0], words[2], words[4]] == [1, 2, 0]
    assert ctypes.c_size_t.from_address(words[3]).value == 24
    assert ctypes.c_uint64.from_address(words[1] + 8).value == 4096
    assert not packed.kernel_params


@pytest.mark.parametrize("nbytes", [0, 24])
def test_a_copy_is_independent(nbytes):
    packed = ArgumentBlock(parse_signature("int a, float* b"), nbytes=nbytes)
    packed.pack((1, 4096))
    other = packed.copy()
    packed.pack((2, 8192))
    assert (other.value(0), other.value(1)) == (1, 4096)
    assert bool(other.extra) == bool(nbytes)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), r"expected 3 arguments \(x, a, n\), came 0"),
        ((0, 1.0), r"expected 3 arguments \(x, a, n\), came 2"),
        ((0, 1.0, 2, 3), r"expected 3 arguments \(x, a, n\), came 4"),
        ({"x": 0, "a": 1.0}, r"all but \['n'\]"),
        ({"x": 0, "a": 1.0, "n": 2, "m": 3}, r"unknown \['m'\]"),
        ({"x": 0, "a": 1.0, 2: 2}, r"unknown \['2'\]"),
        ("xan", "expected a tuple or a dict of 3 arguments"),
        (None, "came NoneType"),
        (5, "came int"),
    ],
)
def test_too_many_too_few_or_unknown_arguments(args, message):
    with pytest.raises(TypeError, match=f"^args: expected .*{message.removeprefix('expected ')}"):
        block("float* x, float a, int n").pack(args)


def test_arguments_by_name_come_back_in_order():
    packed = block("float* x, float a, int n")
    assert packed.pack({"n": 3, "x": 64, "a": 2.0}) == [64, 2.0, 3]
    assert packed.pack([64, 2.0, 3]) == [64, 2.0, 3]
    assert (packed.value(0), packed.value(1), packed.value(2)) == (64, 2.0, 3)


@pytest.mark.parametrize("key", ["b", 2, -1, 1.0, None])
def test_a_key_that_is_no_parameter(key):
    with pytest.raises(TypeError, match=r"args: expected a parameter of \['x', 'n'\]"):
        block("float* x, int n").index(key)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, (5, 1, 1)),
        (70000, (70000, 1, 1)),
        (np.int64(5), (5, 1, 1)),
        ((2, 3), (2, 3, 1)),
        ([2, 3, 4], (2, 3, 4)),
    ],
)
def test_extents(value, expected):
    assert dim3(value, "grid") == expected


@pytest.mark.parametrize(
    ("value", "argument", "error"),
    [
        (0, "grid", ValueError),
        (-1, "grid", ValueError),
        ((4, 0), "grid", ValueError),
        ((), "grid", ValueError),
        ((1, 2, 3, 4), "grid", ValueError),
        (2**31, "grid", ValueError),
        ((1, 65536), "grid", ValueError),
        (1025, "block", ValueError),
        ((1, 1, 65), "block", ValueError),
        ((32, 33), "block", ValueError),
        (1.0, "grid", TypeError),
        ((1, 2.0), "grid", TypeError),
        ("12", "grid", TypeError),
        (None, "block", TypeError),
    ],
)
def test_extents_that_cuda_does_not_take(value, argument, error):
    with pytest.raises(error, match=f"^{argument}: expected"):
        dim3(value, argument)


def test_the_driver_agrees_about_the_layout(runtime):
    from graphkit.c_signature import opaque_parameters

    found = opaque_parameters(runtime, ADD_SCALAR.function())
    assert [(item.offset, item.size) for item in found] == [
        (item.offset, item.size) for item in ADD_SCALAR.parameters
    ]
    assert [item.name for item in found] == ["arg0", "arg1", "arg2", "arg3"]


def test_bfloat16_takes_no_complex_number():
    block = ArgumentBlock(parse_signature("__nv_bfloat16 a"))
    with pytest.raises(TypeError, match="a: expected a scalar of bfloat16, came complex"):
        block.pack((1j,))
    block.pack((1.5,))
    assert block.value(0) == 1.5
