"""Requests as graphs: copy in, kernels, copy out as one launch, on several streams in turn."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from threading import get_ident
from typing import Any, NoReturn

from numpy.typing import NDArray

from graphkit.counts import check_count
from graphkit.host_port import HostPort, port_of
from graphkit.lifetime import live_captures, release_done, thread_captures
from graphkit.pipeline_copies import by_kernel, check_copies
from graphkit.pipeline_function import PipelineFunction
from graphkit.pipeline_request import Request
from graphkit.pipeline_slot import PipelineSlot, check_timeout
from graphkit.runtime import current
from graphkit.runtime.protocol import Runtime

__all__ = ["Pipeline", "RequestSlot"]

_TAKEN = frozenset(("self", "timeout", "stream", "graph"))  # names of parameters
_NAP_SECONDS = 20e-6


class Pipeline:
    """Sends requests through a function of device arrays, from pinned host memory and back.

    Each of the slots has buffers, a stream, and one exec that holds the copies to the device, what
    ``fn`` does, and the copies back: a request is one launch. Several are under way at once, each
    in a slot of its own::

        pipeline = gk.Pipeline(step, inputs={"x": ((32, 256), "f4")},
                               outputs={"y": ((32, 256), "f4")}, slots=4)
        request = pipeline.submit(x=pinned)       # returns at once
        y = request.result()                      # a view, good for the next 3 submits

    Slots are used in turn. With all of them under way, ``submit`` waits for the oldest. Methods
    may be called from several threads: a slot is in one thread's hands at a time, and nobody holds
    a lock while he waits. Results of one request never mix with another's.

    The end of a request is told by the graph itself, whose last node writes the request's number
    into pinned memory: asking for it costs no CUDA call.

    Args:
        fn: launches its work on the current stream, or on its parameter ``stream``, and is captured
            once a slot. With a parameter ``graph`` it adds nodes to that :class:`graphkit.Graph`
            instead. It is given device arrays for inputs and outputs by name, and the same memory
            at every request. Its host code runs at the capture only.
        inputs: by name (shape, dtype), or an example: a device array of CuPy or PyTorch lets
            ``fn`` have arrays of that library.
        outputs: likewise, for arrays that ``fn`` writes; without them ``fn`` returns an array
            (named ``"result"``) or a dict of arrays, in memory that no other slot's have.
        scratch: likewise, for device arrays that ``fn`` is given to work in, of each slot its own.
            What CuPy and PyTorch allocate in ``fn`` is each slot's own anyway.
        slots: requests under way at once at most.
        stage: copy each input into the slot's pinned memory by the host, so that arrays of any
            memory may be passed, and changed at once after ``submit``. Otherwise they must be
            pinned (:func:`graphkit.empty_pinned`) and stay as they are until the request is done;
            the exec is pointed at them, and nothing is copied by the host.
        copies: who copies, ``"kernel"`` (moved to other arrays by a store into pinned memory) or
            ``"engine"`` (memcpy nodes, moved by cudaGraphExecMemcpyNodeSetParams1D); ``"auto"``
            takes kernels for small arrays and the engine for large ones.
        warmups: eager runs of ``fn`` before a slot's capture, on zeros.

    Raises:
        TypeError, ValueError: what does not fit, before anything is allocated.
        CaptureError: when ``fn`` cannot be captured; nothing is left behind.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        inputs: Mapping[str, object],
        outputs: Mapping[str, object] | None = None,
        *,
        scratch: Mapping[str, object] | None = None,
        slots: int = 4,
        stage: bool = False,
        copies: str = "auto",
        warmups: int = 2,
    ) -> None:
        self._slots: list[PipelineSlot] = []
        self._ring: deque[PipelineSlot] = deque()
        self._closed = False
        if thread_captures():
            raise ValueError("pipeline: expected no live capture of this thread, came one")
        slots, warmups = check_count("slots", slots, 1), check_count("warmups", warmups, 0)
        runtime = current()
        ports = _ports({"inputs": inputs, "outputs": outputs, "scratch": scratch}, runtime)
        host_ports = {name: port for name, port in ports.items() if name not in (scratch or ())}
        function = PipelineFunction(
            fn, ports, outputs_named=outputs is not None, warmups=warmups, runtime=runtime
        )
        chosen = check_copies(copies)
        with ExitStack() as unfinished:
            for _ in range(slots):
                slot = PipelineSlot(function, ports, set(host_ports), chosen, runtime)
                unfinished.callback(slot.close)
                self._slots.append(slot)
                _check_alike(self._slots)
            unfinished.pop_all()
        # Of all slots the same ports, whose arrays need be looked at once only.
        self._ports: list[HostPort] = list(self._slots[0].ports.values())
        self._inputs = [port for port in self._ports if port.is_input]
        self._entries = [(port.name, port.known, port) for port in self._ports]
        self._stage = bool(stage)
        self._most = slots
        # In the order of the words, each once.
        ways = {by_kernel(chosen, port.nbytes) for port in self._ports}
        self.copies = " and ".join(("engine", "kernel")[way] for way in sorted(ways, reverse=True))
        self._ring.extend(self._slots)

    # --- requests --------------------------------------------------------------------------------

    def submit(self, *, timeout: float | None = None, **arrays: object) -> Request:
        """Start a request (one cudaGraphLaunch) and return it.

        Waits while all slots are under way, without a lock.

        Args:
            timeout: seconds to wait for a slot at most; 0 tries once.
            **arrays: every input by name. An output by name lets the result be written there
                instead of into the slot's memory, where later requests overwrite it. In pinned
                memory, but for inputs where the pipeline stages them.

        Raises:
            TypeError: an input is missing, a name is unknown, or a value is no array on the host.
            ValueError: another shape or dtype, pageable memory, a live capture of this thread, or
                a closed pipeline. The pipeline is what it was.
            TimeoutError: when no slot was free in time.
        """
        if live_captures and thread_captures():
            _refuse_capture()
        if timeout is not None:
            check_timeout(timeout)
        # By place, 0 for the slot's own memory. All is looked at before a slot is taken.
        addresses, found, ring = [], 0, self._ring
        for name, known, port in self._entries:
            array = arrays.get(name)
            if array is None:
                if port.is_input:
                    raise TypeError(f"{name}: expected an array for each input, came none")
                addresses.append(0)
                continue
            found += 1
            entry = known.get(id(array))
            if entry is not None and entry[0]() is array:
                addresses.append(entry[1])
            elif self._stage and port.is_input:
                addresses.append(0)
            else:
                addresses.append(port.address(array))
        if found != len(arrays):
            self._refuse_names(arrays)
        slot = self._take(timeout)
        give_back = ring.appendleft  # without a request it is still the next one
        try:
            if self._stage:
                for port in self._inputs:
                    port.stage(arrays[port.name], slot.inputs[port.name])
            given = arrays if found > len(self._inputs) else None
            request = Request(slot, slot.begin(addresses, arrays), given)
            give_back = ring.append
            return request
        finally:
            give_back(slot)

    def slot(self, *, timeout: float | None = None) -> RequestSlot:
        """Return a context that holds a free slot, to write inputs straight into its memory.

        The fastest way for values that the host makes anyway: they are copied by nobody::

            with pipeline.slot() as slot:
                np.multiply(a, b, out=slot["x"])
                request = slot.submit()

        Args:
            timeout: seconds to wait for a slot at most; 0 tries once.
        """
        return RequestSlot(self, timeout)

    def map(
        self, requests: Iterable[Mapping[str, object] | NDArray[Any]], *, copy: bool = False
    ) -> Iterator[Any]:
        """Yield the result of each request, in order, with as many under way as there are slots.

        Args:
            requests: the inputs of each by name; for a pipeline of one input just the array.
            copy: yield copies; else each result is good until the next one is asked for.

        Raises:
            TypeError: requests that are nothing to go through; what :meth:`submit` refuses.
        """
        if not isinstance(requests, Iterable):
            raise TypeError(
                f"requests: expected arrays or mappings of them, came {type(requests).__name__}"
            )
        return self._map(requests, copy)

    def _map(
        self, requests: Iterable[Mapping[str, object] | NDArray[Any]], copy: bool
    ) -> Iterator[Any]:
        under_way: deque[Request] = deque()
        for item in requests:
            if len(under_way) == self._most:
                yield under_way.popleft().result(copy=copy)
            arrays: Any = item if isinstance(item, Mapping) else {self._inputs[0].name: item}
            under_way.append(self.submit(**arrays))
        while under_way:
            yield under_way.popleft().result(copy=copy)

    # --- slots -----------------------------------------------------------------------------------

    def _take(self, timeout: float | None) -> PipelineSlot:
        """Take the slot that was used longest ago out of the ring, once its request is done."""
        left = timeout
        try:
            slot = self._ring.popleft()
        except IndexError:
            began = time.monotonic()
            slot = self._wait_for_ring(timeout)
            left = None if timeout is None else max(0.0, timeout - (time.monotonic() - began))
        if slot.by_signal and slot.signal[0] == slot.number:
            return slot
        try:
            free = slot.wait(slot.number, left)
        except BaseException:
            self._ring.appendleft(slot)
            raise
        if not free:
            self._ring.appendleft(slot)
            raise TimeoutError(
                f"pipeline: expected a free slot within {timeout} s, came none: all "
                f"{self._most} are under way; take results first, or use more slots"
            )
        return slot

    def _wait_for_ring(self, timeout: float | None) -> PipelineSlot:
        """Wait while every slot is in some thread's hands."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if self._closed:
                _refuse_closed()
            try:
                return self._ring.popleft()
            except IndexError:
                pass
            me = get_ident()
            if all(slot.writer == me for slot in self._slots):
                raise ValueError(
                    f"pipeline: expected a slot that this thread does not hold, came all "
                    f"{self._most} of them in `with pipeline.slot()`"
                )
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(
                    f"pipeline: expected a free slot within {timeout} s, came none: other threads "
                    f"hold all {self._most}"
                )
            time.sleep(_NAP_SECONDS)

    def _refuse_names(self, arrays: Mapping[str, object]) -> NoReturn:
        names = [port.name for port in self._ports]
        wrong = next(name for name in arrays if name not in names or arrays[name] is None)
        if wrong in names:
            raise TypeError(f"{wrong}: expected an array, came None")
        raise TypeError(f"{wrong}: expected one of {', '.join(names)}, came an unknown name")

    @property
    def slots(self) -> int:
        """How many requests can be under way at once."""
        return self._most

    @property
    def under_way(self) -> int:
        """How many requests are under way now."""
        return sum(not slot.done(slot.launched) for slot in [*self._slots])

    def synchronize(self) -> None:
        """Wait until every request so far is done; what they failed with their results tell."""
        for slot in [*self._slots]:
            slot.wait(slot.launched, None)

    # --- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Wait for all requests, then give exec, streams and memory back. Twice is nothing.

        Results stay what they are. Arrays that :meth:`Request.result` gave keep their pinned
        memory, and requests that of the results they are still to give.

        Raises:
            ValueError: inside of ``with pipeline.slot()``, and while this thread captures.
        """
        if not self._slots:
            return
        if thread_captures():
            raise ValueError(
                "pipeline: expected no live capture of this thread, came one that waiting for "
                "requests would kill"
            )
        if any(slot.writer == get_ident() for slot in self._slots):
            raise ValueError("pipeline: expected no slot in this thread's hands, came one")
        self._closed = True
        while self._slots:
            try:
                slot = self._ring.popleft()
            except IndexError:
                time.sleep(_NAP_SECONDS)  # other threads bring theirs back
                continue
            try:
                slot.wait(slot.number, None)
            except BaseException:  # an interrupt; the next close() goes on
                self._ring.appendleft(slot)
                raise
            self._slots.remove(slot)
            slot.close()
        release_done()  # what the launches kept, since they are done

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # A constructor that failed has no ring; at interpreter exit the driver may be gone.
        if getattr(self, "_ring", None) and not sys.is_finalizing() and not live_captures:
            self._slots = list(self._ring)  # nobody brings another one back
            self.close()

    def __repr__(self) -> str:
        if self._closed:
            return "<Pipeline closed>"
        names = ", ".join(f"{port.name} {port.shape} {port.dtype}" for port in self._ports)
        return f"<Pipeline {names}; {self.slots} slots, copies by {self.copies}>"


