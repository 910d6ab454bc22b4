"""Pipelines: every request gives its own result, in whatever order, or says why it cannot."""

import gc
import queue
import re
import threading
import time
from collections import deque
from importlib.resources import files
from itertools import count

import ml_dtypes
import numpy as np
import pytest
from compiled import compiled
from sample_functions import BLOCK, add_three, as_bytes, blocks
from sample_kernels import ADD_SCALAR, AXPY, FLIP

import graphkit as gk
from graphkit.pipeline import Pipeline
from graphkit.pipeline_slot import PipelineSlot

SHAPE = (6, 5)
FLOATS = (SHAPE, np.float32)
COPIES = pytest.mark.parametrize("copies", ["kernel", "engine"])


def build_add_three(graph, x, y):
    """y = x + 3 as a graph built by hand."""
    graph.add_kernel_node(ADD_SCALAR, blocks(x.size), BLOCK, (x, y, 3.0, x.size))


def two_outputs(a, b, total, flipped, stream):
    """total = a + 2 b, where flipped is the bytes of b turned."""
    ADD_SCALAR(blocks(a.size), BLOCK, (a, total, 0.0, a.size), stream=stream)
    AXPY(blocks(a.size), BLOCK, (b, total, 2.0, a.size), stream=stream)
    FLIP(blocks(b.nbytes), BLOCK, (as_bytes(b), flipped, b.nbytes), stream=stream)


def pinned(values):
    array = gk.empty_pinned(values.shape, values.dtype)
    array[...] = values
    return array


def numbered(count, shape=SHAPE):
    """Return pinned inputs, all of them different."""
    return [pinned(np.full(shape, 10 * i, np.float32)) for i in range(count)]


@pytest.fixture
def pipeline(runtime):
    with Pipeline(add_three, {"x": FLOATS}, {"y": FLOATS}) as made:
        yield made


# --- results -------------------------------------------------------------------------------------


@COPIES
@pytest.mark.parametrize("fn", [add_three, build_add_three])
@pytest.mark.parametrize("slots", [1, 2, 4])
def test_results_are_those_of_the_function_in_order(runtime, fn, copies, slots):
    xs = numbered(9)
    with Pipeline(fn, {"x": FLOATS}, {"y": FLOATS}, slots=slots, copies=copies) as pipeline:
        assert pipeline.slots == slots
        for x, y in zip(xs, pipeline.map(xs), strict=True):
            np.testing.assert_array_equal(y, x + 3)


@COPIES
def test_several_inputs_and_outputs(runtime, copies):
    outputs = {"total": FLOATS, "flipped": (120, np.uint8)}
    inputs = {"a": FLOATS, "b": FLOATS}
    with Pipeline(two_outputs, inputs, outputs, copies=copies, slots=2) as pipeline:
        for i in range(5):
            a, b = (pinned(np.full(SHAPE, i + k, np.float32)) for k in (0, 7))
            result = pipeline.submit(a=a, b=b).result()
            np.testing.assert_array_equal(result["total"], a + 2 * b)
            np.testing.assert_array_equal(
                result["flipped"], np.frombuffer(b.tobytes(), np.uint8) ^ 0x55
            )


def test_shape_and_dtype_may_be_those_of_an_example(runtime):
    example = gk.zeros(SHAPE)
    with Pipeline(add_three, {"x": example}, {"y": np.zeros(SHAPE, np.float32)}) as pipeline:
        for x, y in zip(numbered(3), pipeline.map({"x": x} for x in numbered(3)), strict=True):
            np.testing.assert_array_equal(y, x + 3)


def test_an_array_may_lie_where_another_one_was(runtime):
    room = gk.empty_pinned((3, *SHAPE))
    room[...] = np.arange(3, dtype=np.float32)[:, None, None]
    with Pipeline(add_three, {"x": FLOATS}, {"y": FLOATS}) as pipeline:
        kept = []
        for i in range(1100):  # views, some of which take the ids of those before
            view = room[i % 3]
            assert pipeline.submit(x=view).result()[0, 0] == i % 3 + 3
            if i % 2:
                kept.append(view)


def test_any_number_of_arrays_may_be_alive(runtime):
    room = gk.empty_pinned((1100, 2))
    room[...] = np.arange(1100, dtype=np.float32)[:, None]
    spec = (2, np.float32)
    with Pipeline(add_three, {"x": spec}, {"y": spec}) as pipeline:
        for i, (x, y) in enumerate(zip(room, pipeline.map(list(room)), strict=True)):
            assert y.tolist() == [i + 3, i + 3], x


def test_threads_may_bring_arrays_that_nobody_saw_before(runtime):
    (port,) = Pipeline(lambda x: x, {"x": FLOATS}, slots=1)._inputs
    (x,) = numbered(1)

    class Died:
        """A weak reference; while it is asked, another thread brings an array."""

        def __call__(self):
            port.known[len(port.known)] = (Died, 0)

    for key in range(1024):
        port.known[-1 - key] = Died(), 0
    assert port.address(x) == x.ctypes.data
    assert port.address(x) == x.ctypes.data


class Movable:
    """An array of a library whose arrays can be given other memory."""

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)


