"""The graphs of a pool's buckets, and the staging memory that they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from graphkit.arena import Arena
from graphkit.arrays import describe
from graphkit.bucket_capture import BucketCapture
from graphkit.frameworks import view_like
from graphkit.lattice import Lattice
from graphkit.pool_graph import PoolGraph, StagedArgument
from graphkit.pool_request import Request, Roles
from graphkit.runtime.protocol import Runtime
from graphkit.signature import Signature
from graphkit.trial import Trial

__all__ = ["BucketGraphs"]


class BucketGraphs:
    """Captures graphs by key and keeps them in host memory.

    Args:
        runtime: the pool's runtime.
        lattice: the pool's buckets.
        capture: captures the pool's function.
        roles: what the pool was told about the function's arguments.
    """

    def __init__(
        self,
        runtime: Runtime,
        lattice: Lattice,
        capture: BucketCapture,
        roles: Roles,
    ) -> None:
        self._runtime = runtime
        self._lattice = lattice
        self._capture = capture
        self._roles = roles
        self._arenas: dict[str, Arena] = {}
        self._graphs: dict[Signature, PoolGraph] = {}
        self._closed = False

    def __contains__(self, key: Signature) -> bool:
        return key in self._graphs

    def __getitem__(self, key: Signature) -> PoolGraph:
        return self._graphs[key]

    def __len__(self) -> int:
        return len(self._graphs)

    @property
    def arena_bytes(self) -> int:
        """Bytes of the staging memory, also of what only older graphs use."""
        return sum(arena.nbytes for arena in self._arenas.values())

    @property
    def private_bytes(self) -> int:
        """Bytes that the function allocated for itself under capture."""
        return 0 if self._closed else self._capture.memory.nbytes

    @property
    def owners(self) -> list[object]:
        """What launches of any of the graphs may use."""
        return [self._capture.memory, *(made.owners for made in self._graphs.values())]

    def growth(self, request: Request) -> int:
        """Return how many bytes more the capture of a request's bucket needs.

        The staging memory that is missing, and as much as the inputs have that are rebound: for
        the time of the capture.
        """
        if request.key in self._graphs:
            return 0
        none = Arena(self._runtime)
        missing = sum(
            self._arenas.get(name, none).growth(self._largest(request, name))
            for name in request.infos
        )
        return missing + sum(request.infos[name].nbytes for name in request.key.rebound)

    def capture(self, request: Request, arguments: Mapping[str, object]) -> PoolGraph:
        """Capture the graph of a request's bucket, warming up on the request's arrays."""
        made = PoolGraph(request.key, self._stage(request, arguments))
        infos = {name: describe(arguments[name], name) for name in request.infos}
        inputs = {name: arguments[name] for name in request.key.rebound}
        self._capture.capture(made, request.values, infos, request.fit.sizes, inputs)
        self._graphs[request.key] = made
        return made

    def _stage(
        self, request: Request, arguments: Mapping[str, object]
    ) -> tuple[StagedArgument, ...]:
        """Return the staging memory of a bucket, allocating what is missing."""
        staged = []
        for name, info in request.infos.items():
            arena = self._arenas.setdefault(name, Arena(self._runtime))
            memory = arena.reserve(self._largest(request, name))
            part = memory.view(request.fit.shapes[name], info.dtype)
            staged.append(
                StagedArgument(
                    name,
                    part,
                    view_like(arguments[name], part),
                    self._roles.fill_of(name, info.dtype),
                    reads=self._roles.reads(name),
                    writes=self._roles.writes(name),
                )
            )
        return tuple(staged)

    def _largest(self, request: Request, name: str) -> int:
        """Return the bytes of an argument in the largest bucket of requests like this one."""
        sizes = [dimension.sizes[-1] for dimension in self._lattice.dimensions]
        shape = self._lattice.shapes_at(sizes, request.fit.shapes)[name]
        return prod(shape) * request.infos[name].dtype.itemsize

    def trial(
        self,
        request: Request,
        arguments: Mapping[str, object],
        launch: Callable[[], object],
        stream: object,
    ) -> Trial:
        """Return what runs a captured bucket both ways on a request's arrays."""
        infos = {name: describe(arguments[name], name) for name in request.infos}
        made = self._graphs[request.key]
        return Trial(self._capture, made, request.values, infos, launch, stream)

    def forget(self, key: Signature) -> PoolGraph:
        """Give up a bucket's graph, which no exec may hold, and return it.

        It is not closed: an exec that was made from it, and holds another now, finds its nodes by
        those of this one. The last who knows it destroys it.
        """
        return self._graphs.pop(key)

    def close(self) -> None:
        """Give up all graphs and the staging memory."""
        self._closed = True
        for made in self._graphs.values():
            made.close()
        self._graphs.clear()
        self._arenas.clear()
        self._capture.close()
