"""CuPy and PyTorch: their current stream, private memory for captures, views, fingerprints.

Without a device there are stand-ins for both, which note what they are told.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from sample_kernels import ADD_SCALAR

import graphkit as gk
from graphkit.frameworks import (
    PrivateMemory,
    current_stream,
    device_of,
    fingerprint,
    view_like,
)
from graphkit.runtime.protocol import CaptureMode
from graphkit.runtime.sim import SimRuntime

pytestmark = pytest.mark.alone

BF16 = np.dtype(ml_dtypes.bfloat16)
MIB = 1 << 20


# --- without any library -------------------------------------------------------------------------


def test_private_memory_around_a_capture(runtime, stream):
    x, y = gk.asarray(np.arange(8, dtype=np.float32)), gk.zeros(8)
    memory = PrivateMemory()
    assert gk.live_handles()["private memory"] == 1
    with memory.allocating(), gk.capture(stream) as graph, current_stream(stream):
        ADD_SCALAR(1, 32, (x, y, 1.0, 8), stream=stream)
    graph.instantiate().launch(stream)
    assert memory.nbytes == 0
    memory.close()
    memory.close()
    assert "private memory" not in gk.live_handles()
    assert y.get().tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_closed_private_memory_is_refused(runtime):
    memory = PrivateMemory()
    memory.close()
    with (
        pytest.raises(ValueError, match="memory: expected a live one, came a closed one"),
        memory.allocating(),
    ):
        pass


def test_private_memory_in_use_is_not_closed(runtime):
    memory = PrivateMemory()
    with memory.allocating():
        with memory.allocating():
            pass
        with pytest.raises(ValueError, match="memory: expected one that is not in use"):
            memory.close()
    memory.close()


def test_a_second_thread_waits_for_its_turn(runtime):
    memory, inside, order = PrivateMemory(), threading.Event(), []

    def other():
        inside.set()
        with memory.allocating():
            order.append("other")

    thread = threading.Thread(target=other)
    with memory.allocating():
        thread.start()
        assert inside.wait(10)
        thread.join(0.05)
        order.append("first")
    thread.join(10)
    assert order == ["first", "other"]
    memory.close()


@pytest.mark.parametrize("value", [None, "x", object()])
def test_a_current_stream_is_a_stream(runtime, value):
    with pytest.raises(TypeError, match="stream: expected"), current_stream(value):
        pass


def test_the_fingerprint_of_our_own_arrays(runtime):
    x, y = gk.zeros((4, 6)), gk.zeros((4, 6))
    assert fingerprint(x)[0] == x.ptr
    assert fingerprint(x)[1] == fingerprint(y)[1]
    different = [x, x[1:], x[:, ::2], gk.zeros((4, 6), np.int32), gk.zeros((6, 4))]
    assert len({fingerprint(array)[1] for array in different}) == len(different)


def test_the_fingerprint_of_anybodys_array(runtime):
    class Theirs:
        def __init__(self, array):
            self.__cuda_array_interface__ = array.__cuda_array_interface__

    Theirs.__cuda_array_interface__ = None  # described by its type
    x, y = gk.zeros((4, 6)), gk.zeros((4, 6))
    for _ in range(2):
        assert fingerprint(Theirs(x)) == fingerprint(x)
        assert fingerprint(Theirs(x))[1] == fingerprint(Theirs(y))[1]
        assert fingerprint(Theirs(x))[1] != fingerprint(Theirs(x[1:]))[1]


@pytest.mark.parametrize("ask", [fingerprint, device_of])
def test_what_has_no_address_on_the_device(runtime, ask):
    for _ in range(2):
        with pytest.raises(TypeError, match=r"x: expected an array in device memory.*ndarray"):
            ask(np.zeros(3), "x")
    with pytest.raises(TypeError, match="x: expected an array, came int"):
        ask(5, "x")
    freed = gk.zeros(3)
    freed.free()
    with pytest.raises(ValueError, match=r"^x: expected live device memory, came a freed"):
        ask(freed, "x")


def test_the_device_of_an_array(runtime):
    assert device_of(gk.zeros(3)) == device_of(gk.zeros(0)) == runtime.get_device()


def test_a_view_for_nobody_known_is_the_array_itself(runtime):
    x = gk.zeros(3)
    assert view_like(gk.zeros(1), x) is x
    assert view_like(np.zeros(1), x) is x


# --- with stand-ins ------------------------------------------------------------------------------


drop_reference = ctypes.PYFUNCTYPE(None, ctypes.py_object)(("Py_DecRef", ctypes.pythonapi))


class StandIns:
    """A `cupy` and a `torch` that note what they are told."""

    def __init__(self, runtime):
        self.runtime = runtime
        self.told = []
        self.freed = []
        self.capturing = lambda: False
        self.modes = []
        self.cupy_stream = [0]
        self.used_stream = 0
        self.allocator = [None]
        self.torch_stream = 0
        self.cupy, self.torch = ModuleType("cupy"), ModuleType("torch")
        self._fill_cupy()
        self._fill_torch()

    @contextmanager
    def noting(self, stack, value, name):
        stack.append(value)
        self.told.append(f"enter {name}")
        try:
            yield
        finally:
            stack.pop()
            self.told.append(f"leave {name}")

    def _fill_cupy(self):
        stand_ins = self

        class Stream:
            def __init__(self, handle):
                self.ptr = handle
                self.noted = stand_ins.noting(stand_ins.cupy_stream, handle, "cupy stream")

            @classmethod
            def from_external(cls, stream):
                return cls(stream.__cuda_stream__()[1])

            def use(self):
                stand_ins.used_stream = self.ptr

            def __enter__(self):
                self.noted.__enter__()

            def __exit__(self, *raised):
                return self.noted.__exit__(*raised)

        class Memory:
            def __init__(self, size):
                exchange = stand_ins.runtime.thread_exchange_stream_capture_mode
                mode = exchange(CaptureMode.GLOBAL)
                exchange(mode)
                stand_ins.modes.append(mode)
                self.size, self.ptr = size, 4096 * len(stand_ins.modes)

            def __del__(self):
                stand_ins.freed.append(self.size)

        class UnownedMemory:
            def __init__(self, ptr, size, owner, device_id):
                self.ptr, self.size, self.owner, self.device_id = ptr, size, owner, device_id

        class MemoryPointer:
            def __init__(self, mem, offset):
                self.mem, self.ptr, self.device_id = mem, mem.ptr + offset, 0

        class MemoryPool:
            def __init__(self, allocator):
                self.malloc = allocator

            def free_all_blocks(self):
                pass

        class ndarray:  # noqa: N801 - CuPy's name
            def __init__(self, shape, dtype, memptr, strides):
                self.shape, self.dtype, self.data, self.strides = shape, dtype, memptr, strides
                self.nbytes = int(np.prod(shape)) * dtype.itemsize

        self.cupy.ndarray = ndarray
        self.cupy.cuda = SimpleNamespace(
            Stream=Stream,
            Memory=Memory,
            UnownedMemory=UnownedMemory,
            MemoryPointer=MemoryPointer,
            MemoryPool=MemoryPool,
            get_current_stream=lambda: Stream(self.used_stream),
            using_allocator=lambda take: self.noting(self.allocator, take, "cupy allocator"),
        )

    def _fill_torch(self):
        stand_ins = self

        class MemPool:
            id = (0, 1)

            def __del__(self):
                stand_ins.freed.append("torch pool")

        def memory_snapshot(numbers):
            for number in numbers:  # as PyTorch 2.11 does; see frameworks.py
                drop_reference(number)
            return [{"total_size": 2 * MIB}, {"total_size": 20 * MIB}]

        @contextmanager
        def current(stream):
            self.torch_stream, before = stream, self.torch_stream
            try:
                yield
            finally:
                self.torch_stream = before

        class Tensor:
            is_cuda = True

            def __init__(self, shape=(2, 3), device=0, contiguous=True):
                self.shape, self.index, self.contiguous = shape, device, contiguous
                self.dtype = "torch.float32"
                self.device = SimpleNamespace(type="cuda" if device >= 0 else "cpu")

            def get_device(self):
                return self.index

            def data_ptr(self):
                return 4096

            def is_contiguous(self):
                return self.contiguous

            def stride(self):
                return (3, 1) if self.contiguous else (1, 2)

            def view(self, dtype):
                self.dtype = dtype
                return self

        def as_tensor(array, device):
            made = Tensor(array.__cuda_array_interface__["shape"])
            made.typestr, made.source = array.__cuda_array_interface__["typestr"], array
            return made

        self.torch.Tensor, self.torch.as_tensor = Tensor, as_tensor
        self.torch.bfloat16 = "torch.bfloat16"
        self.torch.cuda = SimpleNamespace(
            is_initialized=lambda: False,
            is_available=lambda: True,
            is_current_stream_capturing=lambda: self.capturing(),
            current_device=lambda: 0,
            ExternalStream=lambda handle: handle,
            stream=current,
            MemPool=MemPool,
            memory_snapshot=memory_snapshot,
            use_mem_pool=lambda pool, device: self.noting([], pool, "torch pool"),
        )
        tell = self.told.append
        self.torch._C = SimpleNamespace(
            _cuda_beginAllocateCurrentStreamToPool=lambda device, pool: tell(
                f"begin {pool} on stream {self.torch_stream}"
            ),
            _cuda_endAllocateToPool=lambda device, pool: tell(f"end {pool}"),
            _cuda_releasePool=lambda device, pool: tell(f"release {pool}"),
        )


@pytest.fixture
def stand_ins(sim, monkeypatch):
    monkeypatch.setattr(SimRuntime, "name", "cuda")
    made = StandIns(sim)
    monkeypatch.setitem(sys.modules, "cupy", made.cupy)
    monkeypatch.setitem(sys.modules, "torch", made.torch)
    return made


def test_both_are_told_the_stream_and_get_theirs_back(stand_ins):
    stream = gk.Stream()
    stand_ins.used_stream = stand_ins.torch_stream = 77

    def body():
        with current_stream(stream):
            assert stand_ins.cupy_stream[-1] == stand_ins.torch_stream == stream.ptr
            stand_ins.used_stream = 0
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        body()
    assert (stand_ins.cupy_stream, stand_ins.used_stream, stand_ins.torch_stream) == ([0], 77, 77)
    with current_stream(stream.ptr):
        assert stand_ins.cupy_stream[-1] == stand_ins.torch_stream == stream.ptr


def test_cupy_before_version_14(stand_ins):
    made = stand_ins.cupy.cuda.Stream
    stand_ins.cupy.cuda.ExternalStream = made
    del made.from_external
    with current_stream(77):
        assert stand_ins.cupy_stream[-1] == 77


def test_what_is_not_there_is_not_told(stand_ins, monkeypatch):
    monkeypatch.delitem(sys.modules, "cupy")
    stand_ins.torch.cuda.is_available = lambda: False
    memory = PrivateMemory()
    with memory.allocating(), current_stream(77):
        assert (stand_ins.cupy_stream, stand_ins.torch_stream) == ([0], 0)
    assert stand_ins.told == []
    assert memory.nbytes == 0


def test_the_simulator_tells_nobody(stand_ins, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "cupy", stand_ins.cupy)
    monkeypatch.setitem(sys.modules, "torch", stand_ins.torch)
    with PrivateMemory().allocating(), current_stream(77):
        pass
    assert stand_ins.told == []


def test_memory_is_routed_once_and_everything_is_undone(stand_ins):
    memory = PrivateMemory()

    def body():
        with memory.allocating(), memory.allocating():
            assert stand_ins.allocator[-1] is not None
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        body()
    assert stand_ins.told == [
        "enter torch pool",
        "enter cupy allocator",
        "leave cupy allocator",
        "leave torch pool",
    ]


def test_what_other_threads_allocate_on_a_stream_is_routed_too(stand_ins):
    """As PyTorch's backward pass does."""
    memory, stream = PrivateMemory(), gk.Stream()

    def body():
        with memory.allocating(stream):
            assert stand_ins.torch_stream == 0  # nobody's current stream was changed
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        body()
    routed = [told for told in stand_ins.told if "cupy" not in told]
    assert routed == [
        "enter torch pool",
        f"begin (0, 1) on stream {stream.ptr}",
        "end (0, 1)",
        "release (0, 1)",
        "leave torch pool",
    ]
    assert memory.nbytes == 2 * 22 * MIB  # a pool for each rule
    memory.close()
    gc.collect()
    assert stand_ins.freed == ["torch pool"] * 2