def test_an_array_may_move_to_other_memory_between_requests(runtime):
    first, second = numbered(2)
    with Pipeline(add_three, {"x": FLOATS}, {"y": FLOATS}) as pipeline:
        x = Movable(first)
        np.testing.assert_array_equal(pipeline.submit(x=x).result(), first + 3)
        x.array = second
        np.testing.assert_array_equal(pipeline.submit(x=x).result(), second + 3)
        x.array = np.zeros(SHAPE, np.float32)
        with pytest.raises(ValueError, match=r"^x: expected pinned host memory"):
            pipeline.submit(x=x)


@COPIES
def test_a_request_writes_to_the_array_it_was_given(runtime, copies):
    xs, ys = numbered(7), [gk.empty_pinned(SHAPE) for _ in range(7)]
    with Pipeline(add_three, {"x": FLOATS}, {"y": FLOATS}, copies=copies, slots=2) as pipeline:
        requests = [pipeline.submit(x=x, y=y) for x, y in zip(xs, ys, strict=True)]
        # Long after their slots were used again.
        for x, y, request in zip(xs, ys, requests, strict=True):
            assert request.result() is y
            np.testing.assert_array_equal(y, x + 3)
        # The next request without one writes to the slot's own again.
        np.testing.assert_array_equal(pipeline.submit(x=xs[0]).result(), xs[0] + 3)
        np.testing.assert_array_equal(ys[5], xs[5] + 3)
        copy = requests[0].result(copy=True)
        assert copy is not ys[0]
        np.testing.assert_array_equal(copy, xs[0] + 3)


@COPIES
def test_bytes_of_any_number_and_alignment(runtime, copies):
    def flip(x, y, stream):
        FLIP(blocks(x.nbytes), BLOCK, (x, y, x.nbytes), stream=stream)

    rng = np.random.default_rng(0)
    for size in (1, 3, 17, 64, 4099):
        spec = (size, np.uint8)
        with Pipeline(flip, {"x": spec}, {"y": spec}, slots=2, copies=copies) as pipeline:
            for offset in (0, 1, 4, 16):
                room = gk.empty_pinned(size + 32, np.uint8)
                room[:] = rng.integers(0, 256, size + 32)
                x, out = room[offset : offset + size], gk.empty_pinned(size + 32, np.uint8)
                out[:] = 7
                y = out[offset : offset + size]
                assert pipeline.submit(x=x, y=y).result() is y
                np.testing.assert_array_equal(y, x ^ 0x55)
                assert (out[:offset] == 7).all()
                assert (out[offset + size :] == 7).all()


def test_a_slot_is_written_to_directly(pipeline):
    requests = []
    for i in range(3):
        with pipeline.slot() as slot:
            slot["x"][...] = i
            requests.append(slot.submit())
    for i, request in enumerate(requests):
        np.testing.assert_array_equal(request.result(), np.full(SHAPE, i + 3, np.float32))


def test_a_slot_left_without_a_request_is_free_again(pipeline):
    for _ in range(3 * pipeline.slots):
        with pipeline.slot() as slot:
            slot["x"][...] = 1
    assert pipeline.under_way == 0
    with pipeline.slot() as slot:
        slot["x"][...] = 2
        y = gk.empty_pinned(SHAPE)
        request = slot.submit(y=y)
        with pytest.raises(ValueError, match="not submitted yet"):
            slot["x"]
    held = pipeline.slot()
    with held, pytest.raises(ValueError, match="expected a fresh one"), held:
        pass
    assert request.result() is y
    np.testing.assert_array_equal(y, np.full(SHAPE, 5, np.float32))


def test_staged_inputs_may_be_pageable_and_change_at_once(runtime):
    x = np.zeros(SHAPE, np.float32)
    with Pipeline(add_three, {"x": FLOATS}, {"y": FLOATS}, stage=True) as pipeline:
        requests = []
        for i in range(4):
            x[...] = i
            requests.append(pipeline.submit(x=x))
        x[...] = -1
        for i, request in enumerate(requests):
            np.testing.assert_array_equal(request.result(), np.full(SHAPE, i + 3, np.float32))
        with pytest.raises(ValueError, match=r"^x: expected shape \(6, 5\), came \(5,\)"):
            pipeline.submit(x=x[0])
        with pytest.raises(ValueError, match=r"^x: expected dtype float32, came float64"):
            pipeline.submit(x=x.astype(np.float64))
        with pytest.raises(TypeError, match=r"^x: expected an array on the host, came DeviceArray"):
            pipeline.submit(x=gk.zeros(SHAPE))
    with Pipeline(add_three, {"x": (2, "f4")}, {"y": (2, "f4")}, stage=True) as pipeline:
        assert pipeline.submit(x=[1, 2]).result().tolist() == [4, 5]


@pytest.mark.parametrize(
    ("dtype", "numbers", "message"),
    [
        ("i4", [1.5, 2], r"TypeError: x: expected numbers of int32, came float64"),
        ("i4", ["1", "2"], r"TypeError: x: expected numbers of int32, came <U1"),
        ("f4", [None, 1], r"TypeError: x: expected numbers of float32, came object"),
        ("f4", [1j, 2], r"TypeError: x: expected numbers of float32, came complex128"),
        ("u1", [1, 256], r"ValueError: x: expected numbers of uint8: .*256"),
        ("u1", [1, [2]], r"ValueError: x: expected numbers of uint8: "),
        ("u1", 3, r"ValueError: x: expected shape \(2,\), came \(\)"),
    ],
)
def test_staged_numbers_are_not_cut(runtime, dtype, numbers, message):
    with Pipeline(lambda x: x, {"x": (2, dtype)}, stage=True, slots=1) as pipeline:
        with pytest.raises((TypeError, ValueError)) as caught:
            pipeline.submit(x=numbers)
        assert re.match(message, f"{caught.type.__name__}: {caught.value}")
        assert pipeline.submit(x=[True, False]).result().tolist() == [1, 0]
        assert pipeline.submit(x=(3, 4)).result().tolist() == [3, 4]


