"""Functions of PyTorch, CuPy, Numba, Triton and cuda.core: captured once, bound to other buffers.

A row is a function with random buffers. It is bound once; then, twice, to fresh buffers of other
random contents, with everything that it should write poisoned, and everything that it should no
longer read. What the launch leaves in every buffer and result must equal, bit for bit, what the
function leaves eagerly. Rows that cannot be rebound say with which error.

With ``GRAPHKIT_REBIND_TABLE=<file>`` the outcome of every row is written there as JSON. Nothing
here runs without a device.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from sample_kernels import ADD_SCALAR, AXPY

import graphkit as gk
from graphkit.frameworks import current_stream
from graphkit.runtime.protocol import CaptureStatus, NodeType
from graphkit.user_function import UserFunction

DEVICE = "cuda"


# --- the table -----------------------------------------------------------------------------------

TABLE: list[dict[str, Any]] = []


@contextmanager
def noting(case, seconds):
    """Yield the case's line of the table; what is raised decides on its outcome.

    Whatever takes longer than ``seconds`` fails: in Python by an exception, outside of it by the
    end of the process.
    """
    row: dict[str, Any] = {"case": case, "outcome": "failed", "touched": 0, "slots": 0}

    def late(*_):
        raise TimeoutError(f"{case}: took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    faulthandler.dump_traceback_later(2 * seconds + 60, exit=True)
    try:
        yield row
    except pytest.skip.Exception as absent:
        row.update(outcome="absent", error=str(absent))
        raise
    except AssertionError as error:
        row.update(outcome="wrong", error=_in_one_line(error))
        raise
    except BaseException as error:
        row.update(outcome="failed", error=_in_one_line(error))
        raise
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        TABLE.append(row)
        if path := os.environ.get("GRAPHKIT_REBIND_TABLE"):
            # After every row: the next one may end the process.
            Path(path).write_text(json.dumps(TABLE, indent=1) + "\n", encoding="utf-8")


def _in_one_line(error):
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:500]


# --- arrays of anybody ---------------------------------------------------------------------------


def arrays_in(value):
    """List the arrays in what a function returned."""
    if value is None:
        return []
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [array for item in value for array in arrays_in(item)]
    return [value]


def bits(array):
    """Return the elements as bytes, in order."""
    kind = type(array).__module__.partition(".")[0]
    if kind == "torch":
        import torch

        flat = array.detach().cpu().contiguous().reshape(-1)
        return flat.view(torch.uint8).numpy().tobytes()
    if kind == "cupy":
        return array.get().tobytes()
    return array.get().tobytes() if kind == "graphkit" else np.asarray(array).tobytes()


def assign(target, source, stream):
    """Copy elements to an array of the same library."""
    kind = type(target).__module__.partition(".")[0]
    if kind == "torch":
        target.copy_(source)
    elif kind == "cupy":
        target[...] = source
    else:
        gk.memcpy_async(target, source, stream)


def poison(array, stream, byte=0xFF):
    """Fill an array, gaps included, with bytes that are no number in any type of float."""
    info = gk.describe(array)
    steps = [(n - 1) * step for n, step in zip(info.shape, info.strides, strict=True)]
    nbytes = sum(steps) + info.dtype.itemsize
    gk.memset_async(info.ptr, byte, stream, nbytes=nbytes)


def without_gradients():
    """Return a context in which PyTorch, where it is imported, keeps nothing for gradients."""
    torch = sys.modules.get("torch")
    return nullcontext() if torch is None else torch.no_grad()


# --- rows ----------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A function and its buffers, made by ``make(stream)``: (function, draw).

    ``draw()`` returns fresh buffers by name. Those whose names begin with ``out`` are written in
    full before anything of them is read. ``error`` is the type and the words of the refusal.
    """

    name: str
    make: Callable[..., Any]
    error: tuple[type[Exception], str] | None = None
    seconds: int = 90