class RequestSlot:
    """A free slot in a thread's hands: made and entered by ``with pipeline.slot() as slot``.

    ``slot["x"]`` is its pinned buffer of input ``x``. Left without :meth:`submit`, it is as free
    as it was, and the next one to be used.
    """

    __slots__ = ("_pipeline", "_slot", "_timeout")

    def __init__(self, pipeline: Pipeline, timeout: float | None) -> None:
        self._slot: PipelineSlot | None = None
        check_timeout(timeout)
        self._pipeline = pipeline
        self._timeout = timeout

    def __enter__(self) -> RequestSlot:
        if self._slot is not None:
            raise ValueError("slot: expected a fresh one, came one that was entered before")
        if live_captures and thread_captures():
            _refuse_capture()
        slot = self._pipeline._take(self._timeout)
        slot.writer = get_ident()
        self._slot = slot
        return self

    def __exit__(self, *_: object) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.writer = 0
            self._pipeline._ring.appendleft(slot)

    def __del__(self) -> None:
        self.__exit__()  # for who entered it by hand and forgot it

    def _held(self) -> PipelineSlot:
        if self._slot is None:
            raise ValueError(
                "slot: expected one inside of its `with` that was not submitted yet, came another"
            )
        return self._slot

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return the pinned buffer of an input."""
        buffers = self._held().inputs
        if name not in buffers:
            raise KeyError(f"{name}: expected one of the inputs {', '.join(buffers)}")
        return buffers[name]

    def submit(self, **outputs: object) -> Request:
        """Start the request with what the buffers hold now (one cudaGraphLaunch).

        The slot is not in this thread's hands any more: write no further.

        Args:
            **outputs: arrays in pinned memory that results are written to, by name.

        Raises:
            TypeError, ValueError: as :meth:`Pipeline.submit`; the slot is kept.
        """
        if live_captures and thread_captures():
            _refuse_capture()
        pipeline, slot = self._pipeline, self._held()
        addresses, found = [], 0
        for port in pipeline._ports:
            array = outputs.get(port.name)
            if array is not None and port.is_input:
                raise TypeError(
                    f"{port.name}: expected outputs, since inputs are the slot's own, came an input"
                )
            addresses.append(0 if array is None else port.address(array))
            found += array is not None
        if found != len(outputs):
            pipeline._refuse_names(outputs)
        request = Request(slot, slot.begin(addresses, outputs), outputs or None)
        self._slot = None
        slot.writer = 0
        pipeline._ring.append(slot)
        return request


def _ports(groups: Mapping[str, Any], runtime: Runtime) -> dict[str, HostPort]:
    """Return the ports of all arrays that the function is given, by name."""
    ports: dict[str, HostPort] = {}
    for argument, named in groups.items():
        if named is None and argument != "inputs":
            continue
        if not isinstance(named, Mapping) or not named:
            raise TypeError(f"{argument}: expected names with shapes and dtypes, came {named!r}")
        for name, wanted in named.items():
            if name in _TAKEN or name in ports:
                raise ValueError(f"{argument}: expected another name than {name!r}, came it")
            ports[name] = port_of(name, wanted, runtime, is_input=argument == "inputs")
    return ports


def _check_alike(slots: list[PipelineSlot]) -> None:
    """Refuse a function that returned other arrays for the last slot, or those of an earlier one.

    The ports of all slots are in one order, since requests go through them by place.
    """
    wanted, came = (
        [(port.name, port.shape, str(port.dtype)) for port in each.ports.values()]
        for each in (slots[0], slots[-1])
    )
    if came != wanted:
        raise TypeError(f"fn: expected the same outputs for every slot, {wanted}, came {came}")
    spans = [(start, start + port.nbytes) for port, start in slots[-1].fetched.values()]
    for slot in slots[:-1]:
        for name, (port, start) in slot.fetched.items():
            if any(start < end and first < start + port.nbytes for first, end in spans):
                raise ValueError(
                    f"{name}: expected an output of each slot's own, came the same memory for two "
                    "slots, whose requests would mix; let fn allocate it, or name it in outputs="
                )


def _refuse_closed() -> NoReturn:
    raise ValueError("pipeline: expected an open one, came a closed one")


def _refuse_capture() -> NoReturn:
    raise ValueError(
        "pipeline: expected no live capture of this thread, came one: a request is launched on a "
        "stream of its own and would be missing in the graph; submit before or after the capture"
    )