@pytest.mark.parametrize("first", [7, 2**40])
def test_a_snapshot_costs_the_numbers_of_a_pool_no_reference(stand_ins, first):
    numbers = stand_ins.torch.cuda.MemPool.id = (first, 2**41 + first)
    memory = PrivateMemory()
    with memory.allocating():
        pass
    before = [sys.getrefcount(number) for number in numbers]
    for _ in range(4):
        assert memory.nbytes == 22 * MIB
    assert [sys.getrefcount(number) for number in numbers] == before


def test_a_pytorch_that_cannot_route_a_stream_routes_the_thread(stand_ins):
    del stand_ins.torch._C
    with PrivateMemory().allocating(gk.Stream()):
        assert "enter torch pool" in stand_ins.told


@pytest.mark.parametrize(
    "message",
    [
        "Attempt to increase offset for a CUDA generator not in capture mode.",
        "RNG op during graph capture but could not find the CUDAGraph object.",
    ],
)
def test_a_function_that_draws_random_numbers_cannot_be_bound(stand_ins, message):
    def fn(x):
        raise RuntimeError(message)

    stream, x = gk.Stream(), gk.zeros(8)
    with pytest.raises(
        gk.RebindError, match=r"fn draws random numbers.*pass them as a buffer"
    ) as e:
        gk.bind(fn, stream, x=x)
    assert str(e.value.__cause__) == message
    with pytest.raises(gk.RebindError, match="draws random numbers"):
        gk.check_baked(fn, stream, x=x)