ROWS: list[Row] = []


def row(name, *values, error=None, seconds=90):
    """Enter a function that makes a row into the list, once for each tuple of values."""

    def enter(make):
        for given in values or [()]:
            label = name.format(*given)
            ROWS.append(Row(label, partial(make, *given), error, seconds))
        return make

    return enter


def torch_randoms(shapes, dtype="float32"):
    """Return a function that draws tensors by name."""
    import torch

    def draw():
        return {
            name: torch.randn(*shape, device=DEVICE, dtype=getattr(torch, dtype))
            for name, shape in shapes.items()
        }

    return draw


def torch_module(make, dtype="bfloat16"):
    """Return a module of random weights."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return make(torch).to(DEVICE, getattr(torch, dtype)).eval().requires_grad_(False)


# --- PyTorch: matrix products --------------------------------------------------------------------


@row("PyTorch linear, GELU, linear, layer norm, bfloat16, batch {0}", (1,), (4,), (512,))
def _mlp(batch, stream):
    def make(torch):
        nn = torch.nn
        return nn.Sequential(
            nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 1024), nn.LayerNorm(1024)
        )

    model = torch_module(make)
    return lambda x: model(x), torch_randoms({"x": (batch, 1024)}, "bfloat16")


@row("PyTorch matmul, {0}, {1} x {1}", ("float32", 256), ("float16", 1024), ("bfloat16", 96))
def _matmul(dtype, n, stream):
    pytest.importorskip("torch")
    return lambda x, w: x @ w, torch_randoms({"x": (n, n), "w": (n, n)}, dtype)


@row("PyTorch addmm into a buffer, bfloat16, every operand bound")
def _addmm(stream):
    torch = pytest.importorskip("torch")

    def fn(bias, x, w, out):
        torch.addmm(bias, x, w, out=out)

    shapes = {"bias": (512,), "x": (64, 256), "w": (256, 512), "out": (64, 512)}
    return fn, torch_randoms(shapes, "bfloat16")


@row("PyTorch batched matmul, float32")
def _bmm(stream):
    torch = pytest.importorskip("torch")
    return lambda x, w: torch.bmm(x, w), torch_randoms({"x": (16, 64, 80), "w": (16, 80, 48)})


@row("PyTorch linear backward, float32: gradients on PyTorch's own threads")
def _backward(stream):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    weight = torch.randn(256, 128, device=DEVICE, requires_grad=True)

    def fn(x, target):
        with torch.enable_grad():
            loss = torch.nn.functional.mse_loss(torch.tanh(x @ weight.T), target)
            return torch.autograd.grad(loss, weight)

    return fn, torch_randoms({"x": (64, 128), "target": (64, 256)})


# --- PyTorch: attention --------------------------------------------------------------------------


@row(
    "PyTorch attention, {0} back end, {1}",
    ("FLASH_ATTENTION", "bfloat16", False),
    ("FLASH_ATTENTION", "float16", True),
    ("MATH", "float32", False),
    ("EFFICIENT_ATTENTION", "float16", False),
    ("CUDNN_ATTENTION", "bfloat16", True),
)
def _attention(backend, dtype, causal, stream):
    torch = pytest.importorskip("torch")
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def fn(q, k, v):
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    return fn, torch_randoms(dict.fromkeys("qkv", (1, 8, 128, 64)), dtype)


@row("Hugging Face Llama layer, bfloat16, {0} x {1} tokens", (2, 64), (1, 1), seconds=120)
def _llama(batch, tokens, stream):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama import modeling_llama

    config = transformers.LlamaConfig(
        hidden_size=512,
        intermediate_size=1408,
        num_attention_heads=8,
        num_key_value_heads=2,
        num_hidden_layers=1,
        vocab_size=1000,
    )
    config._attn_implementation = "sdpa"
    layer = torch_module(lambda _: modeling_llama.LlamaDecoderLayer(config, 0))
    rotary = modeling_llama.LlamaRotaryEmbedding(config).to(DEVICE)

    def fn(x, positions):
        return layer(x, position_embeddings=rotary(x, positions))

    def draw():
        return {
            "x": torch.randn(batch, tokens, 512, device=DEVICE, dtype=torch.bfloat16),
            "positions": torch.randint(0, 2000, (batch, tokens), device=DEVICE),
        }

    return fn, draw


# --- PyTorch: the rest ---------------------------------------------------------------------------


@row("PyTorch softmax and top-k")
def _top_k(stream):
    torch = pytest.importorskip("torch")

    def fn(x):
        return tuple(torch.topk(torch.softmax(x.float(), -1), 8))

    return fn, torch_randoms({"x": (4, 32000)}, "bfloat16")


@row("PyTorch layer norm of a view with gaps, bfloat16")
def _view(stream):
    torch = pytest.importorskip("torch")
    draw = torch_randoms({"x": (8, 1024)}, "bfloat16")
    return (
        lambda x: torch.nn.functional.layer_norm(x, (512,)),
        lambda: {"x": draw()["x"][:, 512:]},
    )


@row("PyTorch GELU of a view that is 2 bytes off, bfloat16")
def _unaligned(stream):
    torch = pytest.importorskip("torch")
    draw = torch_randoms({"x": (4097,)}, "bfloat16")
    return lambda x: torch.nn.functional.gelu(x), lambda: {"x": draw()["x"][1:]}


@row(
    "PyTorch convolution, bias, ReLU (cuDNN), {0}, {1}",
    ("float32", "contiguous_format"),
    ("bfloat16", "channels_last"),
)
def _convolution(dtype, layout, stream):
    torch = pytest.importorskip("torch")
    layout = getattr(torch, layout)
    model = torch_module(lambda torch: torch.nn.Conv2d(32, 64, 3, padding=1), dtype)
    model = model.to(memory_format=layout)
    draw = torch_randoms({"x": (4, 32, 40, 40)}, dtype)
    return lambda x: torch.relu(model(x)), lambda: {"x": draw()["x"].to(memory_format=layout)}


@row("PyTorch embedding lookup")
def _embedding(stream):
    torch = pytest.importorskip("torch")
    table = torch.randn(1000, 256, device=DEVICE)

    def draw():
        return {"ids": torch.randint(0, 1000, (4, 64), device=DEVICE)}

    return lambda ids: torch.nn.functional.embedding(ids, table), draw


@row("PyTorch scatter-add of integers into a buffer")
def _scatter(stream):
    torch = pytest.importorskip("torch")

    def fn(ids, x, out):
        out.zero_()
        out.scatter_add_(0, ids, x)

    def draw():
        ints = partial(torch.randint, device=DEVICE)
        return {
            "ids": ints(0, 100, (4096,)),
            "x": ints(0, 1 << 40, (4096,)),
            "out": torch.empty(100, dtype=torch.int64, device=DEVICE),
        }

    return fn, draw


@row("PyTorch sum, variance, maximum")
def _reductions(stream):
    pytest.importorskip("torch")
    return lambda x: (x.sum(), x.var(0), x.max(1)), torch_randoms({"x": (512, 3000)})


@row("PyTorch sort and cumulative sum")
def _sort(stream):
    torch = pytest.importorskip("torch")

    def fn(x):
        return *torch.sort(x), torch.cumsum(x, -1)

    return fn, torch_randoms({"x": (8, 20000)})


@row("PyTorch cat of two buffers, and foreach over them")
def _several(stream):
    torch = pytest.importorskip("torch")

    def fn(x, y, z):
        return [torch.cat([x, y, x], -1), *torch._foreach_add([x, y, z], 1.5)]

    return fn, torch_randoms({"x": (64, 100), "y": (64, 28), "z": (7,)})


@row("PyTorch in place")
def _in_place(stream):
    pytest.importorskip("torch")

    def fn(x, residual):
        x.mul_(2).add_(residual)
        residual.copy_(x)

    return fn, torch_randoms({"x": (64, 1000), "residual": (64, 1000)})


@row("PyTorch copies, of all and of a part, into a buffer")
def _copies(stream):
    pytest.importorskip("torch")

    def fn(x, y, out):
        out[:2].copy_(x)
        out[2:, 10:].copy_(y)
        out[2:, :10].zero_()

    return fn, torch_randoms({"x": (2, 1000), "y": (6, 990), "out": (8, 1000)})


@row("PyTorch FFT (cuFFT)")
def _torch_fft(stream):
    torch = pytest.importorskip("torch")
    fft = torch.fft
    return lambda x: fft.irfft(fft.rfft(x) * 2, n=1024), torch_randoms({"x": (16, 1024)})


# --- torch.compile and Triton --------------------------------------------------------------------


def compiled(fn):
    """Compile by Inductor, in this process: what hangs there can be stopped."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    import torch._inductor.config as inductor

    inductor.compile_threads = 1
    return torch.compile(fn, dynamic=False, fullgraph=True)