def test_staged_numbers_of_a_dtype_that_numpy_does_not_know(runtime):
    spec = (2, ml_dtypes.bfloat16)
    with Pipeline(lambda x: x, {"x": spec}, stage=True, slots=1) as pipeline:
        assert pipeline.submit(x=[1.5, 2]).result().tolist() == [1.5, 2]


@pytest.mark.parametrize("named", [False, True])
def test_a_function_may_return_its_outputs(runtime, named):
    made = [gk.empty(SHAPE) for _ in range(2)]

    def returns(x, stream):
        y = made.pop()
        add_three(x, y, stream)
        return {"y": y} if named else y

    with Pipeline(returns, {"x": FLOATS}, slots=2, warmups=0) as pipeline:
        xs = numbered(5)
        for x, y in zip(xs, pipeline.map(xs), strict=True):
            np.testing.assert_array_equal(y, x + 3)


def test_each_slot_has_scratch_memory_of_its_own(runtime):
    seen = []

    def add_six(x, y, between, stream):
        add_three(x, between, stream)
        add_three(between, y, stream)
        seen.append(between.ptr)

    scratch = {"between": FLOATS}
    xs = numbered(5)
    with Pipeline(add_six, {"x": FLOATS}, {"y": FLOATS}, scratch=scratch, slots=3) as pipeline:
        for x, y in zip(xs, pipeline.map(xs), strict=True):
            np.testing.assert_array_equal(y, x + 6)
        with pytest.raises(TypeError, match=r"^between: expected one of x, y, came an unknown"):
            pipeline.submit(x=xs[0], between=xs[1])
    assert len(set(seen)) == 3


def test_a_function_that_launches_nothing_hands_on_what_is_there(runtime):
    def returns(x):
        return x

    with Pipeline(returns, {"x": FLOATS}) as pipeline:
        (x,) = numbered(1)
        np.testing.assert_array_equal(pipeline.submit(x=x).result(), x)


@pytest.mark.untraced
@COPIES
def test_ten_thousand_submits_in_random_order(runtime, copies):
    rng = np.random.default_rng(1)
    xs = [pinned(rng.standard_normal(4).astype(np.float32)) for _ in range(50)]
    ys = [gk.empty_pinned(4) for _ in range(4)]
    under_way = deque()

    def check():
        x, request = under_way.popleft()
        np.testing.assert_array_equal(request.result(), x + np.float32(3))

    with Pipeline(add_three, {"x": (4, "f4")}, {"y": (4, "f4")}, copies=copies) as pipeline:
        for i in range(10_000):
            while len(under_way) > rng.integers(0, 4):
                check()
            index = rng.integers(len(xs))
            way = rng.integers(3)
            if way == 0:
                with pipeline.slot() as slot:
                    slot["x"][...] = xs[index]
                    request = slot.submit()
            elif way == 1:
                request = pipeline.submit(x=xs[index])
            else:
                request = pipeline.submit(x=xs[index], y=ys[i % 4])
            under_way.append((xs[index], request))
        while under_way:
            check()


# --- the end of a request ------------------------------------------------------------------------


def test_asking_gets_a_request_done(pipeline):
    (x,) = numbered(1)
    request = pipeline.submit(x=x)
    while not request.done():
        pass
    assert request.done()
    np.testing.assert_array_equal(request.result(), x + 3)
    assert repr(request) == "<Request 1 done>"


def test_nothing_is_done_before_somebody_asks(sim):
    (x,) = numbered(1)
    with Pipeline(add_three, {"x": FLOATS}, {"y": FLOATS}) as pipeline:
        request = pipeline.submit(x=x)
        assert not request.done()
        assert pipeline.under_way == 1
        with pytest.raises(TimeoutError, match="request: expected it to be done within 0 s"):
            request.wait(0)
        request.wait(10)
        assert request.done()
        assert pipeline.under_way == 0


def test_a_view_is_good_until_its_slot_is_used_again(runtime):
    xs = numbered(3)
    with Pipeline(add_three, {"x": FLOATS}, {"y": FLOATS}, slots=2) as pipeline:
        first = pipeline.submit(x=xs[0])
        view, copy = first.result(), first.result(copy=True)
        pipeline.submit(x=xs[1]).result()
        assert first.result() is view
        pipeline.submit(x=xs[2]).result()
        assert first.done()
        first.wait()
        for copied in (False, True):
            with pytest.raises(ValueError, match="request 1 of its slot, where request 2 is now"):
                first.result(copy=copied)
        np.testing.assert_array_equal(copy, xs[0] + 3)
        np.testing.assert_array_equal(view, xs[2] + 3)


