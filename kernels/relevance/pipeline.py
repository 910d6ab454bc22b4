"""The relevance pipeline: which patches of an image matter to a query, and how many tokens each."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import graphkit as gk
from graphkit.frameworks import fingerprint
from graphkit.lifetime import thread_captures
from graphkit.stream import stream_handle

from .patches import PatchGrid
from .stages import (
    RelevanceBuffers,
    RelevanceLaunch,
    RelevanceSettings,
    check_inputs,
    relevance_graph,
    relevance_launches,
)

__all__ = ["Relevance", "RelevanceExec", "RelevancePipeline"]

# Which parameters of which nodes are a request's own.
_READS = {
    "image": (("patch_luminance", "image"),),
    "features": (("feature_entropy", "features"), ("query_similarity", "features")),
    "query": (("query_similarity", "query"),),
}


class Relevance(NamedTuple):
    """The answer to a request, in device memory: static, valid until the next one of its size.

    Attributes:
        indices: the selected patches, of the highest balance first, numbered along the rows; int32
            [k]. -1 where there are no more patches with finite scores.
        tokens: the tokens of each, int32 [k]; 0 for -1.
        balances: the balance of each, float32 [k]; NaN for -1.
    """

    indices: gk.DeviceArray
    tokens: gk.DeviceArray
    balances: gk.DeviceArray


class RelevanceExec:
    """The graph of one image size, built by hand, with its exec and what it writes.

    Attributes:
        grid: the patches of the image.
        buffers: what the launches write.
        graph: one kernel node for each launch, the three scorers side by side.
        nodes: by the name of their kernel.
        exec: the executable graph.
    """

    def __init__(
        self,
        settings: RelevanceSettings,
        image: object,
        features: object,
        query: object,
        buffers: RelevanceBuffers,
    ) -> None:
        self.grid = buffers.grid
        self.buffers = buffers
        launches = relevance_launches(settings, image, features, query, buffers)
        self.graph, self.nodes = relevance_graph(launches)
        self.exec = self.graph.instantiate()
        self._places: dict[str, tuple[int, int]] = {}
        self.result = Relevance(buffers.indices, buffers.tokens, buffers.selected)

    def rebind(self, addresses: dict[str, int], arrays: dict[str, object]) -> None:
        """Give the nodes the arrays that are others (cuGraphExecKernelNodeSetParams each)."""
        for name, address in addresses.items():
            # The array itself, too: the exec keeps the one that it was given alive, and another one
            # may own the same address by now.
            place = address, id(arrays[name])
            if self._places.get(name) != place:
                for node, parameter in _READS[name]:
                    changed = {parameter: arrays[name]}
                    self.exec.set_kernel_node_params(self.nodes[node], args=changed)
                self._places[name] = place

    def close(self) -> None:
        """Destroy the exec and the graph."""
        self.exec.close()
        self.graph.close()


class RelevancePipeline:
    """Selects the patches of an image that matter to a query, and gives each its tokens.

    Three scorers look at every patch side by side: the entropy of its features, its local contrast,
    and its similarity to the query. Their opponent balance is what patches are selected by and what
    tokens are proportional to. All of it is one executable graph, launched once a request::

        from graphkit.kernels.relevance import RelevancePipeline

        pipeline = RelevancePipeline(k=32, total_tokens=4096)
        answer = pipeline(image=image, features=features, query=query)
        pipeline.stream.synchronize()
        print(answer.indices.get(), answer.tokens.get())

    There is one exec for each image size and width of features, made by the first request of it
    (:meth:`warm` makes it beforehand). A request whose arrays lie elsewhere moves the nodes that
    read them; none is copied. (A :class:`graphkit.ExecPool` captures functions and copies what they
    are given: it cannot take a graph that was built by hand.)

    Calls come from one thread at a time.

    Args:
        k: patches to select.
        total_tokens: tokens of all selected patches together.
        stream: where graphs are launched; a new one by default.
        settings: further settings of :class:`RelevanceSettings`, by name.

    Attributes:
        settings: what it computes.
        stream: where graphs are launched.

    Raises:
        TypeError, ValueError: a setting out of range, or no stream; nothing was made.
    """

    def __init__(
        self, *, k: int, total_tokens: int, stream: gk.Stream | None = None, **settings: Any
    ) -> None:
        self.settings = RelevanceSettings(k, total_tokens, **settings)
        if stream is not None:
            stream_handle(stream)  # refuses what is none
        self.stream = gk.Stream() if stream is None else stream
        self._execs: dict[tuple[PatchGrid, int], RelevanceExec] = {}
        self._buffers: dict[PatchGrid, RelevanceBuffers] = {}
        # By what says that a request is laid out as one before, which was checked.
        self._seen: dict[tuple[Hashable, ...], RelevanceExec] = {}
        self._closed = False

    @property
    def execs(self) -> tuple[RelevanceExec, ...]:
        """One for each image size and width of features that was asked for."""
        return tuple(self._execs.values())

    def __call__(self, *, image: object, features: object, query: object) -> Relevance:
        """Launch the graph of a request's size on the pipeline's stream, and do not wait for it.

        Args:
            image: float32 [3, height, width], red, green and blue, in device memory; height and
                width are multiples of the patch.
            features: float32 [patches, width], numbered along the rows of patches.
            query: float32 [width].

        Raises:
            TypeError: when one is no array in device memory.
            ValueError: when shapes or dtypes do not agree, there are fewer than k patches, the
                pipeline is closed, or this thread captures. Nothing was launched.
        """
        found = self._bound(image, features, query)
        found.exec.launch(self.stream)
        return found.result

    def warm(self, *, image: object, features: object, query: object) -> RelevanceExec:
        """Make the exec for requests like this one (cudaGraphInstantiateWithParams, GraphUpload).

        Raises:
            TypeError, ValueError: as a request would.
        """
        found = self._bound(image, features, query)
        found.exec.upload(self.stream)
        return found

    def launch_eagerly(
        self, image: object, features: object, query: object, stream: object | None = None
    ) -> Relevance:
        """Launch the same kernels one by one.

        This can be captured, once buffers for the image size are there: an
        :class:`graphkit.ExecPool` takes it as its function, and gets a graph without branches.

        Args:
            image: as in a request.
            features: as in a request.
            query: as in a request.
            stream: any framework's stream; the pipeline's by default.

        Raises:
            TypeError, ValueError: as a request would.
        """
        for entry in self.launches(image, features, query):
            entry.launch.launch(self.stream if stream is None else stream)
        made = self._buffers[PatchGrid.of(image, self.settings.patch)]
        return Relevance(made.indices, made.tokens, made.selected)

    def launches(
        self, image: object, features: object, query: object
    ) -> tuple[RelevanceLaunch, ...]:
        """Return the kernel launches of a request, which write where its graph does.

        Raises:
            TypeError, ValueError: as a request would.
        """
        grid = self._check(image, features, query)
        return relevance_launches(self.settings, image, features, query, self._buffers_of(grid))

    def close(self) -> None:
        """Destroy the execs and graphs; launches in flight still finish. Closing twice is nothing.

        Later calls raise ValueError.
        """
        self._closed = True
        for made in self._execs.values():
            made.close()
        self._execs.clear()
        self._buffers.clear()
        self._seen.clear()

    def __enter__(self) -> RelevancePipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _bound(self, image: object, features: object, query: object) -> RelevanceExec:
        """Return the exec of a request's size, with its nodes on the request's arrays."""
        if thread_captures():
            raise ValueError(
                "pipeline: expected no live capture of this thread, came one: launch_eagerly() can "
                "be captured"
            )
        arrays = {"image": image, "features": features, "query": query}
        addresses = {}
        seen = []
        for name, array in arrays.items():
            addresses[name], layout = fingerprint(array, name)
            seen.append(layout)
        key = tuple(seen)
        found = self._seen.get(key)
        if found is None or any(address % 4 for address in addresses.values()):  # of floats
            found = self._seen[key] = self._exec_of(image, features, query)
        found.rebind(addresses, arrays)
        return found

    def _exec_of(self, image: object, features: object, query: object) -> RelevanceExec:
        grid = self._check(image, features, query)
        (width,) = gk.describe(query, "query").shape
        found = self._execs.get((grid, width))
        if found is None:
            buffers = self._buffers_of(grid)
            found = RelevanceExec(self.settings, image, features, query, buffers)
            self._execs[grid, width] = found
        return found

    def _check(self, image: object, features: object, query: object) -> PatchGrid:
        if self._closed:
            raise ValueError("pipeline: expected an open one, came one that was closed")
        return check_inputs(image, features, query, self.settings.k, self.settings.patch)

    def _buffers_of(self, grid: PatchGrid) -> RelevanceBuffers:
        found = self._buffers.get(grid)
        if found is None:
            found = self._buffers[grid] = RelevanceBuffers(grid, self.settings.k)
        return found
