"""Where the simulator is stricter than a device: what CUDA leaves undefined is an error here."""

import numpy as np
import pytest

import graphkit as gk
from graphkit.errors import CudaError, NotSimulated, SimulationError
from graphkit.runtime.protocol import (
    EdgeData,
    EventFlags,
    KernelSource,
    MemcpyKind,
    StreamFlags,
)
from graphkit.runtime.sim import SimOptions, SimRuntime

N = 64
SEEDS = range(6)


def failing(made, function=None):
    """Return the parameters of a kernel whose twin calls ``function`` with the launch."""
    loaded = made.runtime.function_load(
        KernelSource('extern "C" __global__ void odd() {}', "odd", (), (), function)
    )
    return made.nothing(function=loaded.handle)


def launch(made, *params, edges=()):
    graph = made.graph()
    nodes = [made.runtime.graph_add_kernel_node(graph, [], p) for p in params]
    for edge in edges:
        made.connect(graph, nodes[edge[0]], nodes[edge[1]], *edge[2:])
    made.run(made.exec(graph))
    return nodes


# --- races


def test_two_unordered_nodes_that_touch_the_same_bytes(simulate):
    for seed in SEEDS:
        made = simulate(order_seed=seed)
        x, y = made.device(0.0), made.device(0.0)
        with pytest.raises(SimulationError) as caught:
            launch(made, made.fill(x, 1.0), made.axpy(y, x))
        message = str(caught.value)
        for words in ("race", "'fill'", "'axpy'", f"{4 * N} bytes", f"{x:x}", "writes", "reads"):
            assert words in message


def test_a_race_between_writers_of_a_part(simulate):
    for seed in SEEDS:
        made = simulate(order_seed=seed)
        x = made.device(0.0)
        launch(made, made.fill(x, 1.0, 8), made.fill(x + 32, 1.0, 8))
        with pytest.raises(SimulationError, match=" 4 bytes"):
            launch(made, made.fill(x, 1.0, 9), made.fill(x + 32, 1.0, 8))


def test_readers_do_not_race_and_paths_order(simulate):
    for seed in SEEDS:
        made = simulate(order_seed=seed)
        x, y, z = (made.device(0.0) for _ in range(3))
        launch(made, made.axpy(y, x), made.axpy(z, x))
        path = made.fill(x, 1.0), made.nothing(), made.axpy(y, x), made.axpy(z, x)
        launch(made, *path, edges=[(0, 1), (1, 2), (1, 3)])
        launch(made, made.fill(x, 1.0), made.axpy(y, x), edges=[(0, 1, EdgeData(1, 0, 1))])


def test_copies_and_fills_race_too(simulate):
    for seed in SEEDS:
        made = simulate(order_seed=seed)
        x, y, graph = made.device(0.0), made.device(0.0), made.graph()
        made.runtime.graph_add_memset_node(graph, [], made.memset(x))
        made.runtime.graph_add_memcpy_node(graph, [], made.copy(y, x))
        with pytest.raises(SimulationError, match=r"race.*node"):
            made.run(made.exec(graph))


@pytest.mark.parametrize("execution", ["on_wait", "at_once"])
def test_a_race_between_streams(simulate, execution):
    for seed in SEEDS:
        made = simulate(order_seed=seed, execution=execution)
        x, y, streams = made.device(0.0), made.device(0.0), [made.stream(), made.stream()]
        made.launch(made.fill(x, 1.0), streams[0])
        made.launch(made.axpy(y, x), streams[1])
        with pytest.raises(SimulationError, match="race"):
            made.runtime.device_synchronize()


@pytest.mark.parametrize("execution", ["on_wait", "at_once"])
@pytest.mark.parametrize("order", ["event", "host", "query", "legacy", "graph"])
def test_what_orders_two_streams(simulate, order, execution):
    made = simulate(execution=execution)
    runtime, event = made.runtime, made.event()
    x, y = made.device(0.0), made.device(0.0)
    first, second = made.blocking_stream(), made.blocking_stream()
    graph = made.graph()
    wait = runtime.graph_add_event_wait_node(graph, [], event)
    runtime.graph_add_kernel_node(graph, [wait], made.axpy(y, x))
    exe = made.exec(graph)
    made.launch(made.fill(x, 1.0), first)
    runtime.event_record(event, first)
    if order == "event":
        runtime.stream_wait_event(second, event)
    elif order == "host":
        runtime.stream_synchronize(first)
    elif order == "query":
        while not runtime.stream_query(first):
            pass
    elif order == "legacy":
        made.launch(made.nothing(), 0)
    if order == "graph":
        runtime.graph_launch(exe, second)
    else:
        made.launch(made.axpy(y, x), second)
    runtime.device_synchronize()
    assert made.value(y) == 1