@row("torch.compile: pointwise and reduction (Triton kernels)", seconds=180)
def _compiled_pointwise(stream):
    torch = pytest.importorskip("torch")

    def fn(x, y):
        z = torch.nn.functional.gelu(x) * y
        return z, (z - z.mean(-1, keepdim=True)).square().sum(-1)

    inner = compiled(fn)
    return lambda x, y: inner(x, y), torch_randoms({"x": (64, 2048), "y": (64, 2048)})


@row("torch.compile: linear, GELU, layer norm, bfloat16", seconds=180)
def _compiled_mlp(stream):
    def make(torch):
        nn = torch.nn
        return nn.Sequential(nn.Linear(512, 1024), nn.GELU(), nn.LayerNorm(1024))

    inner = compiled(torch_module(make))
    return lambda x: inner(x), torch_randoms({"x": (32, 512)}, "bfloat16")


@row("Triton kernel, three pointers and a scalar", seconds=120)
def _triton(stream):
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    from triton_kernels import scaled_sum

    def fn(x, y, out):
        scaled_sum[(4,)](x, y, out, 2.5, 4000, BLOCK=1024)

    return fn, torch_randoms({"x": (4000,), "y": (4000,), "out": (4000,)})


@row("Triton softmax, bfloat16", seconds=120)
def _triton_softmax(stream):
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    from triton_kernels import row_softmax

    def fn(x):
        out = torch.empty_like(x)
        row_softmax[(64,)](x, out, 1000, BLOCK=1024)
        return out

    return fn, torch_randoms({"x": (64, 1000)}, "bfloat16")


