"""bench/rebind.py without a device: where copying begins to pay, and how calls are timed."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import rebind
from measure import HOST_US, Row
from rebind import CUPY_COPY, LAUNCH, OWN_TORCH, TORCH_COPY, WAIT, crossing, crossover_rows
from rebind_contenders import Torch
from rebind_setting import Call, DeviceCall, Line, PackedTouch, Seldom, host_call


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1, 2.0, 8.0), (10, 8.0, 8.0), (100, 60.0, 9.0)], 10.0),
        ([(1, 2.0, 8.0), (11, 12.0, 8.0)], 7.0),
        ([(1, 9.0, 8.0), (10, 12.0, 8.0)], 0.0),
        ([(1, 2.0, 50.0), (10, 6.5, 50.0), (100, 51.5, 51.0)], 99.0),
        ([(1, 1.0, 50.0), (11, 11.0, 50.0)], 50.0),  # on the line beyond
        ([(1, 1.0, 50.0), (10, 1.0, 60.0)], None),
    ],
)
def test_where_two_costs_cross(points, expected):
    found = crossing(points)
    assert found == (None if expected is None else pytest.approx(expected, abs=0.2))


def rows_of(what, own, peer, size="1 KB"):
    return [
        Row(f"{what}: {size}, {rebind.of_nodes(nodes)}", metric, value, HOST_US, low, high, count)
        for nodes, pair in own.items()
        for metric, (value, low, high), count in (
            (OWN_TORCH, pair, 40),
            (TORCH_COPY, peer[nodes], 30),
        )
    ]


def test_the_crossover_is_a_row_with_a_spread():
    own = {1: (2.0, 1.8, 2.2), 10: (6.5, 6.0, 7.0), 100: (51.5, 51.0, 52.0)}
    peer = {1: (8.0, 7.5, 8.5), 10: (8.0, 7.5, 8.5), 100: (8.0, 7.5, 8.5)}
    rows = [*rows_of(LAUNCH, own, peer), *rows_of(WAIT, own, peer, "100 MB")]
    made = crossover_rows(rows, ["1 KB", "1 MB", "100 MB"])
    assert [(row.case, row.metric, row.unit, row.n) for row in made] == [
        (f"crossover {title}", f"{OWN_TORCH}, then {TORCH_COPY}", "touched nodes", 30)
        for title in ("in host time: 1 KB", "until the stream is done: 100 MB")
    ]
    assert made[0].value == pytest.approx(13.0, abs=0.1)
    assert made[0].p20 < made[0].value < made[0].p80
    assert not [row for row in made if CUPY_COPY in row.metric]


def test_where_copying_never_pays_there_is_no_crossover():
    own = {1: (2.0, 2.0, 2.0), 10: (2.5, 2.5, 2.5)}
    peer = {1: (8.0, 8.0, 8.0), 10: (9.0, 9.0, 9.0)}
    assert crossover_rows(rows_of(LAUNCH, own, peer), ["1 KB"]) == []


class Setting:
    """What the contenders ask of a device."""

    stream_handle = "stream"

    def __init__(self):
        self.log = []
        self.runtime = self

    def cudaStreamSynchronize(self, stream):
        self.log.append(f"synchronize {stream}")

    def synchronize(self):
        self.log.append("drain")

    def hold(self, nanoseconds):
        self.log.append(f"hold {nanoseconds}")

    def record(self, which):
        self.log.append(f"record {which}")

    def elapsed_us(self):
        return 7.5


CALL = Call(
    "peer",
    "with scope():\n    log.append(f'call {i}')\nlog.append('launch')",
    {},
    before="log.append('before')",
    after="log.append('after')",
)


@pytest.fixture
def setting():
    return Setting()


@pytest.fixture
def call(setting):
    return replace(CALL, names={"log": setting.log, "scope": nullcontext})


def test_host_time_is_taken_after_and_with_a_synchronization(setting, call):
    (sample,) = host_call(call, setting, drained=True, waited=True).sample(3, 1)
    assert sample >= 0
    wait = "synchronize stream"
    assert setting.log == ["before", wait, "call 3", "launch", wait, "after"]
    setting.log.clear()
    host_call(call, setting, drained=False, waited=False).sample(0, 1)
    assert setting.log == ["before", "call 0", "launch", "after"]


def test_device_time_is_taken_behind_a_busy_stream(setting, call):
    contender = DeviceCall(call, setting, hold_us=40)
    assert (contender.name, contender.sample(0, 2)) == ("peer", [7.5, 7.5])
    once = ["before", "drain", "hold 40000", "record 0", "call 0", "launch", "record 1", "after"]
    assert setting.log[: len(once)] == once
    assert contender.sample(2, 1) == [7.5]


def test_who_takes_long_is_sampled_seldom():
    class Slow:
        name = "slow"

        def sample(self, first, count):
            return [1.0] * count

    slow = Seldom(Slow(), 3)
    assert slow.name == "slow"
    assert [len(slow.sample(0, 5)) for _ in range(7)] == [5, 0, 0, 5, 0, 0, 5]


def test_arguments_that_every_contender_packs():
    packed = PackedTouch(1 << 40, 2 << 40, 7, 1)
    packed.pointer[0] = 3 << 40
    table = (ctypes.c_uint64 * 4).from_address(packed.address)
    sizes = (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int32, ctypes.c_int32)
    found = [kind.from_address(at).value for kind, at in zip(sizes, table, strict=True)]
    assert found == [3 << 40, 2 << 40, 7, 1]
    assert Line(1024, 1, 0, (), None).n == 256


@pytest.mark.parametrize("fails", ["begin", "launch", "end"])
def test_a_capture_of_pytorchs_that_fails_is_ended_for_its_allocator_too(fails):
    capturing, streams = [], []

    def refuse(what):
        if what == fails:
            raise ZeroDivisionError(what)

    class CUDAGraph:
        def capture_begin(self, pool, capture_error_mode):
            capturing.append(pool)
            self.pool = pool
            refuse("begin")
            streams.append(self)

        def capture_end(self):
            streams.remove(self)  # refused when nothing captures
            refuse("end")
            capturing.remove(self.pool)

    torch = Torch.__new__(Torch)
    torch._abandoned = []
    torch.stream = None
    torch.setting = SimpleNamespace(
        counters=[0],
        function=0,
        stream=0,
        driver=SimpleNamespace(
            CUfunction=int, CUstream=int, cuLaunchKernel=lambda *_: refuse("launch")
        ),
    )
    torch.torch = SimpleNamespace(
        as_tensor=lambda x, device: x,
        cuda=SimpleNamespace(
            CUDAGraph=CUDAGraph,
            graph=lambda graph, pool, stream: nullcontext(),
            graph_pool_handle=object,
            current_device=lambda: 0,
        ),
        _C=SimpleNamespace(_cuda_endAllocateToPool=lambda device, pool: capturing.remove(pool)),
    )
    x = SimpleNamespace(ptr=4096)
    _, again = torch.calls(Line(1024, 0, 0, (x, x), x))
    names = {**again.names, "launches": lambda address: refuse("launch")}
    contender = host_call(replace(again, names=names), Setting(), drained=False, waited=False)
    with pytest.raises(ZeroDivisionError, match=fails):
        contender.sample(0, 1)
    assert (capturing, streams) == ([], [])
    assert len(torch._abandoned) == 1  # the allocators may ask it again