def test_what_else_a_function_raises_stays_what_it_is(stand_ins, monkeypatch):
    def fn(x):
        raise error

    for error in (RuntimeError("no memory"), ValueError("a CUDA generator")):
        with pytest.raises(type(error), match=str(error)):
            gk.bind(fn, gk.Stream(), x=gk.zeros(8))
    monkeypatch.delitem(sys.modules, "torch")
    error = RuntimeError("a CUDA generator of somebody else's")
    with pytest.raises(RuntimeError, match="somebody else's"):
        gk.bind(fn, gk.Stream(), x=gk.zeros(8))


def test_cupys_pool_grows_inside_of_a_capture(stand_ins):
    memory, stream = PrivateMemory(), gk.Stream()
    exchange = stand_ins.runtime.thread_exchange_stream_capture_mode
    with memory.allocating(), gk.capture(stream):
        pointer = stand_ins.allocator[-1](1000)
    assert stand_ins.modes == [CaptureMode.RELAXED]
    assert exchange(CaptureMode.GLOBAL) is CaptureMode.GLOBAL  # as it was
    assert (pointer.ptr, pointer.mem.size) == (4096, 1000)
    assert memory.nbytes == 1000 + 22 * MIB


def test_cupys_pool_cannot_give_back_what_a_graph_uses(stand_ins):
    memory = PrivateMemory()
    with memory.allocating():
        stand_ins.allocator[-1](1000)  # dropped at once, as by a pool that is out of memory
    gc.collect()
    assert stand_ins.freed == []
    memory.close()
    gc.collect()
    assert sorted(map(str, stand_ins.freed)) == ["1000", "torch pool"]
    assert memory.nbytes == 0


