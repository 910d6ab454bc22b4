"""A bucket run both ways, eagerly and by its graph: do they agree, and which is faster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from graphkit.arrays import ArrayInfo
from graphkit.bucket_capture import BucketCapture
from graphkit.copying import host_copy, memset_async
from graphkit.errors import NotSimulated
from graphkit.pool_graph import PoolGraph
from graphkit.returned import Returned
from graphkit.runtime.protocol import Runtime
from graphkit.stream import Event

__all__ = ["Times", "Tolerance", "Trial", "answers", "first_difference"]

_REPEATS = 3
_POISON = 0xFF  # a NaN in every float, -1 in integers: nobody writes it by chance


class Tolerance(NamedTuple):
    """How far a graph's results may be from the eager ones, as for ``numpy.allclose``.

    Integers must be equal.
    """

    rtol: float = 1e-5
    atol: float = 1e-8


class Times(NamedTuple):
    """Device time of one run in microseconds, the best of a few."""

    eager_us: float
    graph_us: float


class Trial:
    """Runs one bucket on a request's arrays, eagerly and by its graph.

    Args:
        capture: what the bucket was captured with.
        made: the bucket's graph.
        values: arguments that are no arrays.
        infos: the request's arrays by name.
        launch: answers the request by the graph.
        stream: where ``launch`` goes.
    """

    def __init__(
        self,
        capture: BucketCapture,
        made: PoolGraph,
        values: Mapping[str, object],
        infos: Mapping[str, ArrayInfo],
        launch: Callable[[], object],
        stream: object,
    ) -> None:
        self._capture = capture
        self._made = made
        self._values = values
        self._infos = infos
        self._launch = launch
        self._stream = stream

    def disagreement(self, tolerance: Tolerance) -> str:
        """Return in a sentence how graph and eager run differ, nothing when they agree.

        Poisons what is only written before each run. An argument that the function writes though
        it was not declared as one is a disagreement, too: the caller would never see the result.
        """
        runtime, made = self._made.graph.runtime, self._made
        staged = made.staged
        with self._capture.in_stream_order():
            self._poison(self._capture.stream)
            self._capture.copy_in(made, self._infos)
        before = {name: host_copy(item.memory, runtime) for name, item in staged.items()}
        with self._capture.in_stream_order():
            returned = Returned(self._capture.run(made, self._values))
        expected = {name: host_copy(item.memory, runtime) for name, item in staged.items()}
        expected |= _numbered(returned, runtime)
        for name, item in staged.items():
            if not item.writes and before[name].tobytes() != expected[name].tobytes():
                return f"fn writes {name}, which is neither in outputs nor in inouts"
        self._poison(self._stream)
        self._launch()
        found = {name: host_copy(item.memory, runtime) for name, item in staged.items()}
        if made.returned is not None:
            found |= _numbered(made.returned, runtime)
        name = first_difference(expected, found, tolerance)
        return name and f"{name}: the graph's result differs from the eager one"

    def _poison(self, stream: object) -> None:
        for item in self._made.staged.values():
            if not item.reads:
                memset_async(item.memory.ptr, _POISON, stream, nbytes=item.memory.nbytes)

    def times(self) -> Times | None:
        """Return how long both ways take on the device, None where nothing has a time."""
        try:
            # Requests that are in flight use the same staging memory.
            with self._capture.in_stream_order():
                eager = min(
                    self._time(self._run_eagerly, self._capture.stream) for _ in range(_REPEATS)
                )
            graph = min(self._time(self._launch, self._stream) for _ in range(_REPEATS))
        except NotSimulated:
            return None
        return Times(eager, graph)

    def _run_eagerly(self) -> None:
        self._capture.run(self._made, self._values)

    def _time(self, run: Callable[[], object], stream: object) -> float:
        runtime = self._made.graph.runtime
        start, end = (Event(timing=True, runtime=runtime) for _ in range(2))
        start.record(stream)
        run()
        end.record(stream)
        end.synchronize()
        return start.elapsed_ms(end) * 1e3


def answers(
    arguments: Mapping[str, object], returned: object, runtime: Runtime
) -> dict[str, np.ndarray]:
    """Wait for the device, then return what a request was answered: arguments and results."""
    copies = {name: host_copy(array, runtime) for name, array in arguments.items()}
    return copies | _numbered(Returned(returned), runtime)


def first_difference(
    expected: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    tolerance: Tolerance,
    *,
    other_kernels: bool = False,
) -> str:
    """Return the name of the first array that differs, nothing when all agree.

    Args:
        expected: the eager run's.
        found: the graph's.
        tolerance: how far numbers that are no integers may be apart.
        other_kernels: whether other kernels may have run, as libraries choose them by size: then
            half of the digits that a dtype has are enough.
    """
    if expected.keys() != found.keys():
        return ", ".join(sorted(expected.keys() ^ found.keys()))
    for name, array in expected.items():
        wanted = np.asarray(array, _comparable(array))
        came = np.asarray(found[name], _comparable(found[name]))
        if wanted.shape != came.shape:
            return name
        if array.dtype.kind in "iub":  # indexes and tokens: none is close to another
            if not np.array_equal(came, wanted):
                return name
            continue
        rtol, atol = tolerance
        if other_kernels:
            eps = ml_dtypes.finfo(array.dtype).eps  # type: ignore[no-untyped-call]
            digits = float(eps) ** 0.5
            finite = np.abs(wanted[np.isfinite(wanted)])
            rtol, atol = max(rtol, digits), max(atol, digits * float(finite.max(initial=0)))
        if not np.allclose(came, wanted, rtol, atol, equal_nan=True):
            return name
    return ""


def _numbered(returned: Returned, runtime: Runtime) -> dict[str, np.ndarray]:
    arrays = enumerate(returned.arrays)
    return {f"returned[{place}]": host_copy(array, runtime) for place, array in arrays}


def _comparable(array: np.ndarray) -> np.dtype:
    """Return the dtype in which NumPy compares an array: it knows no bfloat16."""
    return array.dtype if array.dtype.isbuiltin == 1 else np.dtype(np.float64)
