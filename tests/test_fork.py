"""Fork and join: what the branches wait for, what waits for them, and what is refused."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from sample_kernels import ADD_SCALAR, AXPY

import graphkit as gk
from graphkit.fork import fork
from graphkit.frameworks import current_stream

N = 16


@pytest.fixture
def arrays(runtime):
    return [gk.zeros(N) for _ in range(6)]


def add(x, y, stream, by=1.0):
    """Launch a kernel that reads ``x`` and writes ``y``."""
    ADD_SCALAR(1, N, (x, y, by, N), stream=stream)


def pairs(graph):
    places = {node.ptr: place for place, node in enumerate(graph.nodes)}
    return {(places[edge.from_node.ptr], places[edge.to_node.ptr]) for edge in graph.edges}


def run(graph, stream):
    with graph.instantiate() as exe:
        exe.launch(stream)
        stream.synchronize()


# --- captures ------------------------------------------------------------------------------------


def test_a_captured_fork_branches_and_joins(stream, arrays):
    x, y, z, u, *_ = arrays
    with gk.capture(stream) as graph:
        add(x, y, stream)
        with fork(stream, 2) as (left, right):
            add(y, z, left, 1)
            add(y, u, right, 2)
        AXPY(1, N, (z, u, 1.0, N), stream=stream)
    assert pairs(graph) == {(0, 1), (0, 2), (1, 3), (2, 3)}
    assert graph.check_races() == ()
    run(graph, stream)
    assert u.get().tolist() == [5.0] * N


def test_a_branch_without_work_is_joined(stream, arrays):
    x, y, *_ = arrays
    with gk.capture(stream) as graph:
        with fork(stream, 3):
            pass
        add(x, y, stream)
    assert pairs(graph) == set()


def test_a_fork_at_the_head_of_a_capture(stream, arrays):
    x, y, z, u, *_ = arrays
    with gk.capture(stream) as graph:
        with fork(stream, 2) as branches:
            for branch, to in zip(branches, (y, z), strict=True):
                add(x, to, branch)
        add(z, u, stream)
    assert pairs(graph) == {(0, 2), (1, 2)}


def test_the_stream_itself_goes_on_beside_its_branches(stream, arrays):
    x, y, z, u, *_ = arrays
    with gk.capture(stream) as graph:
        with fork(stream, 1) as (branch,):
            add(x, y, branch)
            add(x, z, stream)
        add(z, u, stream)
    assert pairs(graph) == {(0, 2), (1, 2)}


def test_one_fork_after_another_leaves_no_edges_of_the_first(stream, arrays):
    x, y, z, *_ = arrays
    with gk.capture(stream) as graph:
        for _ in range(3):
            with fork(stream, 2) as (left, right):
                add(x, y, left)
                add(x, z, right)
            AXPY(1, N, (y, x, 1.0, N), stream=stream)
    assert pairs(graph) == {
        *((0, 2), (1, 2), (2, 3), (2, 4), (3, 5), (4, 5), (5, 6), (5, 7), (6, 8), (7, 8))
    }


def test_streams_are_taken_again_in_the_same_capture_and_later(stream, arrays):
    x, y, *_ = arrays
    seen = set()
    for _ in range(3):
        with gk.capture(stream):
            for _ in range(3):
                with fork(stream, 2) as branches:
                    seen.update(branch.ptr for branch in branches)
                add(x, y, stream)
    assert len(seen) == 2


def test_a_fork_inside_of_a_branch(stream, arrays):
    x, y, z, u, v, w = arrays
    with gk.capture(stream) as graph:
        add(x, y, stream)
        with fork(stream, 2) as (left, right):
            add(y, z, left)
            with fork(left, 2) as (first, second):
                add(z, u, first)
                add(z, v, second)
            add(u, z, left)
            add(y, w, right)
        add(w, x, stream)
    assert pairs(graph) == {(0, 1), (1, 2), (1, 3), (2, 4), (3, 4), (0, 5), (4, 6), (5, 6)}
    run(graph, stream)
    assert (v.get()[0], z.get()[0], x.get()[0]) == (3.0, 4.0, 3.0)


def test_forks_of_the_same_stream_may_be_nested(stream, arrays):
    x, y, z, u, v, _ = arrays
    with gk.capture(stream) as graph:
        with fork(stream, 1) as (outer,):
            add(x, y, outer)
            with fork(stream, 1) as (inner,):
                assert inner.ptr != outer.ptr
                add(x, z, inner)
            add(z, u, stream)
        add(y, v, stream)
    assert pairs(graph) == {(0, 3), (1, 2), (2, 3)}


def test_a_branch_that_only_waits_for_others(stream, arrays):
    x, y, z, u, *_ = arrays
    with gk.capture(stream) as graph, fork(stream, 2) as (left, right):
        add(x, y, left)
        add(x, z, right)
        event = right.record()
        with fork(left, 2) as (inner, _):
            inner.wait_event(event)
        AXPY(1, N, (y, z, 1.0, N), stream=left)
        add(x, u, right)
    assert pairs(graph) == {(0, 2), (1, 2), (1, 3)}
    event.close()


def test_two_captures_at_once_share_no_branch(stream, arrays):
    x, y, z, *_ = arrays
    other = gk.Stream()
    with gk.capture(stream, mode="relaxed") as first:
        with fork(stream, 1) as (branch,):
            add(x, y, branch)
        with gk.capture(other, mode="relaxed") as second:
            with fork(other, 1) as (theirs,):
                assert theirs.ptr != branch_handle(first, stream)
                add(x, z, theirs)
            add(z, y, other)
        add(y, z, stream)
    assert pairs(first) == pairs(second) == {(0, 1)}
    other.close()


def branch_handle(graph, stream):
    """Return the branch that the capture on ``stream`` has joined."""
    with fork(stream, 1) as (branch,):
        return branch.ptr


def test_branches_have_the_priority_of_the_stream(runtime):
    urgent = gk.Stream(priority=-1)
    with fork(urgent, 2) as branches:
        assert [branch.priority for branch in branches] == [urgent.priority] * 2
    with fork(gk.Stream(), 1) as (branch,):
        assert branch.priority == 0


# --- what raises ---------------------------------------------------------------------------------


def test_an_exception_joins_the_branches_and_passes(stream, arrays):
    def forks():
        with fork(stream, 2) as (left, _):
            add(x, y, left)
            raise KeyError("mine")

    x, y, z, *_ = arrays
    with pytest.raises(KeyError, match="mine") as caught, gk.capture(stream):
        forks()
    # The capture ended in order: its failure would have been noted.
    assert not hasattr(caught.value, "__notes__")
    with gk.capture(stream) as graph:
        with pytest.raises(KeyError, match="mine"):
            forks()
        add(y, z, stream)
    assert pairs(graph) == {(0, 1)}


def test_a_capture_that_died_says_so_itself(stream, arrays):
    def dies():
        with gk.capture(stream), fork(stream, 2) as (left, _):
            add(x, y, left)
            with suppress(gk.CudaError):
                left.synchronize()

    x, y, *_ = arrays
    with pytest.raises(gk.CaptureError) as caught:
        dies()
    assert caught.value.name == "cudaErrorStreamCaptureInvalidated"
    with gk.capture(stream) as graph, fork(stream, 2) as (left, _):
        add(x, y, left)
    assert len(graph.nodes) == 1


def test_a_fork_of_a_capture_that_died_is_refused(stream, arrays):
    def dies():
        with gk.capture(stream):
            with suppress(gk.CudaError):
                stream.synchronize()
            with fork(stream, 2):
                pytest.fail("there is nothing to fork")

    with pytest.raises(gk.CudaError) as caught:
        dies()
    assert caught.value.name == "cudaErrorStreamCaptureInvalidated"
    with fork(stream, 2) as (left, _):
        add(arrays[0], arrays[1], left)
    stream.synchronize()


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_an_interrupted_join_leaves_no_branch_behind(stream, arrays, runtime, monkeypatch, broken):
    x, y, z, u, *_ = arrays
    calls = []
    record = runtime.event_record

    def fails_once(event, handle):
        calls.append(handle)
        if len(calls) == 2 + broken:  # the first is the fork
            raise KeyboardInterrupt
        record(event, handle)

    def forks():
        with fork(stream, 3) as branches:
            for branch, to in zip(branches, (y, z, u), strict=True):
                add(x, to, branch)

    with gk.capture(stream) as graph:
        with monkeypatch.context() as patched:
            patched.setattr(runtime, "event_record", fails_once)
            with pytest.raises(KeyboardInterrupt):
                forks()
        add(y, z, stream)
    assert len(calls) == 5
    assert pairs(graph) == {(0, 3), (1, 3), (2, 3)}


def test_an_entry_that_fails_joins_what_it_began(stream, arrays, runtime, monkeypatch):
    x, y, *_ = arrays
    wait, waits = runtime.stream_wait_event, []

    def fails_third(handle, event):
        waits.append(handle)
        if len(waits) == 3:
            raise gk.CudaError("cudaStreamWaitEvent", 1)
        wait(handle, event)

    with gk.capture(stream) as graph:
        with monkeypatch.context() as patched:
            patched.setattr(runtime, "stream_wait_event", fails_third)
            with pytest.raises(gk.CudaError, match="cudaStreamWaitEvent"):
                fork(stream, 3).__enter__()
        add(x, y, stream)
    assert len(graph.nodes) == 1


# --- misuse --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "error"), [(0, ValueError), (-1, ValueError), (1.0, TypeError)])
def test_a_fork_needs_a_branch(stream, n, error):
    with pytest.raises(error, match="n: expected"):
        fork(stream, n)


def test_a_bool_is_no_count(stream):
    with pytest.raises(TypeError, match="n: expected an int of 1 or more, came True"):
        fork(stream, True)


def test_a_fork_needs_a_stream(runtime):
    with pytest.raises(TypeError, match="stream: expected"):
        fork(None, 2)


def test_a_branch_is_refused_after_its_block(stream, arrays):
    x, y, *_ = arrays
    with gk.Graph() as graph:
        graph.add_memset_node(y, 1.0)
        exe = graph.instantiate()
    with fork(stream, 1) as (branch,):
        exe.launch(branch)
        launch = exe.launcher(branch)
    for use in (
        branch.synchronize,
        lambda: add(x, y, branch),
        lambda: stream_of(branch),
        lambda: fork(branch, 1),
        lambda: exe.launch(branch),
        launch,
        lambda: gk.capture(branch),
    ):
        with pytest.raises(ValueError, match="stream: expected a"):
            use()
    assert repr(branch) == "<Branch closed>"
    stream.synchronize()
    exe.close()


def stream_of(branch):
    with current_stream(branch):
        pass


def test_a_fork_is_entered_once(stream):
    once = fork(stream, 1)
    with once, pytest.raises(ValueError, match="fork: expected a fresh fork"):
        once.__enter__()
    with pytest.raises(ValueError, match="fork: expected a fresh fork"):
        once.__enter__()
    with pytest.raises(
        ValueError, match=r"fork: expected one inside .* came one that was not ente"
    ):
        fork(stream, 1).__exit__(None, None, None)


def test_a_fork_is_left_once(stream):
    once = fork(stream, 2)
    with once:
        pass
    with pytest.raises(ValueError, match=r"fork: expected one inside .* whose block has ended"):
        once.__exit__(None, None, None)
    with fork(stream, 2) as first, fork(stream, 2) as second:
        assert len({branch.ptr for branch in (*first, *second)}) == 4


def test_streams_are_kept_where_cuda_does_not_say_what_they_capture(stream, runtime, monkeypatch):
    info, asked = runtime.stream_get_capture_info, []

    def fails_third(handle):
        asked.append(handle)
        if len(asked) == 3:
            raise gk.CudaError("cudaStreamGetCaptureInfo", 1)
        return info(handle)

    with fork(stream, 2) as branches:
        before = {branch.ptr for branch in branches}
    with monkeypatch.context() as patched:
        patched.setattr(runtime, "stream_get_capture_info", fails_third)
        with pytest.raises(gk.CudaError, match="cudaStreamGetCaptureInfo"):
            fork(stream, 2).__enter__()
    with fork(stream, 2) as branches:
        assert {branch.ptr for branch in branches} == before


def test_a_branch_that_was_closed_is_joined(stream, arrays):
    x, y, z, *_ = arrays
    with gk.capture(stream) as graph:
        with fork(stream, 1) as (branch,):
            add(x, y, branch)
            branch.close()
        add(y, z, stream)
    assert pairs(graph) == {(0, 1)}


# --- streams that do not capture -----------------------------------------------------------------


def test_without_a_capture_the_work_is_ordered_all_the_same(stream, arrays):
    x, y, z, u, v, _ = arrays
    for _ in range(20):
        add(x, y, stream)
        with fork(stream, 3) as (a, b, c):
            add(y, z, a)
            add(y, u, b)
            add(y, v, c)
            with fork(a, 2) as (d, e):
                add(z, x, d, -2.0)
                assert e.query() in (True, False)
        AXPY(1, N, (z, u, 1.0, N), stream=stream)
        add(u, y, stream)
    stream.synchronize()
    assert u.get().tolist() == [4.0] * N
    assert x.get().tolist() == [0.0] * N


def test_a_stream_given_as_an_int_is_forked(stream, arrays):
    x, y, z, *_ = arrays
    with fork(stream.ptr, 2, runtime=stream.runtime) as (left, right):
        add(x, y, left)
        add(x, z, right)
    stream.synchronize()
    assert (y.get() + z.get()).tolist() == [2.0] * N


def test_a_branch_launches_graphs_and_copies(stream, arrays):
    x, y, z, *_ = arrays
    pinned = gk.empty_pinned(N)
    graph = gk.Graph()
    graph.add_memset_node(y, 3.0)
    exe = graph.instantiate()
    seen = []
    with fork(stream, 2) as (left, right):
        exe.launch(left)
        gk.memcpy_async(pinned, y, left)
        left.launch_host_func(lambda: seen.append(float(pinned[0])))
        with current_stream(right):
            add(x, z, right)
    stream.synchronize()
    assert seen == [3.0]
    assert np.array_equal(z.get(), np.ones(N, np.float32))
    exe.close()


def test_an_exec_lets_go_of_what_was_launched_on_a_branch(stream, arrays, runtime, monkeypatch):
    x, y, *_ = arrays
    graph = gk.Graph()
    node = graph.add_kernel_node(ADD_SCALAR, 1, N, (x, y, 1.0, N))
    exe = graph.instantiate()
    with fork(stream, 1) as (branch,):
        exe.launch(branch)
    with monkeypatch.context() as patched:
        # An event tells when the launch is done with y: nobody need wait for the whole device.
        patched.setattr(runtime, "device_synchronize", pytest.fail)
        exe.set_kernel_node_params(node, args={"y": x})
        exe.close()
    stream.synchronize()
    assert y.get()[0] == 1.0


def test_the_legacy_stream_may_be_forked_outside_of_captures(runtime, arrays):
    x, y, z, *_ = arrays
    with fork(0, 2) as (left, right):
        add(x, y, left)
        add(x, z, right)
    add(y, x, 0)
    runtime.device_synchronize()
    assert x.get()[0] == 2.0


def test_an_event_of_a_branch_may_be_kept(stream, arrays):
    x, y, *_ = arrays
    with fork(stream, 1) as (branch,):
        add(x, y, branch)
        event = branch.record()
    event.synchronize()
    assert y.get()[0] == 1.0