def test_a_close_waits_for_captures_and_for_other_threads(stand_ins):
    stream, memory, other = gk.Stream(), PrivateMemory(), PrivateMemory()
    with memory.allocating():
        pass
    with other.allocating():
        with gk.capture(stream):
            memory.close()
            assert stand_ins.freed == []
        gc.collect()
        assert stand_ins.freed == []  # PyTorch would end the process
    gc.collect()
    assert stand_ins.freed == ["torch pool"]
    del other
    gc.collect()
    assert stand_ins.freed == ["torch pool"] * 2


@pytest.mark.parametrize("told", [True, False])
def test_a_close_waits_for_a_capture_of_pytorchs_own(stand_ins, told):
    def capturing():
        if not told:
            raise RuntimeError("CUDA error: operation would make the legacy stream depend on ...")
        return True

    memory, other = PrivateMemory(), PrivateMemory()
    for each in (memory, other):
        with each.allocating():
            pass
    stand_ins.capturing = capturing
    memory.close()
    gc.collect()
    assert stand_ins.freed == []  # PyTorch would end the process
    with PrivateMemory().allocating():
        pass
    gc.collect()
    assert stand_ins.freed == []
    stand_ins.capturing = lambda: False
    other.close()
    gc.collect()
    assert stand_ins.freed == ["torch pool"] * 3


def test_views_for_cupy(stand_ins):
    example = stand_ins.cupy.ndarray((1,), np.dtype(np.int8), SimpleNamespace(device_id=3), (1,))
    array = gk.zeros((4, 6), BF16)[1:, ::2]
    view = view_like(example, array)
    assert (view.shape, view.strides, view.dtype) == ((3, 3), (12, 4), BF16)
    assert (view.data.ptr, view.data.mem.size) == (array.ptr, 12 * 2 + 4 * 2 + 2)
    assert (view.data.mem.owner, view.data.mem.device_id) == (array, 3)
    assert view_like(example, gk.zeros((0, 3))).data.mem.size == 0


