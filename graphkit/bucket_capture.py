"""Captures a pool's function for a bucket: warm-ups, the sizes of what it returns, the graph."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from threading import local
from typing import Any

from graphkit.arrays import ArrayInfo, describe
from graphkit.counts import counted
from graphkit.errors import NotSimulated
from graphkit.forensics import capture_call
from graphkit.frameworks import PrivateMemory, current_stream, view_like
from graphkit.lattice import Lattice
from graphkit.pool_graph import PoolGraph, ReboundNode, alignment_of
from graphkit.rebound_capture import ReboundCapture, capture_rebound
from graphkit.rebound_inputs import CopiedError, ReboundInputs
from graphkit.returned import Returned
from graphkit.runtime.protocol import Runtime
from graphkit.signature import Signature
from graphkit.staging import launch
from graphkit.stream import Event, Stream, stream_handle
from graphkit.user_function import UserFunction

__all__ = ["BucketCapture", "refuse_pool_in_pool"]

_thread = local()  # has a `depth` above 0 while this thread runs a pool's function for a capture


def refuse_pool_in_pool() -> None:
    """Raise when this thread runs a pool's function for a capture.

    What another pool launches on its own stream would be missing in the graph.
    """
    if getattr(_thread, "depth", 0):
        raise ValueError(
            "fn: expected a function without an exec pool of its own, came a request to another "
            "pool inside of it"
        )


class BucketCapture:
    """Runs a pool's function on staging memory, eagerly and under capture.

    Captures have a stream of their own: on the pool's, another thread's eager launches would
    become a part of the graph. Libraries keep a workspace a stream, which the warm-ups create on
    this one, outside of any graph's memory.

    Args:
        fn: the pool's function.
        lattice: the pool's buckets.
        runtime: the pool's runtime.
        launch_stream: where the pool's launches go; warm-ups run behind and before them.
        warmups: eager runs before a capture.
        rebound: says whether to rebind an input pays, and is told what copies take.
    """

    def __init__(
        self,
        fn: UserFunction,
        lattice: Lattice,
        runtime: Runtime,
        launch_stream: object,
        warmups: int,
        rebound: ReboundInputs,
    ) -> None:
        self._fn = fn
        self._lattice = lattice
        self._launch_stream = launch_stream
        self._warmups = warmups
        self._rebound = rebound
        self._runtime = runtime
        self.stream = Stream(runtime=runtime)
        self.memory = PrivateMemory(runtime=runtime)
        self._event = Event(runtime=runtime)

    @contextmanager
    def in_stream_order(self) -> Iterator[None]:
        """Run the body's launches behind the pool's launches so far, and before all later ones."""
        self._event.record(self._launch_stream)
        self.stream.wait_event(self._event)
        try:
            yield
        finally:
            self._event.record(self.stream)
            self._runtime.stream_wait_event(stream_handle(self._launch_stream), self._event.ptr)

    def copy_in(self, made: PoolGraph, infos: Mapping[str, ArrayInfo]) -> None:
        """Copy all of a request's arrays into the staging memory, eagerly."""
        self._copy(made, infos, (), inward=True)

    def _copy(
        self,
        made: PoolGraph,
        infos: Mapping[str, ArrayInfo],
        without: Collection[str],
        *,
        inward: bool,
    ) -> None:
        alignment = alignment_of(info.ptr for info in infos.values())
        for copies in made.copies(infos, alignment, without=without):
            if copies.inward is inward:
                launch(copies.template, made.address_pairs(copies, infos), self.stream)

    def run(
        self,
        made: PoolGraph,
        values: Mapping[str, object],
        others: Mapping[str, object] | None = None,
    ) -> Any:
        """Run the function eagerly on what is staged, and return what it returns.

        Args:
            made: the bucket.
            values: arguments that are no arrays.
            others: arrays in place of some that are staged.
        """
        arrays = {name: item.array for name, item in made.staged.items()}
        return self._call({**values, **arrays, **(others or {})})

    def _call(self, arguments: Mapping[str, object]) -> Any:
        _thread.depth = getattr(_thread, "depth", 0) + 1
        try:
            return self._fn(arguments, self.stream)
        finally:
            _thread.depth -= 1

    def capture(
        self,
        made: PoolGraph,
        values: Mapping[str, object],
        infos: Mapping[str, ArrayInfo],
        sizes: Sequence[int],
        inputs: Mapping[str, object],
    ) -> None:
        """Warm up, then capture; fills in the graph of a bucket.

        Args:
            made: the bucket, with its staging memory.
            values: arguments that are no arrays.
            infos: the request's arrays by name, which the warm-ups run on.
            sizes: the bucket's size of each dimension.
            inputs: those of the request's arrays that the graph shall read where they are.

        Raises:
            CopiedError: when inputs that were to be rebound are better copied.
            CaptureError: when the capture died.
            Exception: whatever the function raised.
        """
        with self.in_stream_order():
            for number in range(self._warmups):
                with self._timed(made, infos, inputs):
                    self.copy_in(made, infos)
                # What libraries keep for good, made by the first run, belongs to no graph.
                with self.memory.allocating() if number else nullcontext():
                    self.run(made, values)
        exact = {name: describe(item.memory) for name, item in made.staged.items()}

        def launches(**arrays: object) -> Returned:
            self._copy(made, exact, arrays, inward=True)
            returned = Returned(self.run(made, values, arrays))
            self._copy(made, exact, arrays, inward=False)
            return returned

        rebound: tuple[ReboundNode, ...] = ()
        if inputs:
            graph, returned, rebound = self._capture_rebound(made.key, launches, inputs, infos)
        else:
            with self.memory.allocating(), current_stream(self.stream):
                graph, returned = capture_call(launches, self.stream)
        if returned.arrays:
            with self.in_stream_order():
                self._learn_axes(made, values, returned, sizes)
        in_place = {name for node in rebound for name, *_ in node.words}
        alignment = alignment_of(info.ptr for info in exact.values())
        copies = made.copies(exact, alignment, without=in_place)
        made.fill(graph, copies, None if returned.value is None else returned, rebound)

    def _capture_rebound(
        self,
        key: Signature,
        launches: Callable[..., Returned],
        inputs: Mapping[str, object],
        infos: Mapping[str, ArrayInfo],
    ) -> ReboundCapture:
        """Capture on the arrays where they are.

        Raises:
            CopiedError: when that cannot be, or some of them are better copied; noted for later.
        """
        try:
            found = capture_rebound(launches, self.stream, self.memory, inputs)
        except Exception as error:  # staged it may work; if not, that capture says why
            self._rebound.copy(key, inputs, str(error))
            raise CopiedError(str(error)) from error
        touched = {name: found.touched(name) for name in inputs}
        dear = [
            name
            for name, nodes in touched.items()
            if not self._rebound.pays(infos[name].nbytes, nodes)
        ]
        if dear:
            found.graph.close()
            nodes = ", ".join(f"{name} is in {counted(touched[name], 'node')}" for name in dear)
            why = f"{nodes}: to set them takes longer than to copy"
            self._rebound.copy(key, dear, why)
            raise CopiedError(why)
        handed = [name for name in inputs if _shares(infos[name], found.returned)]
        if handed:
            found.graph.close()
            why = f"fn returns the memory of {', '.join(handed)}, which is another request's then"
            self._rebound.copy(key, handed, why)
            raise CopiedError(why)
        return found

    @contextmanager
    def _timed(
        self, made: PoolGraph, infos: Mapping[str, ArrayInfo], inputs: Mapping[str, object]
    ) -> Iterator[None]:
        """Measure what the copies in of the body take on the device, where that is of interest."""
        if not inputs:
            yield
            return
        start, end = (Event(timing=True, runtime=self._runtime) for _ in range(2))
        start.record(self.stream)
        yield
        end.record(self.stream)
        end.synchronize()
        with suppress(NotSimulated):
            nbytes = sum(infos[name].nbytes for name, item in made.staged.items() if item.reads)
            self._rebound.observe_copy(nbytes, start.elapsed_ms(end) * 1e3)

    def _learn_axes(
        self,
        made: PoolGraph,
        values: Mapping[str, object],
        returned: Returned,
        sizes: Sequence[int],
    ) -> None:
        """Find the axes to cut: run the function at a smaller size of each dimension."""
        for dimension, size in enumerate(sizes):
            smaller = self._smaller(dimension, size)
            if smaller == size:
                continue  # only requests of just this size fall into the bucket
            at = [*sizes[:dimension], smaller, *sizes[dimension + 1 :]]
            shapes = self._lattice.shapes_at(at, made.shapes)
            # The front of what is staged holds values that the function may be given, too.
            parts = {
                name: view_like(item.array, item.memory.view(shapes[name], item.memory.dtype))
                for name, item in made.staged.items()
            }
            other = Returned(self._call({**values, **parts}))
            returned.compare(other, dimension, size, smaller)

    def _smaller(self, dimension: int, size: int) -> int:
        """Return another size of a dimension: the next smaller bucket, else half of this one."""
        smaller = [other for other in self._lattice.dimensions[dimension].sizes if other < size]
        return max(smaller, default=max(size // 2, 1))

    def close(self) -> None:
        """Let go of stream and memory; whoever keeps the memory for launches lets go of it last."""
        self._event.close()
        self.stream.close()
        del self.memory


def _shares(info: ArrayInfo, returned: Returned) -> bool:
    """Return whether an array that came back begins in the memory of an array."""
    return any(
        info.ptr <= describe(array).ptr < info.ptr + info.nbytes for array in returned.arrays
    )
