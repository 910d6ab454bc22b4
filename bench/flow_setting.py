"""What the parts of bench/flow.py share: a stream, a clock for the device, verified contenders."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from measure import (
    DEVICE_US,
    Contender,
    PythonCall,
    Row,
    interleave,
    make_rows,
    rounds,
    timed_loop,
)

OWN = "graphkit"


class UnavailableError(Exception):
    """A contender cannot take part; the message says why."""


class WrongResultError(Exception):
    """A contender did something else than what is to be timed."""


class FlowSetting:
    """graphkit, a stream and, on a device, the events that time what is on it.

    Args:
        runtime: ``"sim"`` lets contenders be verified, and nothing be timed.
    """

    def __init__(self, runtime: str = "cuda") -> None:
        self.gk = importlib.import_module("graphkit")
        try:
            self.gk.use(runtime)
        except self.gk.GraphkitError as error:
            raise UnavailableError(str(error)) from error
        self.stream = self.gk.Stream()
        self.cleanup = ExitStack()
        self._events = [self.gk.Event(timing=True) for _ in range(2)]

    def bindings(self, module: str) -> Any:
        """Return a module of cuda.bindings, for contenders that call CUDA themselves.

        Raises:
            UnavailableError: on the simulator, whose handles CUDA does not know.
        """
        if self.gk.current().name != "cuda":
            raise UnavailableError(f"cuda.bindings.{module} needs a device")
        return importlib.import_module(f"cuda.bindings.{module}")

    def record(self, which: int) -> None:
        """Record the first or the second event."""
        self._events[which].record(self.stream)

    def elapsed_us(self) -> float:
        """Wait for the stream, and return the device's time between the two events."""
        self.stream.synchronize()
        return float(self._events[0].elapsed_ms(self._events[1])) * 1000

    def close(self) -> None:
        """Give back what the contenders of a part hold."""
        self.stream.synchronize()
        self.cleanup.close()


@dataclass
class FlowCall:
    """What one contender does, as its users write it.

    Attributes:
        name: as the tables show it.
        statement: source, with the names in ``names``; on return all of it is on the stream.
        names: what the statement names.
        verify: raises WrongResultError when the statement, executed once, did something else.
        divide: what of a sample is one of: iterations of a loop, for example.
    """

    name: str
    statement: str
    names: Mapping[str, Any]
    verify: Callable[[Callable[[], None]], None]
    divide: int = 1

    def once(self, setting: FlowSetting) -> None:
        """Execute the statement, and wait."""
        timed_loop(self.statement, self.names)(0, 1)
        setting.stream.synchronize()


def host_call(call: FlowCall, setting: FlowSetting, *, waited: bool) -> PythonCall:
    """Return a contender for host time on a drained stream, with or without the end's wait."""
    names = {**call.names, "drain": setting.stream.synchronize}
    statement = f"{call.statement}\ndrain()" if waited else call.statement
    return PythonCall(call.name, statement, names, before="drain()", divide=call.divide)


@dataclass
class DeviceCall:
    """A contender for device time: from an event ahead of the call to one behind it."""

    call: FlowCall
    setting: FlowSetting
    _device: list[float] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        names = {
            **self.call.names,
            "record": self.setting.record,
            "device": self._device,
            "elapsed_us": self.setting.elapsed_us,
            "drain": self.setting.stream.synchronize,
        }
        self._loop = timed_loop(
            self.call.statement,
            names,
            before="drain(); record(0)",
            after="record(1); device.append(elapsed_us())",
        )

    @property
    def name(self) -> str:
        """Who it is."""
        return self.call.name

    def sample(self, first: int, count: int) -> list[float]:
        """Return device microseconds."""
        self._device.clear()
        self._loop(first, count)
        return [us / self.call.divide for us in self._device]


Maker = tuple[str, Callable[[], FlowCall]]


@dataclass(frozen=True)
class Case:
    """Contenders that do the same, timed in one or more ways.

    Attributes:
        what: the question; the rows' cases are ``"<what>, <way>: <size>"``.
        size: the size.
        makers: makes the contenders, by name.
        baseline: the metric that ratios are to.
        samples: to keep of each, at least.
        block: calls of one contender in a row, of which ``discard`` are thrown away.
        ways: which of ``host busy``, ``until done`` and ``on the device`` to time.
    """

    what: str
    size: str
    makers: Callable[[FlowSetting], Sequence[Maker]]
    baseline: str
    samples: int = 24
    block: int = 5
    discard: int = 1
    ways: tuple[str, ...] = ("host busy", "until done", "on the device")

    @property
    def rounds(self) -> int:
        """How many rounds it takes."""
        return len(self.ways) * rounds(self.samples, self.block, self.discard)

    @property
    def name(self) -> str:
        """The question and the size."""
        return f"{self.what}: {self.size}"


def made(case: Case, setting: FlowSetting, failures: list[str]) -> Iterator[FlowCall]:
    """Make and verify the contenders of a case; who fails is told, and left out."""
    for name, make in case.makers(setting):
        try:
            call = make()
            call.verify(lambda call=call: call.once(setting))  # type: ignore[misc]
        except Exception as error:
            failures.append(f"{case.name}: {name}: {type(error).__name__}: {error}")
        else:
            yield call


def measure(
    case: Case, setting: FlowSetting, failures: list[str], advance: Callable[[], object]
) -> list[Row]:
    """Verify the contenders of a case, then time them in turns; return the rows."""
    rows: list[Row] = []
    try:
        calls = list(made(case, setting, failures))
        for way in case.ways:
            contenders: list[Contender] = []
            for call in calls:
                if way == "on the device":
                    contenders.append(DeviceCall(call, setting))
                else:
                    contenders.append(host_call(call, setting, waited=way == "until done"))
            found = interleave(
                contenders,
                samples=case.samples,
                block=case.block,
                discard=case.discard,
                advance=advance,
            )
            unit = {"unit": DEVICE_US} if way == "on the device" else {}
            rows += make_rows(
                f"{case.what}, {way}: {case.size}", found, baseline=case.baseline, **unit
            )
    except Exception as error:
        failures.append(f"{case.name}: {type(error).__name__}: {error}")
    finally:
        setting.close()
    return rows