def test_views_for_pytorch(stand_ins):
    example = stand_ins.torch.Tensor()
    assert view_like(example, gk.zeros((4, 6), np.float16)).typestr == "<f2"
    brain = view_like(example, gk.zeros((4, 6), BF16))
    assert (brain.typestr, brain.dtype, brain.shape) == ("<i2", "torch.bfloat16", (4, 6))
    with pytest.raises(TypeError, match="array: expected a dtype that PyTorch has, came int4"):
        view_like(example, gk.zeros(4, ml_dtypes.int4))


def test_fingerprints_of_stand_ins(stand_ins):
    tensor = stand_ins.torch.Tensor
    assert fingerprint(tensor()) == (4096, ((2, 3), "torch.float32", True, 0))
    assert fingerprint(tensor(contiguous=False))[1] != fingerprint(tensor())[1]
    assert fingerprint(tensor(device=1))[1] != fingerprint(tensor())[1]
    assert device_of(tensor(device=1)) == 1
    for ask in (fingerprint, device_of):
        with pytest.raises(TypeError, match="x: expected an array in device memory"):
            ask(tensor(device=-1), "x")
    data = SimpleNamespace(ptr=4096, device_id=1)
    array = stand_ins.cupy.ndarray((2, 3), np.dtype(np.float32), data, (12, 4))
    assert fingerprint(array) == (4096, ((2, 3), np.float32, (12, 4), 1))
    assert device_of(array) == 1


# --- on a device ---------------------------------------------------------------------------------


class Library:
    """What the tests below want of CuPy or PyTorch."""

    def __init__(self, name):
        self.name = name
        self.module = pytest.importorskip(name)

    def full(self, n, value):
        """Make an array that is ready for any stream."""
        if self.name == "torch":
            made = self.module.full((n,), value, dtype=self.module.float32, device="cuda")
            self.module.cuda.current_stream().synchronize()
        else:
            made = self.module.full(n, value, dtype=np.float32)
            self.module.cuda.get_current_stream().synchronize()
        return made

    def values(self, array):
        if self.name == "torch":
            return array.float().cpu().numpy()
        return self.plain(array).get().view(array.dtype).astype(np.float32)

    def clear(self, array):
        if self.name == "torch":
            array.zero_()
        else:
            self.plain(array)[...] = 0

    def plain(self, array):
        """View CuPy's bfloat16 as integers, which any version of it copies and fills."""
        return array.view(np.uint16) if array.dtype == BF16 else array

    def current(self):
        if self.name == "torch":
            return self.module.cuda.current_stream().cuda_stream
        return self.module.cuda.get_current_stream().ptr

    def other_stream(self):
        if self.name == "torch":
            return self.module.cuda.stream(self.module.cuda.Stream())
        return self.module.cuda.Stream(non_blocking=True)


@pytest.fixture(params=["torch", "cupy"])
def library(request, runtime):
    return Library(request.param)


def capture_chain(library, stream, memory, x, out):
    """Capture three operations with temporaries between them: out = (2x + 1)x."""

    def chain():
        out[...] = (x * 2 + 1) * x

    with current_stream(stream):
        chain()  # compiles, and makes what the library keeps
    stream.synchronize()
    with memory.allocating(), gk.capture(stream) as graph, current_stream(stream):
        chain()
    return graph.instantiate()


@pytest.mark.gpu
def test_the_current_stream_of_a_library(library, stream):
    before = library.current()
    for given in (stream, stream.ptr):
        with current_stream(given):
            assert library.current() == stream.ptr
            with library.other_stream():
                assert library.current() != stream.ptr
            assert library.current() == stream.ptr
        assert library.current() == before
    gc.collect()
    stream.synchronize()  # nobody destroyed it


@pytest.mark.gpu
def test_temporaries_of_a_graph_are_nobody_elses(runtime, library, stream):
    n = 4 * MIB
    memory, x, out = PrivateMemory(), library.full(n, 3.0), library.full(n, 0.0)
    exe = capture_chain(library, stream, memory, x, out)
    held = memory.nbytes
    assert held >= 4 * n
    # Whoever had the temporaries' addresses would be overwritten, or would overwrite.
    with current_stream(stream):
        others = [library.full(n, -1.0) for _ in range(8)]
    x[...] = 5.0
    runtime.device_synchronize()  # x was written on the library's own stream
    exe.launch(stream)
    stream.synchronize()
    assert set(library.values(out)) == {55.0}
    assert all(set(library.values(other)) == {-1.0} for other in others)
    assert memory.nbytes == held
    exe.close()
    memory.close()