def test_what_comes_to_no_request_uses_no_slot_up(runtime):
    xs = numbered(3)
    with Pipeline(add_three, {"x": FLOATS}, {"y": FLOATS}, slots=2, stage=True) as pipeline:
        first, second = (pipeline.submit(x=x) for x in xs[:2])
        first.wait()
        view = second.result()
        with pipeline.slot():
            pass
        with pytest.raises(ValueError, match="x: expected shape"):
            pipeline.submit(x=xs[2][0])
        with pytest.raises(TypeError, match="z: expected one of"), pipeline.slot() as slot:
            slot.submit(z=xs[2])
        # One submit behind the second, which is good for one.
        pipeline.submit(x=xs[2]).wait()
        np.testing.assert_array_equal(view, xs[1] + 3)
        assert second.result() is view
        with pytest.raises(ValueError, match="expected a result that is still there"):
            first.result()


@COPIES
def test_a_request_that_was_interrupted_on_its_way_leaves_nothing_behind(runtime, copies):
    first, second = numbered(2)
    outputs = {"y": FLOATS}
    with Pipeline(add_three, {"x": FLOATS}, outputs, slots=1, copies=copies) as pipeline:
        np.testing.assert_array_equal(pipeline.submit(x=first).result(), first + 3)
        (slot,) = pipeline._slots
        move = slot.move[0]

        def interrupted(address):
            move(address)
            raise KeyboardInterrupt

        slot.move[0] = interrupted
        with pytest.raises(KeyboardInterrupt):
            pipeline.submit(x=second)
        slot.move[0] = move
        np.testing.assert_array_equal(pipeline.submit(x=first).result(), first + 3)


def test_a_slot_that_was_entered_and_forgotten_comes_back(runtime):
    (x,) = numbered(1)
    with Pipeline(add_three, {"x": FLOATS}, {"y": FLOATS}, slots=1) as pipeline:
        pipeline.slot().__enter__()["x"][...] = 1
        np.testing.assert_array_equal(pipeline.submit(x=x, timeout=10).result(), x + 3)


def test_of_two_outputs_the_given_one_lasts_but_is_not_told_alone(runtime):
    outputs = {"total": FLOATS, "flipped": (120, np.uint8)}
    with Pipeline(two_outputs, {"a": FLOATS, "b": FLOATS}, outputs, slots=1) as pipeline:
        (a, b), total = numbered(2), gk.empty_pinned(SHAPE)
        first = pipeline.submit(a=a, b=b, total=total)
        assert first.result()["total"] is total
        pipeline.submit(a=b, b=a)
        with pytest.raises(ValueError, match="expected a result that is still there"):
            first.result()
        np.testing.assert_array_equal(total, a + 2 * b)


def identity(x, y, stream):
    """y = x; a twin that fails below zero stands for a launch that does."""
    CHECKED(1, 1, (x, y), stream=stream)


def checked_twin(launch, x, y):
    if x.view(1)[0] < 0:
        raise ArithmeticError(f"{x.view(1)[0]} is below zero")
    y.view(1)[0] = x.view(1)[0]


CHECKED = gk.Kernel(
    'extern "C" __global__ void f(const float* x, float* y) {}', "f", twin=checked_twin
)
ONE = (1, np.float32)


def test_a_request_that_fails_says_so_and_its_slot_goes_on(sim):
    good, bad = pinned(np.float32([5])), pinned(np.float32([-1]))
    with Pipeline(identity, {"x": ONE}, {"y": ONE}, slots=1) as pipeline:
        failed = pipeline.submit(x=bad)
        while not failed.done():
            pass
        for _ in range(2):
            with pytest.raises(ArithmeticError, match="below zero"):
                failed.result()
        assert pipeline.submit(x=good).result()[0] == 5
        unseen = pipeline.submit(x=bad)
        assert pipeline.submit(x=good).result()[0] == 5
        with pytest.raises(ArithmeticError, match="below zero"):
            unseen.result()
        pipeline.submit(x=bad)
        pipeline.synchronize()
        assert pipeline.submit(x=good).result()[0] == 5
    del failed, unseen


def test_every_request_of_a_slot_that_fails_raises_its_own_error(sim):
    xs, y = [pinned(np.float32([-i])) for i in range(4)], gk.empty_pinned(1)
    with Pipeline(identity, {"x": ONE}, {"y": ONE}, slots=1) as pipeline:
        requests = [pipeline.submit(x=x, y=y) for x in xs]
        for i, request in enumerate(requests[1:], 1):
            with pytest.raises(ArithmeticError, match=f"-{i}.0 is below zero"):
                request.result()
        assert requests[0].result() is y


@pytest.mark.parametrize("stage", [False, True])
def test_requests_that_fail_spoil_no_other_slot(sim, stage):
    good, bad = ([pinned(np.float32([sign * i])) for i in (1, 2)] for sign in (1, -1))
    with Pipeline(identity, {"x": ONE}, {"y": ONE}, slots=2, stage=stage) as pipeline:
        for _ in range(2):
            failed = [pipeline.submit(x=x) for x in bad]
            for x, request in zip(bad, failed, strict=True):
                with pytest.raises(ArithmeticError, match=f"{x[0]} is below zero"):
                    request.result()
            whole = [pipeline.submit(x=x) for x in good]
            assert [request.result()[0] for request in whole] == [1, 2]
        failed = [pipeline.submit(x=x) for x in bad]
        pipeline.synchronize()
        assert all(request.done() for request in failed)
        mixed = pipeline.submit(x=good[0]), pipeline.submit(x=bad[1])
        assert mixed[0].result()[0] == 1