# --- CuPy ----------------------------------------------------------------------------------------

_SCALE = r"""
extern "C" __global__ void scale(const float* x, float* y, float by, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = by * x[i];
}
"""


def cupy_randoms(shapes):
    """Return a function that draws float32 arrays by name."""
    cupy = pytest.importorskip("cupy")

    def draw():
        values = {name: np.random.standard_normal(shape) for name, shape in shapes.items()}
        return {name: cupy.asarray(value.astype(np.float32)) for name, value in values.items()}

    return draw


@row("CuPy pipeline: RawKernels, reductions, elementwise, into a buffer and returned")
def _cupy_pipeline(stream):
    cupy = pytest.importorskip("cupy")
    scale = cupy.RawKernel(_SCALE, "scale")

    def fn(x, w, out):
        y = cupy.empty_like(x)
        scale((64,), (256,), (x, y, np.float32(2), np.int32(x.size)))
        centred = (y - y.mean(axis=1, keepdims=True)) * w
        cupy.sqrt(cupy.abs(centred), out=out)
        scale((1,), (256,), (out, out, np.float32(3), np.int32(256)))
        return centred.max(axis=0), centred.sum()

    return fn, cupy_randoms({"x": (16, 1024), "w": (1024,), "out": (16, 1024)})


@row("CuPy cuFFT, forth and back")
def _cupy_fft(stream):
    cupy = pytest.importorskip("cupy")

    def fn(x, w):
        return cupy.fft.irfft(cupy.fft.rfft(x, axis=1) * w, n=1000, axis=1)

    return fn, cupy_randoms({"x": (16, 1000), "w": (501,)})