def test_races_can_be_left_alone(simulate):
    made = simulate(detect_races=False)
    x, y = made.device(0.0), made.device(0.0)
    launch(made, made.fill(x, 1.0), made.axpy(y, x))
    assert made.value(x) == 1


def test_the_seed_decides_what_cuda_leaves_open(simulate):
    def order(seed):
        made, seen = simulate(order_seed=seed), []
        graph = made.graph()
        for i in range(6):
            made.runtime.graph_add_host_node(graph, [], made.host(lambda i=i: seen.append(i)))
        made.run(made.exec(graph))
        return tuple(seen)

    orders = [order(seed) for seed in range(10)]
    assert len(set(orders)) > 5
    assert all(sorted(found) == list(range(6)) for found in orders)
    assert order(3) == orders[3]


# --- memory


def test_a_twin_past_the_end_of_its_memory(simulate):
    made = simulate()
    x = made.device(0.0)
    with pytest.raises(SimulationError) as caught:
        launch(made, made.fill(x, 1.0, N + 1))
    for words in ("'fill'", f"{x:x}", f"{4 * N} bytes", "4 bytes too many"):
        assert words in str(caught.value)


def test_an_error_is_told_by_the_next_wait_and_not_lost_in_a_free(simulate):
    made = simulate()
    x, y, stream = made.device(0.0), made.device(0.0), made.stream()
    pinned, _ = made.pinned()
    for destroyed in (("device", y), ("pinned", pinned)):
        made.launch(made.fill(x, 1.0, N + 1), stream)
        made.destroy(*destroyed)  # a finalizer may have done it, who can tell nobody
        with pytest.raises(SimulationError, match="4 bytes too many"):
            made.runtime.stream_synchronize(stream)
    made.runtime.stream_synchronize(stream)


def test_a_twin_in_freed_memory(simulate):
    made = simulate()
    x = made.device(0.0)
    made.destroy("device", x)
    with pytest.raises(SimulationError, match="freed device allocation"):
        launch(made, made.fill(x, 1.0))


def test_a_twin_in_pageable_memory(simulate):
    made, array = simulate(), np.zeros(N, np.float32)
    with pytest.raises(SimulationError, match="ordinary host memory"):
        launch(made, made.fill(array.ctypes.data, 1.0))


def test_work_on_memory_that_was_freed_in_stream_order(simulate):
    made = simulate()
    runtime, stream = made.runtime, made.stream()
    x = runtime.malloc_async(4 * N, stream)
    runtime.free_async(x, stream)
    assert made.code(runtime.free_async, x, stream) == 1
    assert made.code(runtime.free, x) == 1
    made.launch(made.fill(x, 1.0), stream)
    with pytest.raises(SimulationError, match="freed"):
        runtime.stream_synchronize(stream)


def test_what_is_only_read_cannot_be_written(simulate):
    made = simulate()
    x = made.device(0.0)

    def twin(launch):
        launch.memory(x, 4, write=False)[:] = 1

    with pytest.raises(ValueError, match="read-only"):
        launch(made, failing(made, twin))


@pytest.mark.parametrize(
    ("uninitialized", "expected"), [("nan", "[nan, nan]"), ("zero", "[0.0, 0.0]")]
)
def test_fresh_memory(simulate, uninitialized, expected):
    made = simulate(uninitialized=uninitialized)
    assert str(made.read(made.device(), 2)) == expected


def test_device_memory_runs_out(simulate):
    made = simulate(total_memory=1 << 20)
    x = made.device(nbytes=1 << 19)
    assert made.code(made.runtime.malloc, (1 << 19) + 1) == 2
    assert made.runtime.mem_get_info() == (1 << 19, 1 << 20)
    made.destroy("device", x)
    made.device(nbytes=1 << 20)


def test_an_exec_takes_memory_by_its_nodes(simulate):
    made = simulate(total_memory=1 << 20, exec_bytes_per_node=1000)
    runtime, graph, child = made.runtime, made.graph(), made.graph()
    for _ in range(3):
        runtime.graph_add_empty_node(child, [])
    runtime.graph_add_child_graph_node(graph, [], child)
    runtime.graph_add_empty_node(graph, [])
    exe = made.exec(graph)
    assert runtime.mem_get_info() == ((1 << 20) - 5000, 1 << 20)
    assert runtime.graph_exec_update(exe, graph).result == 0
    assert runtime.mem_get_info()[0] == (1 << 20) - 5000
    made.destroy("exec", exe)
    assert runtime.mem_get_info()[0] == 1 << 20