def test_a_request_fails_by_itself_while_another_thread_captures(sim):
    with Pipeline(identity, {"x": ONE}, {"y": ONE}, slots=1) as pipeline:
        failed = pipeline.submit(x=pinned(np.float32([-1])))
        with gk.capture(gk.Stream()):

            def look():
                with pytest.raises(ArithmeticError, match="below zero"):
                    failed.result()
                assert pipeline.submit(x=pinned(np.float32([5]))).result()[0] == 5

            in_thread(look)


# --- back-pressure -------------------------------------------------------------------------------


def test_submit_waits_for_the_oldest_request(pipeline):
    xs = numbered(2 * pipeline.slots)
    requests = [pipeline.submit(x=x) for x in xs]
    assert pipeline.under_way <= pipeline.slots
    assert all(request.done() for request in requests[: pipeline.slots])
    pipeline.synchronize()
    assert all(request.done() for request in requests)
    for x, request in zip(xs[-pipeline.slots :], requests[-pipeline.slots :], strict=True):
        np.testing.assert_array_equal(request.result(), x + 3)


def test_a_full_pipeline_refuses_who_does_not_wait(sim):
    xs = numbered(3)
    with Pipeline(add_three, {"x": FLOATS}, {"y": FLOATS}, slots=2) as pipeline:
        requests = [pipeline.submit(x=x, timeout=0) for x in xs[:2]]
        with pytest.raises(TimeoutError, match="all 2 are under way; take results first"):
            pipeline.submit(x=xs[2], timeout=0)
        with pytest.raises(TimeoutError, match="all 2 are under way"), pipeline.slot(timeout=0):
            pass
        np.testing.assert_array_equal(requests[0].result(), xs[0] + 3)
        third = pipeline.submit(x=xs[2], timeout=0)
        for x, request in zip(xs[1:], (requests[1], third), strict=True):
            np.testing.assert_array_equal(request.result(), x + 3)
        pipeline.submit(x=xs[0], timeout=10)


def test_a_thread_that_holds_all_slots_does_not_wait_for_itself(runtime):
    (x,) = numbered(1)
    with Pipeline(add_three, {"x": FLOATS}, {"y": FLOATS}, slots=1) as pipeline:
        with pipeline.slot():
            with pytest.raises(ValueError, match="a slot that this thread does not hold"):
                pipeline.submit(x=x)
            with pytest.raises(ValueError, match="no slot in this thread's hands"):
                pipeline.close()
        np.testing.assert_array_equal(pipeline.submit(x=x).result(), x + 3)


def test_another_thread_waits_for_a_held_slot(runtime):
    (x,) = numbered(1)
    results = []
    with Pipeline(add_three, {"x": FLOATS}, {"y": FLOATS}, slots=1) as pipeline:
        thread = threading.Thread(target=lambda: results.append(pipeline.submit(x=x).result()))
        with pipeline.slot():
            thread.start()
            with pytest.raises(TimeoutError, match="other threads hold all 1"):
                in_thread(lambda: pipeline.submit(x=x, timeout=0.01))
        thread.join()
        np.testing.assert_array_equal(results.pop(), x + 3)


def in_thread(fn):
    """Call a function in a thread of its own, and raise what it raises."""
    raised = []

    def call():
        try:
            fn()
        except BaseException as error:  # what pytest fails with is no Exception
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    if raised:
        raise raised.pop()