@row("CuPy ElementwiseKernel and ReductionKernel")
def _cupy_kernels(stream):
    cupy = pytest.importorskip("cupy")
    squared = cupy.ElementwiseKernel("T x, T y", "T z", "z = (x - y) * (x - y)", "squared")
    # CUDA's headers have a function called norm.
    length = cupy.ReductionKernel("T x", "T y", "x * x", "a + b", "y = sqrt(a)", "0", "length")

    def fn(x, y):
        z = squared(x, y)
        return z, length(z, axis=1), cupy.argmax(z, axis=1)

    return fn, cupy_randoms({"x": (64, 1000), "y": (64, 1000)})


@row("CuPy copy and fill")
def _cupy_copy(stream):
    pytest.importorskip("cupy")

    def fn(x, out):
        out[:4] = x
        out[4:].fill(1.5)

    return fn, cupy_randoms({"x": (4, 1000), "out": (8, 1000)})


# --- Numba, cuda.core and our own ------------------------------------------------------------


def own_randoms(shapes):
    """Return a function that draws arrays of graphkit's own."""

    def draw():
        return {
            name: gk.asarray(np.random.standard_normal(shape).astype(np.float32))
            for name, shape in shapes.items()
        }

    return draw


@row("Numba kernel", seconds=120)
def _numba(stream):
    pytest.importorskip("numba")
    cuda = pytest.importorskip("numba.cuda")

    @cuda.jit
    def smooth(x, out):
        i = cuda.grid(1)
        if 0 < i < x.size - 1:
            out[i] = (x[i - 1] + x[i] + x[i + 1]) / np.float32(3)
        elif i < x.size:
            out[i] = x[i]

    theirs = cuda.external_stream(stream.ptr)

    def fn(x, out):
        x, out = (cuda.as_cuda_array(array, sync=False) for array in (x, out))
        smooth[8, 128, theirs](x, out)

    draw = own_randoms({"x": (1000,), "out": (1000,)})
    with names_that_numpy_dropped():
        absent = why_it_does_not_compile(partial(fn, **draw()))
    if absent:
        pytest.skip(absent)
    return fn, draw


@contextmanager
def names_that_numpy_dropped():
    """Give NumPy back what it dropped with 2.4 and 2.5 and numba-cuda asks it for as it loads."""
    dropped = [name for name in ("in1d", "row_stack", "trapz") if not hasattr(np, name)]
    for name in dropped:

        def no_more(*_, **__):
            raise NotImplementedError("dropped by NumPy")

        setattr(np, name, no_more)
    try:
        yield
    finally:
        for name in dropped:
            delattr(np, name)


def why_it_does_not_compile(launch):
    """Return what numba-cuda says when it does not fit the NumPy that is installed, else None."""
    try:
        launch()
    except (AttributeError, ImportError) as error:
        return f"numba-cuda does not work beside NumPy {np.__version__}: {error}"
    return None


@row("graphkit kernels")
def _own(stream):
    def fn(x, out, stream):
        ADD_SCALAR(1, 32, (x, out, 1.0, 8), stream=stream)
        gk.memcpy_async(out[8:], out[:8], stream)
        AXPY(1, 32, (x, out[8:], 2.0, 8), stream=stream)

    return fn, own_randoms({"x": (8,), "out": (16,)})