def test_an_exec_that_finds_no_memory_is_not_made(simulate):
    made = simulate(total_memory=4096, exec_bytes_per_node=1000)
    runtime, graph = made.runtime, made.graph()
    for _ in range(3):
        runtime.graph_add_empty_node(graph, [])
    first, before = made.exec(graph), runtime.live_handles()
    assert made.code(made.exec, graph) == 2
    assert (runtime.mem_get_info()[0], runtime.live_handles()) == (1096, before)
    assert made.code(runtime.malloc, 1097) == 2
    made.destroy("exec", first)
    made.exec(graph)
    made.device(nbytes=1096)


def test_a_graph_that_cannot_be_instantiated_takes_no_memory(simulate):
    made = simulate()
    runtime, graph = made.runtime, made.graph()
    a, b = (runtime.graph_add_empty_node(graph, []) for _ in range(2))
    made.connect(graph, a, b)
    made.connect(graph, b, a)
    before = runtime.mem_get_info()
    assert made.code(made.exec, graph) == 1
    assert runtime.mem_get_info() == before


# --- when work runs, and how it fails


def test_work_waits_for_somebody_to_wait(simulate):
    made, seen = simulate(), []
    stream = made.stream()
    made.runtime.launch_host_func(stream, made.host(lambda: seen.append(1)))
    assert seen == []
    made.runtime.stream_synchronize(stream)
    assert seen == [1]


def test_work_at_once(simulate):
    made, seen = simulate(execution="at_once"), []
    stream = made.stream()
    made.runtime.launch_host_func(stream, made.host(lambda: seen.append(1)))
    assert seen == [1]
    assert made.runtime.stream_query(stream) is True


@pytest.mark.parametrize("execution", ["on_wait", "at_once"])
def test_the_exception_of_a_twin_comes_with_the_next_wait(simulate, execution):
    made = simulate(execution=execution)
    runtime, stream, graph = made.runtime, made.stream(), made.graph()
    x = made.device(0.0)

    def twin(launch):
        raise ZeroDivisionError("in the twin")

    first = runtime.graph_add_kernel_node(graph, [], failing(made, twin))
    runtime.graph_add_kernel_node(graph, [first], made.fill(x, 1.0))
    runtime.graph_launch(made.exec(graph), stream)
    made.launch(made.axpy(x, x), stream)
    with pytest.raises(ZeroDivisionError, match="in the twin") as caught:
        runtime.stream_synchronize(stream)
    assert "kernel node 'odd'" in caught.value.__notes__[0]
    # What was left of that launch is dropped; everything else works.
    assert made.value(x) == 0
    made.launch(made.fill(x, 2.0), stream)
    runtime.stream_synchronize(stream)
    assert made.value(x) == 2


def test_a_kernel_without_a_twin(simulate):
    made = simulate()
    runtime, stream, graph = made.runtime, made.stream(), made.graph()
    x, odd = made.device(0.0), failing(made)
    with pytest.raises(NotSimulated, match="'odd' has no twin"):
        made.launch(odd, stream)
    first = runtime.graph_add_kernel_node(graph, [], made.fill(x, 1.0))
    node = runtime.graph_add_kernel_node(graph, [first], odd)
    exe = made.exec(graph)
    with pytest.raises(NotSimulated, match="'odd' has no twin"):
        runtime.graph_launch(exe, stream)
    runtime.device_synchronize()
    assert made.value(x) == 0  # not even the first part
    runtime.graph_node_set_enabled(exe, node, False)
    made.run(exe)
    assert made.value(x) == 1


def test_what_is_not_simulated(simulate):
    made = simulate()
    runtime = made.runtime
    for call in (
        lambda: runtime.device_get_attribute(10_000, 0),
        lambda: runtime.func_get_attribute(10_000, made.function("fill")),
    ):
        with pytest.raises(NotSimulated):
            call()
    with pytest.raises(NotSimulated, match="per-thread"):
        runtime.stream_synchronize(2)


# --- handles


def test_destroyed_handles_are_known(simulate):
    made = simulate()
    runtime = made.runtime
    stream, event, graph = made.stream(), made.event(), made.graph()
    node = runtime.graph_add_empty_node(graph, [])
    exe = made.exec(graph)
    for kind, handle in (("exec", exe), ("graph", graph), ("event", event), ("stream", stream)):
        made.destroy(kind, handle)
    codes = [
        made.code(runtime.stream_synchronize, stream),
        made.code(runtime.stream_destroy, stream),
        made.code(runtime.event_query, event),
        made.code(runtime.graph_get_nodes, graph),
        made.code(runtime.graph_node_get_type, node),
        made.code(runtime.graph_launch, exe, 0),
        made.code(runtime.graph_destroy, graph),
    ]
    assert codes == [400, 400, 400, 1, 1, 1, 1]