@pytest.mark.parametrize("slots", [2, 4])
def test_threads_get_their_own_results(runtime, slots):
    wrong = []
    with Pipeline(add_three, {"x": FLOATS}, {"y": FLOATS}, slots=slots) as pipeline:

        def serve(seed):
            xs, y = [pinned(np.full(SHAPE, 1000 * seed + i, np.float32)) for i in range(5)], None
            y = gk.empty_pinned(SHAPE)
            for i in range(100):
                x = xs[i % 5]
                if not (pipeline.submit(x=x, y=y).result() == x + 3).all():
                    wrong.append((seed, i))

        threads = [threading.Thread(target=serve, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_results_are_read_by_other_threads_while_the_pipeline_closes(runtime):
    pipeline = Pipeline(add_three, {"x": FLOATS}, {"y": FLOATS}, slots=3)
    waiting, seen, raised = queue.Queue(16), [], []

    def submits(seed):
        room = gk.empty_pinned((40, *SHAPE))
        room[...] = 100 * seed + np.arange(40, dtype=np.float32)[:, None, None]
        try:
            for i in count():  # a new view each time
                y = gk.empty_pinned(SHAPE)
                waiting.put((pipeline.submit(x=room[i % 40], y=y), room[i % 40] + 3))
        except Exception as error:
            raised.append(str(error))

    def reads():
        while (item := waiting.get()) is not None:
            request, expected = item
            try:
                request.done()
                seen.append(np.array_equal(request.result(), expected))
            except Exception as error:
                seen.append(str(error))

    submitters = [threading.Thread(target=submits, args=(seed,)) for seed in range(4)]
    readers = [threading.Thread(target=reads) for _ in range(2)]
    for thread in (*submitters, *readers):
        thread.start()
    while len(seen) < 30:
        time.sleep(0.001)
    pipeline.close()
    for thread in submitters:
        thread.join()
    for _ in readers:
        waiting.put(None)
    for thread in readers:
        thread.join()
    assert raised == ["pipeline: expected an open one, came a closed one"] * 4
    assert set(seen) == {True}


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeout", "error", "message"),
    [
        ("5", TypeError, "timeout: expected seconds or None, came str"),
        (True, TypeError, "timeout: expected seconds or None, came bool"),
        (-1, ValueError, "timeout: expected 0 seconds or more, came -1"),
        (float("nan"), ValueError, "timeout: expected 0 seconds or more, came nan"),
        (10**400, ValueError, "timeout: expected what a float can hold, or None"),
    ],
)
def test_what_is_no_timeout(pipeline, timeout, error, message):
    (x,) = numbered(1)
    request = pipeline.submit(x=x, timeout=np.float32(2))
    for refused in (
        lambda: pipeline.submit(x=x, timeout=timeout),
        lambda: pipeline.slot(timeout=timeout),
        lambda: request.wait(timeout),
    ):
        with pytest.raises(error, match=message):
            refused()
    np.testing.assert_array_equal(request.result(timeout=10), x + 3)


def test_what_map_does_not_take(pipeline):
    with pytest.raises(TypeError, match="requests: expected arrays or mappings of them, came int"):
        pipeline.map(3)
    results = pipeline.map([np.zeros(SHAPE, np.float32)])
    with pytest.raises(ValueError, match="x: expected pinned host memory"):
        next(results)


def test_what_may_not_stand_in_a_request(pipeline):
    (x,) = numbered(1)
    with pytest.raises(ValueError, match=r"^x: expected pinned .* came pageable.*empty_pinned"):
        pipeline.submit(x=np.zeros(SHAPE, np.float32))
    with pytest.raises(ValueError, match=r"^y: expected pinned host memory"):
        pipeline.submit(x=x, y=np.zeros(SHAPE, np.float32))
    with pytest.raises(TypeError, match=r"^x: expected an array on the host, came DeviceArray"):
        pipeline.submit(x=gk.zeros(SHAPE))
    with pytest.raises(TypeError, match=r"^x: expected an array for each input, came none"):
        pipeline.submit()
    with pytest.raises(TypeError, match=r"^z: expected one of x, y, came an unknown name"):
        pipeline.submit(x=x, z=x)
    with pytest.raises(TypeError, match=r"^x: expected an array for each input, came none"):
        pipeline.submit(x=None)
    with pytest.raises(TypeError, match=r"^y: expected an array, came None"):
        pipeline.submit(x=x, y=None)
    with pytest.raises(TypeError, match=r"^x: expected an array, came list"):
        pipeline.submit(x=[1.0])
    with pytest.raises(ValueError, match=r"^x: expected shape \(6, 5\), came \(5, 6\)"):
        pipeline.submit(x=gk.empty_pinned((5, 6)))
    with pytest.raises(ValueError, match=r"^x: expected dtype float32, came int32"):
        pipeline.submit(x=gk.empty_pinned(SHAPE, np.int32))
    with pytest.raises(ValueError, match=r"^x: expected an array without gaps, strides \(20, 4\)"):
        pipeline.submit(x=gk.empty_pinned((6, 10))[:, ::2])
    fixed = gk.empty_pinned(SHAPE)
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match=r"^y: expected an array that may be written"):
        pipeline.submit(x=x, y=fixed)
    with pytest.raises(KeyError, match="z: expected one of the inputs x"), pipeline.slot() as slot:
        slot["z"]
    with pytest.raises(TypeError, match="x: expected outputs"), pipeline.slot() as slot:
        slot.submit(x=x)
    with pytest.raises(TypeError, match="z: expected one of x, y"), pipeline.slot() as slot:
        slot.submit(z=x)
    # After all of this the pipeline is what it was, and read-only inputs are fine.
    fixed = pinned(np.ones(SHAPE, np.float32))
    fixed.flags.writeable = False
    np.testing.assert_array_equal(pipeline.submit(x=fixed).result(), fixed + 3)
    assert pipeline.under_way == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"fn": 3}, TypeError, "fn: expected a function that launches work, came int"),
        ({"inputs": {}}, TypeError, "inputs: expected names with shapes and dtypes, came {}"),
        ({"inputs": {"x": 3}}, TypeError, r"x: expected \(shape, dtype\) or an array, came 3"),
        ({"inputs": {"x": (("a",), "f4")}}, TypeError, "x: expected a shape of ints"),
        ({"inputs": {"x": ((2, 0), "f4")}}, ValueError, "x: expected at least one element"),
        ({"inputs": {"x": ((-2,), "f4")}}, ValueError, "x: expected extents of 1 or more"),
        ({"inputs": {"x": (3, "what")}}, TypeError, "x: expected a NumPy dtype, came 'what'"),
        ({"inputs": {"x": (3, object)}}, TypeError, "x: expected elements of plain bytes"),
        ({"inputs": {"a b": FLOATS}}, TypeError, "name: expected names of parameters, came 'a b'"),
        ({"inputs": {"timeout": FLOATS}}, ValueError, "inputs: expected another name than"),
        ({"inputs": {"self": FLOATS}}, ValueError, "inputs: expected another name than 'self'"),
        (
            {"inputs": {"x": ((2**62, 4), "f4")}},
            ValueError,
            "x: expected fewer than",
        ),
        ({"outputs": {"x": FLOATS}}, ValueError, "outputs: expected another name than 'x'"),
        ({"outputs": {"z": FLOATS}}, TypeError, "arguments: expected those of .*add_three"),
        ({"slots": 0}, ValueError, "slots: expected an int of 1 or more, came 0"),
        ({"slots": True}, TypeError, "slots: expected an int of 1 or more, came True"),
        ({"warmups": -1}, ValueError, "warmups: expected an int of 0 or more, came -1"),
        ({"copies": "magic"}, ValueError, "copies: expected 'auto', 'kernel' or 'engine'"),
    ],
)
def test_what_no_pipeline_is_made_of(runtime, change, error, message):
    options = {"fn": add_three, "inputs": {"x": FLOATS}, "outputs": {"y": FLOATS}} | change
    with pytest.raises(error, match=message):
        Pipeline(**options)
    assert gk.live_handles() == {}