@row("cuda.core kernel")
def _cuda_core(stream):
    core, kernel, config = core_kernel(64)
    theirs = core.Stream.from_handle(stream.ptr)

    def fn(x, out):
        core.launch(theirs, config, kernel, x.ptr, out.ptr, np.float32(2.5), np.int32(10000))

    return fn, own_randoms({"x": (10000,), "out": (10000,)})


def core_kernel(grid):
    """Return cuda.core with the kernel `scale` and a launch configuration."""
    core = pytest.importorskip("cuda.core")
    device = core.Device()
    device.set_current()
    options = core.ProgramOptions(arch=f"sm_{device.arch}")
    program = core.Program(_SCALE, code_type="c++", options=options)
    kernel = program.compile("cubin").get_kernel("scale")
    return core, kernel, core.LaunchConfig(grid=grid, block=256)


# --- what cannot be rebound ----------------------------------------------------------------------


@row("PyTorch dropout", error=(gk.RebindError, "draws random numbers from a CUDA generator"))
def _dropout(stream):
    torch = pytest.importorskip("torch")
    return lambda x: torch.nn.functional.dropout(x, 0.5), torch_randoms({"x": (64, 64)})


@row("PyTorch nonzero, which waits for the device", error=(RuntimeError, "(?i)captur"))
def _nonzero(stream):
    torch = pytest.importorskip("torch")
    return lambda x: torch.nonzero(x > 0), torch_randoms({"x": (64, 64)})


@row("PyTorch, a first input kept", error=(gk.RebindError, "keeps a reference of its own to it"))
def _kept(stream):
    pytest.importorskip("torch")
    kept: dict[str, Any] = {}

    def fn(x, y):
        return kept.setdefault("x", x) + y, x * 2

    return fn, torch_randoms({"x": (64, 64), "y": (64, 64)})


@row("PyTorch, an input that is not used", error=(gk.RebindError, "y: never used"))
def _unused(stream):
    pytest.importorskip("torch")
    return lambda x, y: x * 2, torch_randoms({"x": (64, 64), "y": (64, 64)})


@row("CuPy matmul (CuPy refuses cuBLAS in captures)", error=(NotImplementedError, "captur"))
def _cupy_matmul(stream):
    return lambda x, w: x @ w, cupy_randoms({"x": (64, 64), "w": (64, 64)})


@row("a copy of two dimensions", error=(gk.RebindError, r"more than one dimension.*1-D copies"))
def _two_dimensions(stream):
    def fn(x, out):
        gk.memcpy_async(out[:, 8:], x[:, :-8], stream)

    return fn, own_randoms({"x": (64, 64), "out": (64, 64)})


@row("a table of addresses in pinned memory", error=(gk.RebindError, "a table of pointers"))
def _table(stream):
    pinned, table = gk.empty_pinned(2, np.uint64), gk.zeros(2, np.uint64)

    def fn(x, out):
        pinned[:] = x.ptr, out.ptr
        gk.memcpy_async(table, pinned, stream)
        gk.memcpy_async(out, x, stream)

    return fn, own_randoms({"x": (64,), "out": (64,)})


# --- binding -------------------------------------------------------------------------------------


def test_there_are_rows_enough():
    names = [item.name for item in ROWS]
    assert len(set(names)) == len(names)
    assert sum(item.error is None for item in ROWS) >= 25


OWN = [item for item in ROWS if item.make.func.__name__ in ("_own", "_two_dimensions", "_table")]


@pytest.mark.parametrize("row", OWN, ids=lambda row: row.name)
def test_rows_of_our_own(runtime, stream, row):
    """What holds the others to it, held to it."""
    check(row, runtime, stream, {})


def test_a_function_that_reads_something_else_is_found_out(runtime, stream):
    """No capture shows what memory holds: a graph goes on reading what was there."""
    hidden = gk.zeros(8)

    def fn(x, out, stream):
        if stream.capture_status is CaptureStatus.NONE:
            hidden.set(x.get())
        ADD_SCALAR(1, 32, (hidden, out, 1.0, 8), stream=stream)
        ADD_SCALAR(1, 32, (x, out[8:], 1.0, 8), stream=stream)

    row = Row("hidden", lambda _: (fn, own_randoms({"x": (8,), "out": (16,)})))
    with pytest.raises(AssertionError, match=r"results \[1\] of 2 differ from eager"):
        check(row, runtime, stream, {})


