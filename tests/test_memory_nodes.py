"""Alloc and free nodes: memory that lives inside of a graph, and the rules it brings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_kernels import ADD_SCALAR, AXPY, INCREMENT

import graphkit as gk
from graphkit.memory_nodes import free_async, trim_graph_memory

N = 64


@pytest.fixture
def graph(runtime):
    return gk.Graph()


@pytest.fixture
def x(runtime):
    return gk.asarray(np.arange(N, dtype=np.float32))


@pytest.fixture
def out(runtime):
    return gk.zeros(N)


def add(graph, y, x, a, **kwargs):
    return graph.add_kernel_node(ADD_SCALAR, 2, 32, (x, y, float(a), N), **kwargs)


def through(graph, x, out, *, free=True):
    """Add x + 1 into memory of the graph, and that + 1 into out."""
    alloc, inner = graph.add_mem_alloc_node(N)
    first = add(graph, inner, x, 1, deps=alloc)
    second = add(graph, out, inner, 1, deps=first)
    if free:
        graph.add_mem_free_node(inner, deps=second)
    return inner


def launch(exe, stream):
    exe.launch(stream)
    stream.synchronize()


# --- what they do --------------------------------------------------------------------------------


def test_memory_between_its_alloc_and_its_free_node(graph, x, out, stream):
    inner = through(graph, x, out)
    assert [node.type.name for node in graph.nodes] == ["MEM_ALLOC", "KERNEL", "KERNEL", "MEM_FREE"]
    assert (inner.shape, inner.dtype, inner.nbytes) == ((N,), np.float32, 4 * N)
    assert inner.ptr
    with graph.instantiate() as exe:
        for _ in range(3):
            out.set(np.zeros(N))
            launch(exe, stream)
            assert np.array_equal(out.get(), np.arange(N) + 2)


def test_the_parameters_of_the_nodes_are_read_back(graph, x, out):
    inner = through(graph, x, out)
    alloc, _, _, free = (graph.values(node) for node in graph.nodes)
    assert (alloc.address, alloc.nbytes, alloc.device) == (inner.ptr, 4 * N, 0)
    assert free.address == inner.ptr
    assert "mem_alloc" in graph.dot()


@pytest.mark.parametrize(("shape", "dtype"), [(3, np.uint8), ((2, 3, 4), np.int16), ([5], "f8")])
def test_shapes_and_dtypes(graph, stream, shape, dtype):
    alloc, inner = graph.add_mem_alloc_node(shape, dtype)
    host = gk.empty_pinned(shape, dtype)
    filled = graph.add_memset_node(inner, 0, deps=alloc)
    copied = graph.add_memcpy_node(host, inner, deps=filled)
    graph.add_mem_free_node(inner, deps=copied)
    host[...] = 1
    with graph.instantiate() as exe:
        launch(exe, stream)
    assert not host.any()
    assert inner.shape == np.empty(shape).shape


def test_what_stays_allocated_is_there_for_the_stream(graph, x, out, stream):
    inner = through(graph, x, out, free=False)
    result = gk.zeros(N)
    with graph.instantiate() as exe:
        exe.launch(stream)
        gk.memcpy_async(result, inner, stream)
        free_async(inner, stream)
        exe.launch(stream)  # freed in between, so that it may allocate again
        stream.synchronize()
        assert np.array_equal(result.get(), np.arange(N) + 1)
        inner.free()  # what the second launch left
        launch(exe, stream)
    assert np.array_equal(inner.get(), np.arange(N) + 1)  # outlives the exec
    inner.free()


def test_another_graph_frees(graph, x, out, stream):
    inner = through(graph, x, out, free=False)
    other = gk.Graph()
    used = add(other, out, inner, 10)
    other.add_mem_free_node(inner, deps=used)
    with graph.instantiate() as exe, other.instantiate() as freeing:
        for _ in range(2):
            exe.launch(stream)
            freeing.launch(stream)
        stream.synchronize()
    assert np.array_equal(out.get(), np.arange(N) + 11)


def test_auto_free(graph, x, out, stream):
    inner = through(graph, x, out, free=False)
    with graph.instantiate(auto_free_on_launch=True) as exe:
        for _ in range(3):
            launch(exe, stream)
        assert np.array_equal(inner.get(), np.arange(N) + 1)
        inner.free()
        launch(exe, stream)
    inner.free()
    assert np.array_equal(out.get(), np.arange(N) + 2)


def test_in_a_capture(runtime, x, out, stream):
    with gk.capture(stream) as graph:
        address = runtime.malloc_async(4 * N, stream.ptr)
        gk.memcpy_async(address, x, stream, nbytes=4 * N)
        gk.memcpy_async(out, address, stream, nbytes=4 * N)
        runtime.free_async(address, stream.ptr)
    assert [node.type.name for node in graph.nodes] == ["MEM_ALLOC", "MEMCPY", "MEMCPY", "MEM_FREE"]
    assert [item.ptr for item in graph.memory().allocations] == [address]
    with graph.instantiate() as exe:
        launch(exe, stream)
        launch(exe, stream)
        with pytest.raises(ValueError, match="one exec at a time"):
            graph.instantiate()
    assert np.array_equal(out.get(), np.arange(N))
    with pytest.raises(ValueError, match="CUDA clones none"):
        graph.clone()


def test_a_capture_frees_what_a_graph_left(graph, x, out, stream):
    inner = through(graph, x, out, free=False)
    with gk.capture(stream) as freeing:
        free_async(inner, stream)
    assert [node.type.name for node in freeing.nodes] == ["MEM_FREE"]
    with graph.instantiate() as exe, freeing.instantiate() as after:
        for _ in range(2):
            exe.launch(stream)
            after.launch(stream)
        stream.synchronize()


# --- how much it is ------------------------------------------------------------------------------


def test_the_report(graph, x, out, stream):
    inner = through(graph, x, out)
    alloc, kept = graph.add_mem_alloc_node((2, N), np.uint8)
    report = graph.memory()
    assert [item.ptr for item in report.allocations] == [inner.ptr, kept.ptr]
    assert [item.nbytes for item in report.allocations] == [4 * N, 2 * N]
    assert [item.freed for item in report.allocations] == [True, False]
    assert report.unfreed[0].node is alloc
    assert report.nbytes == 6 * N
    with graph.instantiate(auto_free_on_launch=True) as exe:
        launch(exe, stream)
        report = graph.memory()
        assert report.reserved >= report.used
        assert report.reserved >= 2 * N
        assert report.reserved_high >= report.reserved
        assert report.used_high >= report.used
    kept.free()


def test_trim_gives_back_what_no_graph_uses(graph, x, out, stream):
    through(graph, x, out)
    with graph.instantiate() as exe:
        launch(exe, stream)
        held = graph.memory().reserved
    assert held >= 4 * N
    trim_graph_memory()
    assert graph.memory().reserved < held
    with graph.instantiate() as exe:  # it is set aside again
        launch(exe, stream)
        assert graph.memory().reserved >= 4 * N
    assert np.array_equal(out.get(), np.arange(N) + 2)


def test_a_graph_without_such_nodes_reports_none(graph, x, out):
    add(graph, out, x, 1)
    assert graph.memory().allocations == ()
    assert graph.memory().nbytes == 0


# --- the rules -----------------------------------------------------------------------------------


def test_one_exec_at_a_time(graph, x, out, stream):
    through(graph, x, out)
    exe = graph.instantiate()
    with pytest.raises(ValueError, match=r"graph: expected a graph without .* one exec at a time"):
        graph.instantiate()
    launch(exe, stream)
    exe.close()
    with graph.instantiate() as again:
        launch(again, stream)
    assert np.array_equal(out.get(), np.arange(N) + 2)


def test_no_clone_no_child_no_removal(graph, x, out, stream):
    through(graph, x, out)
    alloc, first, *_ = nodes = graph.nodes
    parent = gk.Graph()
    for refused, name in (
        (graph.clone, "graph"),
        (lambda: parent.add_child_graph_node(graph), "child"),
        (lambda: graph.remove_node(first), "node"),
        (lambda: graph.remove_node(alloc), "node"),
        (lambda: graph.remove_dependency(alloc, first), "graph"),
    ):
        with pytest.raises(ValueError, match=f"{name}: expected a graph without alloc or free"):
            refused()
    assert graph.nodes == nodes
    assert len(graph.edges) == 3
    assert parent.nodes == []
    with graph.instantiate() as exe:
        launch(exe, stream)
    assert np.array_equal(out.get(), np.arange(N) + 2)


def test_a_free_node_alone_brings_the_rules_too(graph, x, out):
    inner = through(graph, x, out, free=False)
    other = gk.Graph()
    other.add_mem_free_node(inner)
    with pytest.raises(ValueError, match="CUDA clones none"):
        other.clone()


def test_nodes_may_still_be_added(graph, x, out, stream):
    inner = through(graph, x, out, free=False)
    last = graph.nodes[-1]
    node = graph.add_memset_node(inner, 0.0)
    graph.add_dependency(last, node)
    graph.add_mem_free_node(inner, deps=node)
    with graph.instantiate() as exe:
        launch(exe, stream)


def test_not_inside_of_a_child_graph(graph, x, out, stream):
    child = gk.Graph()
    add(child, out, x, 1)
    node = graph.add_child_graph_node(child)
    inside = graph.child_graph(node)
    with pytest.raises(ValueError, match="graph: expected one that is in no other"):
        inside.add_mem_alloc_node(N)
    _, inner = child.add_mem_alloc_node(N)
    with pytest.raises(ValueError, match="graph: expected one that is in no other"):
        inside.add_mem_free_node(inner)
    assert len(inside.nodes) == 1


def test_not_in_the_body_of_a_conditional_node(graph, x, out, stream):
    inner = through(graph, x, out, free=False)
    taken = graph.if_(gk.asarray([1], np.int32))
    with taken as body:
        with pytest.raises(ValueError, match="came one of type mem_alloc"):
            body.add_mem_alloc_node(N)
        with pytest.raises(ValueError, match="came one of type mem_free"):
            body.add_mem_free_node(inner)
        add(body, out, inner, 5)  # what the graph around allocates may be used inside
    graph.add_dependency(graph.nodes[2], taken.node)
    graph.add_mem_free_node(inner, deps=taken.node)
    with graph.instantiate() as exe:
        launch(exe, stream)
    assert np.array_equal(out.get(), np.arange(N) + 6)


def test_unfreed_memory_cannot_be_launched_again(graph, x, out, stream):
    inner = through(graph, x, out, free=False)
    with graph.instantiate() as exe:
        go = exe.launcher(stream)
        launch(exe, stream)
        for again in (lambda: exe.launch(stream), go):
            with pytest.raises(gk.CudaError, match="auto_free_on_launch=True") as caught:
                again()
            assert caught.value.call == "cudaGraphLaunch"
            assert caught.value.code == 1
            assert f"{inner.ptr:#x}" in str(caught.value)
        inner.free()
        launch(exe, stream)  # the exec is what it was
        inner.free()
    assert np.array_equal(out.get(), np.arange(N) + 2)


def test_an_update_keeps_the_memory(graph, x, out, stream):
    through(graph, x, out)
    with graph.instantiate() as exe:
        kernel = graph.nodes[1]
        exe.set_kernel_node_params(kernel, args={"a": 5.0})
        launch(exe, stream)
        assert np.array_equal(out.get(), np.arange(N) + 6)
        assert exe.update(graph)
        launch(exe, stream)
        assert np.array_equal(out.get(), np.arange(N) + 2)


def test_an_update_from_a_graph_of_another_exec_is_refused(graph, x, out, stream):
    through(graph, x, out)
    other = gk.Graph()
    through(other, x, out)
    with graph.instantiate() as exe, other.instantiate() as theirs:
        with pytest.raises(ValueError, match=r"graph: expected .* another exec's"):
            exe.update(other)
        launch(exe, stream)
        launch(theirs, stream)
    assert np.array_equal(out.get(), np.arange(N) + 2)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"shape": 0}, ValueError, "shape: expected at least one element"),
        ({"shape": -1}, ValueError, "shape: expected extents"),
        ({"shape": "12"}, TypeError, "shape: expected an int"),
        ({"shape": (2**40, 2**40)}, ValueError, r"shape: expected fewer than 2\*\*63 bytes"),
        ({"shape": 1.5}, TypeError, "shape: expected an int"),
        ({"dtype": object}, TypeError, "dtype: expected"),
        ({"dtype": "no such"}, TypeError, "dtype: expected"),
        ({"deps": 5}, TypeError, "deps: expected a Node"),
    ],
)
def test_a_refused_alloc_node_is_not_there(graph, change, error, message):
    with pytest.raises(error, match=message):
        graph.add_mem_alloc_node(**({"shape": N} | change))
    assert graph.nodes == []
    assert graph.clone().nodes == []  # nor its rules


def test_only_what_an_alloc_node_gave_can_be_freed(graph, x):
    host = np.zeros(N)
    for array, message in (
        (x, "came <DeviceArray"),
        (host, "came ndarray"),
        (None, "came NoneType"),
    ):
        with pytest.raises(TypeError, match=rf"array: expected .* add_mem_alloc_node.*{message}"):
            graph.add_mem_free_node(array)
        with pytest.raises(TypeError, match="array: expected"):
            free_async(array, 0)
    _, inner = graph.add_mem_alloc_node(N)
    with pytest.raises(ValueError, match="came a view 4 bytes into it"):
        graph.add_mem_free_node(inner[1:])
    for address in (0, -1, True):
        with pytest.raises(ValueError, match="array: expected an array or an address"):
            graph.add_mem_free_node(address)
    for address in (x.ptr, inner.ptr + 64):
        with pytest.raises(gk.CudaError) as caught:
            graph.add_mem_free_node(address)
        assert caught.value.call == "cudaGraphAddMemFreeNode"
    assert len(graph.nodes) == 1


def test_nothing_is_freed_twice(graph, runtime, x, out, stream):
    inner = through(graph, x, out)
    other = gk.Graph()
    with pytest.raises(ValueError, match="freed once"):
        graph.add_mem_free_node(inner)
    with pytest.raises(ValueError, match="its own graph frees"):
        other.add_mem_free_node(inner)
    for refused in (inner.free, lambda: free_async(inner, stream)):
        with pytest.raises(ValueError, match="that no free node of its own graph frees"):
            refused()
    with pytest.raises(gk.CudaError):
        other.add_mem_free_node(inner.ptr)
    assert other.nodes == []
    with graph.instantiate() as exe:
        launch(exe, stream)


def test_freed_by_another_graph_the_owner_cannot(graph, x, out):
    inner = through(graph, x, out, free=False)
    other = gk.Graph()
    other.add_mem_free_node(inner)
    with pytest.raises(ValueError, match="freed once"):
        other.add_mem_free_node(inner)
    with pytest.raises(ValueError, match="which a free node of another graph frees"):
        graph.add_mem_free_node(inner)


def test_what_is_not_allocated_cannot_be_freed(graph, runtime, x, out, stream):
    inner = through(graph, x, out, free=False)
    with pytest.raises(gk.CudaError):  # never launched
        free_async(inner, stream)
    with graph.instantiate() as exe:
        launch(exe, stream)
        inner.free()
        with pytest.raises(gk.CudaError):
            inner.free()
        launch(exe, stream)
        inner.free()
    assert np.array_equal(out.get(), np.arange(N) + 2)


def test_cuda_free_would_kill_a_capture(graph, x, out, stream):
    inner = through(graph, x, out, free=False)
    with graph.instantiate() as exe:
        launch(exe, stream)
        with gk.capture(stream) as captured:
            gk.memset_async(out, 0.0, stream)
            with pytest.raises(ValueError, match="free: expected no live capture"):
                inner.free()
        assert len(captured.nodes) == 1
        inner.free()


def test_a_closed_graph_takes_no_more(graph, x, out, stream):
    inner = through(graph, x, out, free=False)
    exe = graph.instantiate()
    graph.close()
    for refused in (
        lambda: graph.add_mem_alloc_node(N),
        lambda: graph.add_mem_free_node(inner),
        graph.memory,
    ):
        with pytest.raises(ValueError, match="graph: expected a live graph"):
            refused()
    with pytest.raises(ValueError, match="graph: expected a live graph"):
        graph.instantiate()
    launch(exe, stream)  # the exec does not need it
    with pytest.raises(gk.CudaError):
        exe.launch(stream)
    exe.close()
    inner.free()


# --- random programs -----------------------------------------------------------------------------


class Temporary:
    """One array inside of a graph: its value, and who must be done before it is freed."""

    def __init__(self, graph, source, a):
        self.alloc, self.array = graph.add_mem_alloc_node(N)
        self.filled = add(graph, self.array, source.array, a, deps=(self.alloc, *source.filled_by))
        source.users.append(self.filled)
        self.users = [self.filled]
        self.value = source.value + a

    @property
    def filled_by(self):
        return (self.filled,)


class Given(Temporary):
    """An array that is there before the graph."""

    def __init__(self, array, value):
        self.array, self.value, self.users = array, value, []

    filled_by = ()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=st.lists(st.tuples(st.integers(0, 7), st.integers(1, 9)), min_size=1, max_size=10),
    freed=st.integers(0, 2**10 - 1),
    launches=st.integers(1, 3),
)
def test_random_programs(runtime, steps, freed, launches):
    x, out = gk.asarray(np.arange(N, dtype=np.float32)), gk.zeros(N)
    graph, stream = gk.Graph(), gk.Stream()
    arrays = [Given(x, np.arange(N, dtype=np.float32))]
    for source, a in steps:
        arrays.append(Temporary(graph, arrays[source % len(arrays)], a))
    total, last = np.zeros(N, np.float32), graph.add_memset_node(out, 0.0)
    left = []
    for place, made in enumerate(arrays[1:]):
        deps = (last, made.filled)
        last = graph.add_kernel_node(AXPY, 2, 32, (made.array, out, 1.0, N), deps=deps)
        total += made.value
        if freed >> place & 1:
            graph.add_mem_free_node(made.array, deps=(last, *made.users))
        else:
            left.append(made)
    with graph.instantiate(auto_free_on_launch=True) as exe:
        for _ in range(launches):
            exe.launch(stream)
        stream.synchronize()
    assert np.array_equal(out.get(), total)
    assert [item.freed for item in graph.memory().allocations].count(False) == len(left)
    for made in left:
        assert np.array_equal(made.array.get(), made.value)
        made.array.free()
    graph.close()
    stream.close()
    x.free()
    out.free()


# --- what only the simulator tells ---------------------------------------------------------------


def simulated(build, **flags):
    """Launch what ``build`` adds, and wait."""
    graph, stream = gk.Graph(), gk.Stream()
    build(graph)
    with graph.instantiate(**flags) as exe:
        exe.launch(stream)
        stream.synchronize()


def test_use_before_the_alloc_node(sim):
    def build(graph):
        gate = graph.add_empty_node()
        alloc, inner = graph.add_mem_alloc_node(1, np.int32)
        used = graph.add_kernel_node(INCREMENT, 1, 1, (inner, 1), deps=gate)
        graph.add_dependency(used, alloc)
        graph.add_mem_free_node(inner, deps=alloc)

    with pytest.raises(gk.SimulationError, match=r"graph allocation .* which is not allocated now"):
        simulated(build)


def test_use_after_the_free_node(sim):
    def build(graph):
        alloc, inner = graph.add_mem_alloc_node(1, np.int32)
        free = graph.add_mem_free_node(inner, deps=alloc)
        graph.add_kernel_node(INCREMENT, 1, 1, (inner, 1), deps=free)

    with pytest.raises(gk.SimulationError, match="which is not allocated now"):
        simulated(build)


@pytest.mark.parametrize("forgotten", ["alloc", "free"])
@pytest.mark.parametrize("seed", range(4))
def test_use_that_is_not_ordered(forgotten, seed):
    gk.use("sim", gk.SimOptions(order_seed=seed))

    def build(graph):
        alloc, inner = graph.add_mem_alloc_node(1, np.int32)
        filled = graph.add_memset_node(inner, 0, deps=alloc)
        deps = () if forgotten == "alloc" else filled
        used = graph.add_kernel_node(INCREMENT, 1, 1, (inner, 1), deps=deps)
        graph.add_mem_free_node(inner, deps=(filled, used) if forgotten == "alloc" else filled)

    with pytest.raises(gk.SimulationError, match=r"race: |which is not allocated now"):
        simulated(build)


def test_fresh_memory_is_poisoned_in_every_launch(sim):
    out = gk.zeros(N)
    graph, stream = gk.Graph(), gk.Stream()
    alloc, inner = graph.add_mem_alloc_node(N)
    read = graph.add_memcpy_node(out, inner, deps=alloc)
    filled = graph.add_memset_node(inner, 1.0, deps=read)
    graph.add_mem_free_node(inner, deps=filled)
    with graph.instantiate() as exe:
        for _ in range(2):
            exe.launch(stream)
            stream.synchronize()
            assert np.isnan(out.get()).all()


def test_an_address_is_gone_with_its_graph(sim):
    graph, stream = gk.Graph(), gk.Stream()
    alloc, inner = graph.add_mem_alloc_node(1, np.int32)
    graph.add_mem_free_node(inner, deps=alloc)
    graph.close()
    later = gk.Graph()
    with pytest.raises(gk.CudaError):
        later.add_memset_node(inner, 0)
    later.close()
    stream.close()


def test_device_memory_runs_out():
    gk.use("sim", gk.SimOptions(total_memory=1 << 20))
    graph, stream = gk.Graph(), gk.Stream()
    alloc, inner = graph.add_mem_alloc_node(2 << 20, np.uint8)
    graph.add_mem_free_node(inner, deps=alloc)
    with graph.instantiate() as exe, pytest.raises(gk.CudaError) as caught:
        exe.launch(stream)
    assert caught.value.code == 2


def test_a_failed_launch_frees_all_the_same(sim):
    graph, stream = gk.Graph(), gk.Stream()
    alloc, inner = graph.add_mem_alloc_node(1, np.int32)
    broken = graph.add_kernel_node(INCREMENT, 1, 1, (8, 1), deps=alloc)
    graph.add_mem_free_node(inner, deps=broken)
    with graph.instantiate() as exe:
        for _ in range(2):
            exe.launch(stream)
            with pytest.raises(gk.SimulationError):
                stream.synchronize()
    assert "device memory" not in sim.live_handles()