@pytest.mark.parametrize("what", ["None", "host", "gaps", "tuple", "name", "number"])
def test_what_a_function_may_not_return(runtime, what):
    values = {
        "None": None,
        "host": np.zeros(3),
        "gaps": gk.zeros((4, 4))[:, :2],
        "tuple": (gk.zeros(3),),
        "name": {"x": gk.zeros(3)},
        "number": {"1": gk.zeros(3), 1: gk.zeros(3)},
    }
    with pytest.raises((TypeError, ValueError), match=r"^(fn|result): expected"):
        Pipeline(lambda x: values[what], {"x": FLOATS})
    values.clear()


def test_a_function_returns_the_same_for_every_slot(runtime):
    made = [gk.zeros(3), gk.zeros(4)]
    with pytest.raises(TypeError, match="fn: expected the same outputs for every slot"):
        Pipeline(lambda x: made.pop(), {"x": FLOATS}, slots=2, warmups=0)


def test_a_function_returns_its_outputs_in_one_order(runtime):
    made = [{name: gk.zeros(3) for name in names} for names in ("ab", "ba")]
    with pytest.raises(TypeError, match="fn: expected the same outputs for every slot"):
        Pipeline(lambda x: made.pop(), {"x": FLOATS}, slots=2, warmups=0)


def test_slots_do_not_share_an_output(runtime):
    shared = gk.zeros((2, *SHAPE))
    parts = iter(shared[i] for i in range(2))
    with pytest.raises(ValueError, match=r"^result: expected an output of each slot's own"):
        Pipeline(lambda x: shared, {"x": FLOATS})
    with pytest.raises(ValueError, match=r"^y: expected an output of each slot's own"):
        Pipeline(lambda x: {"y": shared[1]}, {"x": FLOATS}, slots=2)
    with Pipeline(lambda x: next(parts), {"x": FLOATS}, slots=2, warmups=0) as pipeline:
        assert pipeline.slots == 2
    with Pipeline(lambda x: shared, {"x": FLOATS}, slots=1) as pipeline:
        assert pipeline.slots == 1


def test_a_function_that_fails_at_the_capture_leaves_nothing_behind(runtime):
    def allocates(x, y, stream):
        gk.zeros(3)

    with pytest.raises(gk.CudaError, match="cudaMalloc"):
        Pipeline(allocates, {"x": FLOATS}, {"y": FLOATS}, warmups=0)

    def raises(x, y):
        raise LookupError("no such thing")

    for warmups in (0, 1):
        with pytest.raises(LookupError, match="no such thing"):
            Pipeline(raises, {"x": FLOATS}, {"y": FLOATS}, warmups=warmups)

    def raises_by_hand(graph, x, y):
        graph.add_empty_node()
        raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing"):
        Pipeline(raises_by_hand, {"x": FLOATS}, {"y": FLOATS})
    gc.collect()
    assert gk.live_handles() == {}


def test_requests_are_refused_in_a_capture(runtime, stream, pipeline):
    (x,) = numbered(1)
    y = gk.empty(SHAPE)
    device_x = gk.asarray(x)
    under_way = pipeline.submit(x=x)
    with gk.capture(stream) as graph:
        for refused in (
            lambda: pipeline.submit(x=x),
            lambda: pipeline.slot().__enter__(),
            pipeline.close,
            lambda: Pipeline(add_three, {"x": FLOATS}, {"y": FLOATS}),
        ):
            with pytest.raises(ValueError, match="pipeline: expected no live capture"):
                refused()
        add_three(device_x, y, stream)
        if not under_way.done():
            with pytest.raises(ValueError, match="one that waiting for a request would kill"):
                under_way.wait()
    np.testing.assert_array_equal(under_way.result(), x + 3)
    with graph, graph.instantiate() as exe:
        exe.launch(stream)
        np.testing.assert_array_equal(y.get(), x + 3)


# --- the end of a pipeline -----------------------------------------------------------------------