def test_updates_by_nodes_of_a_destroyed_graph_are_refused(simulate):
    made = simulate()
    runtime, graph, x = made.runtime, made.graph(), made.device(0.0)
    node = runtime.graph_add_kernel_node(graph, [], made.fill(x, 1.0))
    exe = made.exec(graph)
    made.destroy("graph", graph)
    params = made.fill(x, 2.0)
    assert made.code(runtime.graph_exec_kernel_node_set_params, exe, node, params) == 1


def test_one_kind_of_handle_is_no_other(simulate):
    made = simulate()
    runtime, stream, event = made.runtime, made.stream(), made.event()
    assert made.code(runtime.event_record, stream, event) == 400
    assert made.code(runtime.graph_launch, stream, stream) == 1


def test_handles_are_never_given_out_again(simulate):
    made = simulate()
    seen = set()
    for _ in range(50):
        stream = made.stream()
        made.destroy("stream", stream)
        seen.add(stream)
    assert len(seen) == 50


def test_live_handles_are_counted(simulate):
    made = simulate()
    assert made.runtime.live_handles() == {}
    graph, _ = made.graph(), made.stream(StreamFlags.DEFAULT)
    made.event(EventFlags.DEFAULT)
    made.exec(graph)
    made.runtime.graph_add_child_graph_node(graph, [], made.graph())
    made.device()
    made.pinned()
    assert made.runtime.live_handles() == {
        "stream": 1,
        "event": 1,
        "graph": 2,
        "executable graph": 1,
        "device memory": 1,
        "pinned memory": 1,
    }


def test_an_error_says_which_call_and_why(simulate):
    made = simulate()
    with pytest.raises(CudaError, match="cudaMemcpy returned 1") as caught:
        made.runtime.memcpy(made.device(), 0, 4, MemcpyKind.HOST_TO_DEVICE)
    assert "copy of kind HOST_TO_DEVICE" in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"uninitialized": "ones"},
        {"execution": "later"},
        {"total_memory": 0},
        {"exec_bytes_per_node": -1},
        {"quarantine": -1},
    ],
)
def test_options_that_make_no_sense(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        SimOptions(**options)


def test_a_simulator_says_what_it_is():
    runtime = SimRuntime(SimOptions(order_seed=5))
    assert runtime.name == "sim"
    assert "order_seed=5" in repr(runtime)
    assert runtime.get_device_count() == 1
    assert runtime.get_device_name(0)
    assert runtime.device_get_attribute(10, 0) == 32
    assert [runtime.get_device(), runtime.get_last_error()] == [0, 0]
    with pytest.raises(CudaError, match="101"):
        runtime.set_device(1)


def test_an_interrupt_in_a_twin_comes_out_once_and_leaves_a_usable_stream(sim):
    def interrupted(_launch):
        raise KeyboardInterrupt

    code = 'extern "C" __global__ void k() {}'
    stream, ran = gk.Stream(), []
    gk.Kernel(code, "k", twin=interrupted)(1, 1, (), stream=stream)
    with pytest.raises(KeyboardInterrupt):
        stream.synchronize()
    gk.Kernel(code, "k", twin=lambda _launch: ran.append(1))(1, 1, (), stream=stream)
    stream.synchronize()
    assert ran == [1]


def test_a_host_function_that_runs_at_once_cannot_wait_for_its_own_launch():
    gk.use("sim", gk.SimOptions(execution="at_once"))
    stream, graph, caught = gk.Stream(), gk.Graph(), []

    def launch_again():
        try:
            exe.launch(stream)
        except gk.CudaError as error:
            caught.append(error.code)
        exe.close()

    graph.add_host_node(launch_again)
    exe = graph.instantiate()
    exe.launch(stream)
    assert caught == [800]
    with pytest.raises(ValueError, match="exec: expected a live one"):
        exe.launch(stream)


@pytest.mark.parametrize(
    "name", ["order_seed", "total_memory", "exec_bytes_per_node", "quarantine"]
)
@pytest.mark.parametrize("value", [None, float("nan"), "1"])
def test_sizes_and_seeds_are_ints(name, value):
    with pytest.raises(TypeError, match=f"{name}: expected an int"):
        gk.SimOptions(**{name: value})


def test_a_simulator_does_not_take_anothers_handle_for_its_own():
    gk.use("sim")
    stream, exe, event = gk.Stream(), gk.Graph().instantiate(), gk.Event()
    gk.use("sim")
    graph, _streams, _events = gk.Graph(), gk.Stream(), gk.Event()
    with pytest.raises(CudaError, match="is no live graph"):
        exe.update(graph)
    with pytest.raises(CudaError, match="is no live stream"):
        event.record(_streams)
    with pytest.raises(CudaError, match="is no live stream"):
        graph.instantiate().launch(stream)
