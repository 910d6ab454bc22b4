"""Which requests a pool is warmed up with, and their arguments."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from graphkit.arrays import ArrayInfo, describe, is_array
from graphkit.device_array import DeviceArray, contiguous_strides
from graphkit.frameworks import view_like
from graphkit.lattice import Lattice
from graphkit.pool_manifest import ManifestEntry
from graphkit.pool_request import Roles
from graphkit.runtime.protocol import Runtime
from graphkit.signature import Signature, plain_value, typed_value
from graphkit.staging import PaddedCopy, launch, templates

__all__ = ["WarmRequest", "requests_of"]


class WarmRequest(NamedTuple):
    """A request to make beforehand: the shapes of its arrays and where their elements come from."""

    shapes: Mapping[str, tuple[int, ...]]
    example: Mapping[str, object]

    def smaller(self, lattice: Lattice, sizes: Sequence[int]) -> WarmRequest | None:
        """Return a request that is padded to the same bucket, None where there is no such.

        Args:
            lattice: the buckets.
            sizes: the bucket's size of each dimension.
        """
        extents = [
            size - 1 if buckets.smallest(size - 1) == size and size > 1 else size
            for buckets, size in zip(lattice.dimensions, sizes, strict=True)
        ]
        if extents == list(sizes):
            return None
        return WarmRequest(lattice.shapes_at(extents, self.shapes), self.example)

    def arguments(self, roles: Roles, runtime: Runtime, stream: object) -> dict[str, Any]:
        """Return its arguments; arrays begin with the example's elements, then comes the fill."""
        made: dict[str, Any] = {}
        for name, value in self.example.items():
            if name not in self.shapes:
                made[name] = value
                continue
            info = describe(value, name)
            array = DeviceArray(self.shapes[name], info.dtype, runtime=runtime)
            _begin_with(array, info, roles.fill_of(name, info.dtype), stream)
            made[name] = view_like(value, array)
        return made


def _begin_with(array: DeviceArray, info: ArrayInfo, fill: bytes, stream: object) -> None:
    valid = tuple(min(pair) for pair in zip(array.shape, info.shape, strict=True))
    copy = PaddedCopy(
        extents=array.shape,
        valid=valid,
        src_strides=info.strides,
        dst_strides=contiguous_strides(array.shape, array.dtype.itemsize),
        itemsize=array.dtype.itemsize,
        fill=fill,
        alignment=array.dtype.itemsize,
    )
    for template in templates([copy]):
        launch(template, [(info.ptr, array.ptr)], stream)


def requests_of(
    lattice: Lattice,
    example: Mapping[str, object] | None,
    entries: Sequence[ManifestEntry],
    runtime: Runtime,
) -> list[WarmRequest]:
    """Return the requests to warm up with: the manifest's in their order, then every other bucket.

    Args:
        lattice: the buckets.
        example: the arguments of a request; None takes arrays of graphkit's own.
        entries: the manifest's, the most valuable first.
        runtime: where arrays of graphkit's own go.

    Raises:
        ValueError: when there is neither, or the example lacks an argument of the manifest.
    """
    requests = [_of_entry(entry.key, example, runtime) for entry in entries]
    if example is None and requests:
        return requests
    if example is None:
        raise ValueError(
            "example: expected the arguments of a request or a manifest with keys, came neither"
        )
    shapes = {
        name: describe(value, name).shape for name, value in example.items() if is_array(value)
    }
    values = _values(example)
    known = [(request.shapes, _values(request.example)) for request in requests]
    for sizes in lattice.points():
        at = lattice.shapes_at(sizes, shapes)
        if (at, values) not in known:
            requests.append(WarmRequest(at, example))
    return requests


def _values(arguments: Mapping[str, object]) -> dict[str, Hashable]:
    """Return what a key has of the arguments that are no arrays."""
    return {
        name: typed_value(value, name) for name, value in arguments.items() if not is_array(value)
    }


def _of_entry(
    key: Signature, example: Mapping[str, object] | None, runtime: Runtime
) -> WarmRequest:
    given = {} if example is None else _values(example)
    arguments = {
        # Of the example where it is the same: a value of any type may be one.
        name: example[name] if example and given.get(name) == typed else plain_value(typed, name)
        for name, typed in key.values
    }
    for array in key.arrays:
        if example is None:
            smallest = tuple(min(extent, 1) for extent in array.shape)
            # Not what happens to be there: integers may be indexes.
            zeros = DeviceArray(smallest, array.dtype, runtime=runtime)
            runtime.memset_async(zeros.ptr, 0, max(zeros.nbytes, 1), 0)
            runtime.stream_synchronize(0)
            arguments[array.name] = zeros
        elif array.name in example:
            arguments[array.name] = example[array.name]
        else:
            raise ValueError(
                f"example: expected the argument {array.name} of the manifest, came "
                f"{', '.join(example)}"
            )
    return WarmRequest(key.shapes, arguments)