@pytest.mark.gpu
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_bound_to_other_buffers(runtime, stream, row):
    with noting(row.name, row.seconds) as noted:
        check(row, runtime, stream, noted)
    gc.collect()


def check(row, runtime, stream, noted):
    """Bind a row, and hold what its launches leave against eager."""
    with without_gradients():
        fn, draw = row.make(stream)
        first = draw()
        runtime.device_synchronize()  # drawn on the library's own stream
        for _ in range(2):  # compiles, and makes what libraries keep
            UserFunction(fn)(first, stream)
            stream.synchronize()
        if row.error is None:
            _rebind(row, fn, draw, first, stream, noted)
        else:
            kind, words = row.error
            with pytest.raises(kind, match=words) as caught:
                gk.bind(fn, stream, **first)
            noted.update(outcome="refused", error=_in_one_line(caught.value))
            stream.synchronize()  # it still works


def _rebind(row, fn, draw, first, stream, noted):
    runtime = stream.runtime
    bound = gk.bind(fn, stream, **first)
    places = {slot.place for slot in bound.slots}
    kinds = Counter(node.type.name.lower() for node in bound.graph.nodes)
    noted.update(nodes=sum(kinds.values()), touched=len(places), slots=len(bound.slots))
    noted["kinds"] = dict(sorted(kinds.items()))
    noted["kernels"] = sorted({kernel.name for kernel in bound.graph.kernels})
    for array in first.values():
        # Whoever still reads it is found out; as an index it must stay within bounds.
        floats = gk.describe(array).dtype.kind not in "iub"
        poison(array, stream, 0xFF if floats else 0)
    stream.synchronize()
    left = []
    for _ in range(2):
        fresh, twins = draw(), draw()
        runtime.device_synchronize()
        for name, array in fresh.items():
            if name.startswith("out"):
                poison(array, stream)
            with current_stream(stream):
                assign(twins[name], array, stream)
        for array in arrays_in(bound.result):
            poison(array, stream)
        stream.synchronize()
        result = bound(**fresh)
        stream.synchronize()
        got = [bits(array) for array in [*arrays_in(result), *fresh.values()]]
        result = UserFunction(fn)(twins, stream)
        stream.synchronize()
        expected = [bits(array) for array in [*arrays_in(result), *twins.values()]]
        assert len(got) == len(expected)
        wrong = [
            index
            for index, pair in enumerate(zip(got, expected, strict=True))
            if len(set(pair)) > 1
        ]
        assert not wrong, f"{row.name}: results {wrong} of {len(got)} differ from eager"
        left.append(expected)
    assert left[0] != left[1], "the results do not depend on the buffers"
    bound.close()
    noted["outcome"] = "rebound"


# --- graphs that others captured -----------------------------------------------------------------


def by_torch(stream):
    torch = pytest.importorskip("torch")
    x, y = (torch.randn(4096, device=DEVICE) for _ in range(2))
    others = [torch.randn(4096, device=DEVICE) for _ in range(2)]
    torch.cuda.synchronize()
    theirs = torch.cuda.ExternalStream(stream.ptr)
    with torch.cuda.stream(theirs):
        torch.mul(x, 2.5, out=y)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph, stream=theirs, capture_error_mode="thread_local"):
        torch.mul(x, 2.5, out=y)
    return graph, (x, y), others


