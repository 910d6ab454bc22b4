"""What the contenders of bench/rebind.py share: buffers, a kernel, and a clock for the device.

A line of one-thread kernel nodes, each after the one before, every one of which is given the same
buffer. The kernel adds the buffer's first and last element to a counter, ``step`` times; timed
lines have ``step`` 0 and touch nothing, verified ones count.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from launch_setting import Setting, checked
from measure import PythonCall, timed_loop

SOURCE = """
extern "C" __global__ void touch(const int* x, int* seen, int n, int step) {
    if (step) {
        seen[0] += step * (x[0] + x[n - 1]);
    }
}

extern "C" __global__ void hold(unsigned long long ns) {
    unsigned long long start, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
    do {
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    } while (now - start < ns);
}
"""
NAME = "touch"
VALUES = (3, 5)  # what the two buffers hold


class PackedTouch:
    """The kernel's arguments and the ``void*[]`` over them, in memory that can be rewritten."""

    def __init__(self, x: int, seen: int, n: int, step: int) -> None:
        self._pointers = (ctypes.c_uint64 * 2)(x, seen)
        self._numbers = (ctypes.c_int32 * 2)(n, step)
        places = [ctypes.addressof(self._pointers), ctypes.addressof(self._numbers)]
        self._table = (ctypes.c_void_p * 4)(places[0], places[0] + 8, places[1], places[1] + 4)
        # ctypes calls its format '<Q', which a memoryview will not assign to.
        self.pointer = memoryview(self._pointers).cast("B").cast("Q")
        self.address = ctypes.addressof(self._table)


@dataclass(frozen=True)
class Line:
    """One case: ``nodes`` nodes that touch buffers of ``nbytes``.

    Attributes:
        nbytes: bytes of a buffer.
        nodes: kernel nodes.
        step: how often each node counts what it sees.
        xs: two buffers to rebind to, as graphkit's arrays.
        static: the buffer that graphs are captured with.
    """

    nbytes: int
    nodes: int
    step: int
    xs: tuple[Any, Any]
    static: Any

    @property
    def n(self) -> int:
        """Elements of a buffer."""
        return self.nbytes // 4

    @property
    def addresses(self) -> list[int]:
        """The addresses of the two buffers."""
        return [int(x.ptr) for x in self.xs]


@dataclass
class Call:
    """A contender's one call: what its users write in place of ``bound(x=xs[i & 1])``.

    Attributes:
        name: as the tables show it.
        statement: source, with the names in ``names``; ``i`` is the number of the call.
        names: what the statement names.
        native: where the call times itself in C: makes its loop, given one of C's modes.
        launch: launches what the call changed, where it launches nothing itself.
        before: untimed source before it.
        after: untimed source behind it.
        every: in how many rounds it is sampled once; for calls that take long.
    """

    name: str
    statement: str
    names: Mapping[str, Any]
    native: Callable[[int], Any] | None = None
    launch: Callable[[], object] | None = None
    before: str = ""
    after: str = ""
    every: int = 1


class RebindSetting(Setting):
    """The shared stream, counter, kernels and events."""

    def __init__(self) -> None:
        super().__init__(SOURCE, NAME)
        self._hold = checked(self.driver.cuModuleGetFunction(self.module, b"hold"))
        self._ns = (ctypes.c_uint64 * 1)()
        self._arguments = (ctypes.c_void_p * 1)(ctypes.addressof(self._ns))
        self._events = [checked(self.runtime.cudaEventCreate()) for _ in range(2)]

    def line(self, nbytes: int, nodes: int, step: int) -> Line:
        """Return a case with buffers of its own."""
        gk, n = self.graphkit, nbytes // 4
        arrays = [gk.zeros((n,), np.int32) for _ in range(3)]
        for array, value in zip(arrays, VALUES, strict=False):
            ends = np.full(1, value, np.int32)
            array[:1].set(ends)
            array[n - 1 :].set(ends)
        return Line(nbytes, nodes, step, (arrays[0], arrays[1]), arrays[2])

    # --- the device's clock ----------------------------------------------------------------------

    def hold(self, nanoseconds: int) -> None:
        """Keep the stream busy while the host enqueues what is to be timed."""
        self._ns[0] = nanoseconds
        one = (1, 1, 1)
        address = ctypes.addressof(self._arguments)
        stream = self.driver.CUstream(self.stream)
        checked(self.driver.cuLaunchKernel(self._hold, *one, *one, 0, stream, address, 0))

    def record(self, which: int) -> None:
        """Record the first or the second event."""
        checked(self.runtime.cudaEventRecord(self._events[which], self.stream_handle))

    def elapsed_us(self) -> float:
        """Wait for the stream, and return the device's time between the two events."""
        self.synchronize()
        return float(checked(self.runtime.cudaEventElapsedTime(*self._events))) * 1000


def host_call(call: Call, setting: RebindSetting, *, drained: bool, waited: bool) -> PythonCall:
    """Return a contender for host time.

    Args:
        call: the call.
        setting: the setting.
        drained: whether the stream is waited for, untimed, before each sample.
        waited: whether the sample includes waiting for the stream.
    """
    names = {
        **call.names,
        "synchronize": setting.runtime.cudaStreamSynchronize,
        "timed_stream": setting.stream_handle,
    }
    wait = "synchronize(timed_stream)"
    return PythonCall(
        call.name,
        f"{call.statement}\n{wait}" if waited else call.statement,
        names,
        before=f"{call.before}\n{wait}" if drained else call.before or "pass",
        after=call.after,
    )


@dataclass
class DeviceCall:
    """A contender for device time: from the first event to the second, around one call.

    The stream is held busy for ``hold_us`` before, longer than the host takes for the call: what
    the device then does, it does without waiting for the host.
    """

    call: Call
    setting: RebindSetting
    hold_us: float
    _device: list[float] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        names = {
            **self.call.names,
            "hold": self.setting.hold,
            "hold_ns": int(1000 * self.hold_us),
            "record": self.setting.record,
            "device": self._device,
            "elapsed_us": self.setting.elapsed_us,
            "drain": self.setting.synchronize,
        }
        before = f"{self.call.before}\ndrain(); hold(hold_ns); record(0)"
        after = f"record(1); device.append(elapsed_us())\n{self.call.after}"
        self._loop = timed_loop(self.call.statement, names, before=before, after=after)

    @property
    def name(self) -> str:
        """Who it is."""
        return self.call.name

    def sample(self, first: int, count: int) -> list[float]:
        """Return device microseconds a call."""
        self._device.clear()
        self._loop(first, count)
        return [*self._device]


@dataclass
class Seldom:
    """A contender that takes part in one of ``every`` rounds only."""

    contender: Any
    every: int
    _round: int = 0

    @property
    def name(self) -> str:
        """Who it is."""
        return str(self.contender.name)

    def sample(self, first: int, count: int) -> list[float]:
        """Sample, or return nothing."""
        self._round += 1
        if (self._round - 1) % self.every:
            return []
        samples: list[float] = self.contender.sample(first, count)
        return samples
