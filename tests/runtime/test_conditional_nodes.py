"""Conditional nodes at the seam: handles, bodies, and what CUDA refuses of graphs with them."""

from __future__ import annotations

import ctypes
import struct

import pytest

from graphkit.runtime.protocol import (
    CaptureMode,
    ConditionalHandleFlags,
    ConditionalNodeParams,
    ConditionalNodeType,
    KernelNodeParams,
    KernelSource,
    NodeType,
)

IF, WHILE, SWITCH = ConditionalNodeType
ASSIGN = ConditionalHandleFlags.ASSIGN_DEFAULT


def _set(launch):
    (handle,), (value,) = (
        struct.unpack(f, raw) for f, raw in zip("QI", launch.arguments, strict=True)
    )
    launch.set_conditional(handle, value)


SET = KernelSource(
    """extern "C" __device__ __cudart_builtin__ void cudaGraphSetConditional(
           cudaGraphConditionalHandle handle, unsigned int value);
       extern "C" __global__ void set(cudaGraphConditionalHandle handle, unsigned int value) {
           cudaGraphSetConditional(handle, value); }""",
    "set",
    (),
    ((0, 8), (8, 4)),
    _set,
)


@pytest.fixture
def set_to(runtime, made):
    """Return the parameters of a kernel node that sets a condition."""
    loaded = runtime.function_load(SET)

    def params(handle, value):
        block = made.arguments(ctypes.c_uint64(handle), ctypes.c_uint32(value))
        return KernelNodeParams(loaded.handle, (1, 1, 1), (1, 1, 1), 0, block.address)

    return params


def add(runtime, graph, type_, size, default=0, deps=()):
    handle = runtime.graph_conditional_handle_create(graph, default, ASSIGN)
    params = ConditionalNodeParams(handle, type_, size)
    node, bodies = runtime.graph_add_conditional_node(graph, deps, params)
    assert runtime.graph_node_get_type(node) is NodeType.CONDITIONAL
    assert len(set(bodies)) == size
    return handle, node, bodies


@pytest.mark.parametrize(
    ("type_", "size", "default", "expected"),
    [
        (IF, 1, 0, 7),
        (IF, 1, 5, 0),
        (IF, 2, 5, 0),
        (IF, 2, 0, 1),
        (SWITCH, 3, 2, 2),
        (SWITCH, 3, 3, 7),
        (SWITCH, 1, 0, 0),
    ],
)
def test_one_body_runs_or_none(runtime, made, type_, size, default, expected):
    graph, y = made.graph(), made.device(7.0)
    _, _, bodies = add(runtime, graph, type_, size, default)
    for index, body in enumerate(bodies):
        runtime.graph_add_kernel_node(body, (), made.fill(y, float(index)))
    made.run(made.exec(graph))
    assert made.value(y) == expected


def test_a_body_sets_its_own_condition(runtime, made, set_to):
    graph, y, x = made.graph(), made.device(0.0), made.device(1.0)
    handle, node, (body,) = add(runtime, graph, WHILE, 1, default=1)
    work = runtime.graph_add_kernel_node(body, (), made.axpy(y, x))
    runtime.graph_add_kernel_node(body, (work,), set_to(handle, 0))
    runtime.graph_add_kernel_node(graph, (node,), made.axpy(y, x, a=10.0))
    exec_ = made.exec(graph)
    made.run(exec_)
    made.run(exec_)
    assert made.value(y) == 22


def test_a_condition_set_ahead_of_the_node(runtime, made, set_to):
    graph, y = made.graph(), made.device(0.0)
    handle = runtime.graph_conditional_handle_create(graph, 0, ConditionalHandleFlags.NONE)
    ahead = runtime.graph_add_kernel_node(graph, (), set_to(handle, 1))
    params = ConditionalNodeParams(handle, IF, 1)
    _, (body,) = runtime.graph_add_conditional_node(graph, (ahead,), params)
    runtime.graph_add_kernel_node(body, (), made.fill(y, 3.0))
    made.run(made.exec(graph))
    assert made.value(y) == 3
    assert made.edges(graph) == {(0, 1)}


def test_an_exec_changes_a_node_of_a_body(runtime, made):
    graph, y = made.graph(), made.device(0.0)
    _, _, (body,) = add(runtime, graph, IF, 1, default=1)
    node = runtime.graph_add_kernel_node(body, (), made.fill(y, 3.0))
    exec_ = made.exec(graph)
    runtime.graph_exec_kernel_node_set_params(exec_, node, made.fill(y, 4.0))
    made.run(exec_)
    assert made.value(y) == 4