@pytest.mark.gpu
def test_bytes_are_counted_of_any_number_of_pools(runtime):
    """The ids of PyTorch's pools pass 256 here, from where on Python shares its numbers no more."""
    torch = pytest.importorskip("torch")
    others = [torch.cuda.MemPool() for _ in range(300)]
    memory = PrivateMemory()
    with memory.allocating():
        tensor = torch.ones(MIB, device="cuda")
    counts = []
    for _ in range(1000):
        counts.append((memory.nbytes, 1000 + len(counts)))  # numbers that a double free would hit
    assert counts == [(counts[0][0], 1000 + index) for index in range(1000)]
    assert counts[0][0] >= 4 * MIB
    del tensor, others
    memory.close()


@pytest.mark.gpu
def test_graphs_of_one_memory_share_their_temporaries(library, stream):
    n = 4 * MIB
    memory, x = PrivateMemory(), library.full(n, 3.0)
    outs = [library.full(n, 0.0) for _ in range(3)]
    execs, held = [], set()
    for out in outs:
        execs.append(capture_chain(library, stream, memory, x, out))
        held.add(memory.nbytes)
    assert len(held) == 1
    for exe in execs:
        exe.launch(stream)
    stream.synchronize()
    assert [set(library.values(out)) for out in outs] == [{21.0}] * 3
    for exe in execs:
        exe.close()
    memory.close()


@pytest.mark.gpu
def test_another_threads_allocations_are_left_alone(library):
    memory, kept = PrivateMemory(), []
    thread = threading.Thread(target=lambda: kept.append(library.full(4 * MIB, 1.0)))
    with memory.allocating():
        thread.start()
        thread.join()
        assert kept
        assert memory.nbytes == 0
        mine = library.full(4 * MIB, 2.0)
        assert memory.nbytes >= 16 * MIB
    memory.close()
    assert set(library.values(mine)) == {2.0}  # an array keeps its memory
    assert set(library.values(kept[0])) == {1.0}


@pytest.mark.gpu
def test_a_close_inside_of_a_capture_gives_the_memory_back_afterwards(runtime, library, stream):
    n = 16 * MIB
    memory, x, out = PrivateMemory(), library.full(n, 3.0), library.full(n, 0.0)
    capture_chain(library, stream, memory, x, out).close()
    y = gk.zeros(8)
    held, (free, _) = memory.nbytes, runtime.mem_get_info()
    with gk.capture(stream) as graph:
        memory.close()
        ADD_SCALAR(1, 32, (y, y, 1.0, 8), stream=stream)
    gc.collect()
    assert held
    assert runtime.mem_get_info()[0] - free >= held
    graph.instantiate().launch(stream)
    assert set(y.get()) == {1.0}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16, np.int64, np.bool_])
def test_views_of_our_memory(runtime, library, dtype):
    values = (1 + np.arange(24).reshape(4, 6) % 3).astype(dtype)
    array = gk.asarray(values)
    address = array[1:, ::2].ptr
    view = view_like(library.full(1, 0.0), array[1:, ::2])
    assert fingerprint(view)[0] == address
    assert device_of(view) == device_of(array)
    assert tuple(view.shape) == (3, 3)
    assert np.array_equal(library.values(view), values[1:, ::2].astype(np.float32))
    library.clear(view)
    runtime.device_synchronize()
    values[1:, ::2] = 0
    assert np.array_equal(array.get(), values)
    del array
    gc.collect()
    assert gk.live_handles() == {"device memory": 1}
    del view
    gc.collect()
    assert gk.live_handles() == {}


@pytest.mark.gpu
def test_fingerprints_of_a_library(library):
    x, y = library.full(24, 0.0).reshape(4, 6), library.full(24, 0.0).reshape(4, 6)
    assert fingerprint(x)[0] == gk.describe(x).ptr
    assert fingerprint(x)[0] != fingerprint(y)[0]
    assert fingerprint(x)[1] == fingerprint(y)[1]
    different = [x, x[1:], x[:, 1:], x.T, x[:, :2].reshape(8), x > 0]
    assert len({fingerprint(array)[1] for array in different}) == len(different)


@pytest.mark.gpu
def test_a_tensor_on_the_host_has_no_fingerprint(runtime):
    torch = pytest.importorskip("torch")
    for ask in (fingerprint, device_of):
        with pytest.raises(TypeError, match=r"x: expected an array in device memory.*Tensor"):
            ask(torch.zeros(3), "x")
