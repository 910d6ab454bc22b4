"""What bench/decode.py's contenders have in common: what one is, how it is timed, and a bandwidth.

A contender decodes one token of every sequence a step. It is put at a position, untimed, and moves
on by itself from there: timed windows begin at the same one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from decode_model import WINDOW, Answer, Size, check_answer
from exec_pool_setting import Setting
from measure import Contender, PythonCall, timed_loop

import graphkit as gk

OWN_BOUND, PEER_BOUND = 1e-2, 6e-2  # of the relative error of the logits; theirs round more often


@dataclass
class Stepper:
    """A contender.

    Attributes:
        name: as the tables show it.
        step: what is timed: enqueues one step, and returns whatever it returns.
        start: puts token, position and caches where the reference has them, and wipes what the
            step writes.
        place: puts the position somewhere.
        answer: what a step left behind, given what ``step`` returned.
        bound: of the logits' relative error.
        tokens: what one call of ``step`` decodes of every sequence.
        stops: whether it looks after each token whether to go on; such are compared apart.
        close: gives back what it holds.
    """

    name: str
    step: Callable[[], object]
    start: Callable[[], None]
    place: Callable[[int], None]
    answer: Callable[[Any], Answer]
    bound: float
    tokens: int = 1
    stops: bool = False
    close: Callable[[], None] = lambda: None

    def verify(self, expected: Answer, drain: Callable[[], None]) -> float:
        """Make the verified step; return the relative error of its logits.

        Raises:
            WrongResultError: when it is not what the reference says.
        """
        self.start()
        drain()
        returned = self.step()
        drain()
        return check_answer(self.name, self.answer(returned), expected, self.bound)


class Family(Protocol):
    """Contenders that share a state: made for a batch, and again for each context of it."""

    def makers(self, size: Size) -> Sequence[tuple[str, Callable[[], Stepper]]]:
        """Return who takes part at a size, and what makes them."""
        ...

    def close(self) -> None:
        """Give back what they share."""
        ...


class DecodeSetting(Setting):
    """The shared stream and PyTorch, with a clock for the device."""

    def __init__(self, runtime: str) -> None:
        super().__init__(runtime, ("torch",))
        self._events = [gk.Event(timing=True) for _ in range(2)]
        self.drain = self.stream.synchronize

    def record(self, which: int) -> None:
        """Record the first or the second event."""
        self._events[which].record(self.stream)

    def elapsed_us(self) -> float:
        """Wait for the stream, and return the device's time between the two events."""
        self.drain()
        return self._events[0].elapsed_ms(self._events[1]) * 1000


# --- ways of timing ------------------------------------------------------------------------------


@dataclass
class DeviceWindow:
    """Device time of a step: from an event ahead of a window of them to one behind it."""

    stepper: Stepper
    setting: DecodeSetting
    first: int
    _device: list[float] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        names = {
            "step": self.stepper.step,
            "place": self.stepper.place,
            "at": self.first,
            "record": self.setting.record,
            "elapsed_us": self.setting.elapsed_us,
            "drain": self.setting.drain,
            "device": self._device,
        }
        self._loop = timed_loop(
            f"for _ in range({WINDOW // self.stepper.tokens}): step()",
            names,
            before="place(at); drain(); record(0)",
            after="record(1); device.append(elapsed_us())",
        )

    @property
    def name(self) -> str:
        """Who it is."""
        return self.stepper.name

    def sample(self, first: int, count: int) -> list[float]:
        """Return device microseconds a step."""
        self._device.clear()
        self._loop(first, count)
        return [us / WINDOW for us in self._device]


def until_done(stepper: Stepper, setting: DecodeSetting, size: Size) -> PythonCall:
    """Return a contender for the host's time of one step and the wait for it."""
    names = {"step": stepper.step, "place": stepper.place, "at": size.context}
    return PythonCall(
        stepper.name,
        "step()\ndrain()",
        {**names, "drain": setting.drain},
        before="place(at); drain()",
        divide=stepper.tokens,
    )


def window_until_done(stepper: Stepper, setting: DecodeSetting, size: Size) -> PythonCall:
    """Return a contender for the host's time of a window of steps and the wait for the last."""
    return PythonCall(
        stepper.name,
        f"for _ in range({WINDOW // stepper.tokens}): step()\ndrain()",
        {
            "step": stepper.step,
            "place": stepper.place,
            "at": size.first,
            "drain": setting.drain,
        },
        before="place(at); drain()",
        divide=WINDOW,
    )


def seconds_of(contender: Contender) -> float:
    """Return how long one sample of a contender takes, everything around it included."""
    start = time.perf_counter()
    contender.sample(0, 1)
    return time.perf_counter() - start


# --- read bandwidth ------------------------------------------------------------------------------

_READ = r"""
extern "C" __global__ void __launch_bounds__(512) read_all(
    const uint4* __restrict__ data, unsigned int* seen, long long quads
) {
    const long long stride = (long long)gridDim.x * blockDim.x;
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    unsigned int sum = 0;
    for (; i + 7 * stride < quads; i += 8 * stride) {
        uint4 x[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(x[j].x), "=r"(x[j].y), "=r"(x[j].z), "=r"(x[j].w)
                         : "l"(data + i + j * stride));
        }
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            sum += x[j].x + x[j].y + x[j].z + x[j].w;
        }
    }
    for (; i < quads; i += stride) {
        sum += data[i].x + data[i].y + data[i].z + data[i].w;
    }
    if (sum == 0x5eed5eedu) {  // never, but the compiler does not know
        seen[0] = sum;
    }
}
"""


def read_bandwidth(
    setting: DecodeSetting, data: Any, nbytes: int, samples: int = 5
) -> tuple[list[float], str]:
    """Return bytes a second of a kernel that only reads, and the grid that it was fastest with.

    Args:
        setting: the shared setting.
        data: an array whose memory is read, as an address.
        nbytes: how many bytes of it.
        samples: how often each grid is timed.
    """
    kernel = gk.Kernel(_READ, "read_all")
    seen = gk.zeros(1, np.uint32)
    quads = nbytes // 16
    found: dict[str, list[float]] = {}
    for blocks in (132, 264, 396, 528, 1056, 2112, 8448):
        rates = found.setdefault(f"{blocks} blocks of 512 threads", [])
        for turn in range(samples + 1):
            setting.record(0)
            kernel(blocks, 512, (data, seen, quads), stream=setting.stream)
            setting.record(1)
            rate = 16 * quads / (setting.elapsed_us() * 1e-6)
            if turn:  # the first one pays for loading the kernel
                rates.append(rate)
    best = max(found, key=lambda grid: sorted(found[grid])[len(found[grid]) // 2])
    return found[best], best