def test_close_waits_and_gives_pinned_memory_back(runtime):
    (x,) = numbered(1)
    y = gk.empty_pinned(SHAPE)
    pipeline = Pipeline(add_three, {"x": FLOATS}, {"y": FLOATS}, slots=3)
    before, given = pipeline.submit(x=x), pipeline.submit(x=x, y=y)
    pipeline.close()
    np.testing.assert_array_equal(y, x + 3)
    assert before.done()
    np.testing.assert_array_equal(before.result(), x + 3)
    assert given.result() is y
    # Beside x and y what these two requests could still be asked for.
    assert gk.live_handles() == {"pinned memory": 4}
    del before, given
    assert gk.live_handles() == {"pinned memory": 2}
    assert pipeline.slots == 3
    assert pipeline.under_way == 0
    for refused in (lambda: pipeline.submit(x=x), lambda: pipeline.slot().__enter__()):
        with pytest.raises(ValueError, match="pipeline: expected an open one, came a closed one"):
            refused()
    pipeline.close()
    assert repr(pipeline) == "<Pipeline closed>"


def test_a_result_outlives_its_pipeline(runtime):
    (x,) = numbered(1)
    with Pipeline(add_three, {"x": FLOATS}, {"y": FLOATS}) as pipeline:
        view = pipeline.submit(x=x).result()
    np.testing.assert_array_equal(view, x + 3)
    assert gk.live_handles() == {"pinned memory": 2}


def test_a_dropped_pipeline_closes_itself(runtime):
    (x,) = numbered(1)
    pipeline = Pipeline(add_three, {"x": FLOATS}, {"y": FLOATS})
    pipeline.submit(x=x)
    assert repr(pipeline).startswith("<Pipeline x (6, 5) float32, y (6, 5) float32; 4 slots")
    del pipeline
    assert gk.live_handles() == {"pinned memory": 1}


def test_a_request_outlives_its_pipeline(runtime):
    (x,) = numbered(1)
    request = Pipeline(add_three, {"x": FLOATS}, {"y": FLOATS}).submit(x=x)
    assert gk.live_handles() == {"pinned memory": 2}
    assert request.done()
    np.testing.assert_array_equal(request.result(), x + 3)


def test_a_pipeline_dropped_in_a_capture_finishes_its_requests(runtime, stream):
    (x,) = numbered(1)
    device_x, device_y = gk.asarray(x), gk.empty(SHAPE)
    pipeline = Pipeline(add_three, {"x": FLOATS}, {"y": FLOATS})
    request = pipeline.submit(x=x)
    with gk.capture(stream) as graph:
        del pipeline
        gc.collect()
        add_three(device_x, device_y, stream)
    assert len(graph.nodes) == 1
    graph.close()
    np.testing.assert_array_equal(request.result(), x + 3)


def test_closing_goes_on_where_an_interrupt_broke_it_off(runtime, monkeypatch):
    (x,) = numbered(1)
    pipeline = Pipeline(add_three, {"x": FLOATS}, {"y": FLOATS}, slots=2)
    request = pipeline.submit(x=x)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PipelineSlot, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pipeline.close()
    pipeline.close()
    np.testing.assert_array_equal(request.result(), x + 3)
    del request
    assert gk.live_handles() == {"pinned memory": 1}


@pytest.mark.parametrize("copies", ["auto", "kernel", "engine"])
def test_who_copies_is_said(runtime, copies):
    outputs = {"y": FLOATS}
    with Pipeline(add_three, {"x": FLOATS}, outputs, slots=1, copies=copies) as pipeline:
        assert pipeline.copies == ("kernel" if copies == "auto" else copies)


LARGE = 1 << 18  # floats: 1 MB, which the engine copies


def mixed(graph, x, more, y, z):
    graph.add_kernel_node(ADD_SCALAR, blocks(y.size), BLOCK, (x, y, 3.0, y.size))
    graph.add_kernel_node(ADD_SCALAR, blocks(z.size), BLOCK, (more, z, 4.0, z.size))


@pytest.mark.parametrize(
    ("sizes", "copies"),
    [
        ((LARGE, LARGE, LARGE, LARGE), "engine"),
        ((8, LARGE, 8, LARGE), "kernel and engine"),
        ((LARGE, 8, LARGE, 8), "kernel and engine"),
        ((LARGE, LARGE, 8, 8), "kernel and engine"),
        ((8, 8, 8, 8), "kernel"),
    ],
    ids=str,
)
def test_each_array_is_copied_by_what_suits_its_size(runtime, sizes, copies):
    specs = [((size,), "f4") for size in sizes]
    inputs = dict(zip(("x", "more"), specs[:2], strict=True))
    outputs = dict(zip(("y", "z"), specs[2:], strict=True))
    with Pipeline(mixed, inputs, outputs, slots=2) as pipeline:
        assert pipeline.copies == copies
        for turn in range(5):
            x, more = (gk.empty_pinned(size) for size in sizes[:2])
            x[:], more[:] = np.arange(sizes[0]) + turn, np.arange(sizes[1]) - turn
            y = gk.empty_pinned(sizes[2])
            result = pipeline.submit(x=x, more=more, y=y).result()
            small = min(sizes[0], sizes[2]), min(sizes[1], sizes[3])
            assert result["y"] is y
            np.testing.assert_array_equal(y[: small[0]], x[: small[0]] + 3)
            np.testing.assert_array_equal(result["z"][: small[1]], more[: small[1]] + 4)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_the_copy_kernels_compile_by_themselves_without_a_warning(architecture):
    source = (files("graphkit") / "pipeline_copies.cu").read_text(encoding="utf-8")
    assert not compiled(source, architecture).log