@pytest.mark.parametrize(("type_", "size"), [(IF, 0), (IF, 3), (WHILE, 0), (WHILE, 2), (SWITCH, 0)])
def test_a_wrong_number_of_bodies_is_refused(runtime, made, type_, size):
    graph = made.graph()
    handle = runtime.graph_conditional_handle_create(graph, 0, ASSIGN)
    params = ConditionalNodeParams(handle, type_, size)
    assert made.code(runtime.graph_add_conditional_node, graph, (), params)
    assert runtime.graph_get_nodes(graph) == []


def test_a_graph_with_a_conditional_node_is_not_copied(runtime, made):
    graph, other = made.graph(), made.graph()
    add(runtime, graph, IF, 1)
    assert made.code(runtime.graph_clone, graph)
    assert made.code(runtime.graph_add_child_graph_node, other, (), graph)
    assert runtime.graph_get_nodes(other) == []


def test_a_host_function_in_a_body_is_refused(runtime, made):
    """When it is added, or when the graph is instantiated."""
    graph = made.graph()
    _, _, (body,) = add(runtime, graph, IF, 1)

    def make():
        runtime.graph_add_host_node(body, (), made.host(lambda: None))
        made.exec(graph)

    assert made.code(make)


def test_a_capture_goes_on_behind_a_conditional_node(runtime, made):
    stream, y, x = made.stream(), made.device(0.0), made.device(1.0)
    made.begin(stream)
    made.launch(made.fill(y, 5.0), stream)
    info = runtime.stream_get_capture_info(stream)
    _, node, (body,) = add(runtime, info.graph, IF, 1, default=1, deps=info.dependencies)
    runtime.stream_update_capture_dependencies(stream, (node,))
    runtime.graph_add_kernel_node(body, (), made.axpy(y, x))
    made.launch(made.axpy(y, x, a=10.0), stream)
    graph = made.end(stream)
    assert made.types(graph) == ["KERNEL", "CONDITIONAL", "KERNEL"]
    assert made.edges(graph) == {(0, 1), (1, 2)}
    made.run(made.exec(graph))
    assert made.value(y) == 16


def test_a_capture_into_a_body(runtime, made):
    stream, graph, y, x = made.stream(), made.graph(), made.device(0.0), made.device(1.0)
    _, _, (body,) = add(runtime, graph, IF, 1, default=1)
    first = runtime.graph_add_kernel_node(body, (), made.fill(y, 2.0))
    runtime.stream_begin_capture_to_graph(stream, body, (first,), CaptureMode.THREAD_LOCAL)
    made.launch(made.axpy(y, x), stream)
    assert runtime.stream_end_capture(stream) == body
    assert made.edges(body) == {(0, 1)}
    made.run(made.exec(graph))
    assert made.value(y) == 3


# --- stricter than a device: there the first two are undefined ------------------------------------


def test_a_body_is_neither_destroyed_nor_instantiated_alone(simulate):
    made = simulate()
    runtime, graph = made.runtime, made.graph()
    _, _, (body,) = add(runtime, graph, IF, 1)
    assert made.code(runtime.graph_destroy, body) == 1
    assert made.code(made.exec, body) == 1


def test_a_handle_has_one_node_and_every_handle_has_one(simulate):
    made = simulate()
    runtime, graph, other = made.runtime, made.graph(), made.graph()
    handle, _, _ = add(runtime, graph, IF, 1)
    params = ConditionalNodeParams(handle, IF, 1)
    assert made.code(runtime.graph_add_conditional_node, graph, (), params) == 1
    assert made.code(runtime.graph_add_conditional_node, other, (), params) == 1
    runtime.graph_conditional_handle_create(graph, 0, ASSIGN)
    assert made.code(made.exec, graph) == 1


def test_one_exec_at_a_time(simulate):
    made = simulate()
    graph = made.graph()
    add(made.runtime, graph, IF, 1)
    exec_ = made.exec(graph)
    assert made.code(made.exec, graph) == 801
    made.destroy("exec", exec_)
    made.exec(graph)


def test_an_update_to_conditional_nodes_is_refused(simulate):
    made = simulate()
    graph, other = made.graph(), made.graph()
    for each in (graph, other):
        _, node, _ = add(made.runtime, each, IF, 1)
    info = made.runtime.graph_exec_update(made.exec(graph), other)
    assert (info.result.name, info.error_node) == ("NOT_SUPPORTED", node)