def by_cupy(stream):
    cupy = pytest.importorskip("cupy")
    scale = cupy.RawKernel(_SCALE, "scale")
    scale.compile()
    arrays = [*cupy_randoms(dict.fromkeys("abcd", 4096))().values()]
    cupy.cuda.get_current_stream().synchronize()
    theirs = cupy.cuda.Stream.from_external(stream)
    theirs.begin_capture()
    with theirs:
        scale((16,), (256,), (*arrays[:2], np.float32(2.5), np.int32(4096)))
    return theirs.end_capture(), arrays[:2], arrays[2:]


def by_core_definition(stream):
    _, kernel, config = core_kernel(16)
    graph = pytest.importorskip("cuda.core.graph").GraphDefinition()
    arrays = [*own_randoms(dict.fromkeys("abcd", 4096))().values()]
    x, y = arrays[:2]
    graph.launch(config, kernel, x.ptr, y.ptr, np.float32(2.5), np.int32(4096))
    return graph, arrays[:2], arrays[2:]


def by_core_builder(stream):
    core, kernel, config = core_kernel(16)
    builder = core.Device().create_graph_builder()
    arrays = [*own_randoms(dict.fromkeys("abcd", 4096))().values()]
    x, y = arrays[:2]
    builder.begin_building()
    core.launch(builder, config, kernel, x.ptr, y.ptr, np.float32(2.5), np.int32(4096))
    builder.end_building()
    return builder, arrays[:2], arrays[2:]


def replaced(raw, words):
    """Return the bytes of an argument with other addresses in the places of some; None for none."""
    new = bytearray(raw)
    for at in range(0, len(raw) - 7, 8):
        word = int.from_bytes(raw[at : at + 8], "little")
        if word in words:
            new[at : at + 8] = words[word].to_bytes(8, "little")
    return None if new == raw else bytes(new)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("whose", "capture"),
    [
        ("PyTorch CUDAGraph(keep_graph=True)", by_torch),
        ("CuPy Graph", by_cupy),
        ("cuda.core GraphDefinition", by_core_definition),
        ("cuda.core GraphBuilder", by_core_builder),
    ],
    ids=["torch", "cupy", "core-definition", "core-builder"],
)
def test_graphs_of_others_are_looked_at_and_changed(runtime, stream, whose, capture):
    with noting(f"adopted: {whose}", 60) as noted:
        graph, first, others = capture(stream)
        adopted = gk.Graph.adopt(graph)
        del graph
        gc.collect()  # adopting keeps it
        (node,) = adopted.nodes
        (kernel,) = adopted.kernels
        assert node.type is NodeType.KERNEL
        assert kernel.name
        assert kernel.block[0] >= 32
        assert kernel.grid[0] >= 1
        ends = [argument.offset + argument.size for argument in kernel.args]
        assert ends == sorted(ends)
        addresses = [gk.describe(array).ptr for array in first]
        words = dict(zip(addresses, (gk.describe(array).ptr for array in others), strict=True))
        changed = {
            index: new
            for index, argument in enumerate(kernel.args)
            if (new := replaced(argument.value, words)) is not None
        }
        exe = adopted.instantiate()
        exe.set_kernel_node_params(node, args=changed)
        # What the graph was captured with must be neither read nor written any more.
        for array in (*first, others[1]):
            poison(array, stream)
        stream.synchronize()
        exe.launch(stream)
        stream.synchronize()
        source = np.frombuffer(bits(others[0]), np.float32)
        assert bits(others[1]) == (source * np.float32(2.5)).tobytes()
        assert set(bits(first[1])) == {0xFF}
        noted.update(outcome="rebound", nodes=1, touched=1, slots=len(changed))
        noted["kernels"] = [kernel.name]
        exe.close()
        adopted.close()
    gc.collect()


@pytest.mark.gpu
def test_an_executable_graph_of_cuda_core_is_not_adopted(runtime, stream):
    """CUDA would take its handle for a graph's, and crash."""
    graph, *_ = by_core_definition(stream)
    with pytest.raises(TypeError, match="holds a CUgraphExec"):
        gk.Graph.adopt(graph.instantiate())
