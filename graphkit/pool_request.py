"""One shape of request to an exec pool, looked at once: its arrays, its values, its bucket."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from graphkit.arrays import ArrayInfo, describe, is_array
from graphkit.frameworks import device_of
from graphkit.lattice import Fit, Lattice
from graphkit.pool_graph import Binding, staging_copy
from graphkit.request_shape import look_at
from graphkit.signature import Signature, typed_value
from graphkit.staging import CopyTemplate
from graphkit.user_function import UserFunction

__all__ = ["Request", "RequestReader", "Roles", "Seen"]

# What says that two requests have the same shape; the last item is the user's key, if any.
Seen = tuple[Hashable, ...]

_NO_KEY = typed_value(None, "key")


class Roles:
    """What a pool was told about the arrays that its function takes.

    Args:
        outputs: names of those that the function writes without reading them.
        inouts: names of those that it reads and writes.
        fill: by name what their padding becomes; 0 by default.

    Attributes:
        names: all names that were given, by what they were given as.

    Raises:
        TypeError: when names are no strings, or a fill is no number.
        ValueError: when a name is both, or a fill more than one number.
    """

    def __init__(
        self, outputs: Iterable[str], inouts: Iterable[str], fill: Mapping[str, object]
    ) -> None:
        self._outputs = _names("outputs", outputs)
        self._inouts = _names("inouts", inouts)
        both = sorted(self._outputs & self._inouts)
        if both:
            raise ValueError(f"inouts: expected none of the outputs, came {both}")
        _check_fill(fill)
        self._fill = dict(fill)
        self.names = {
            "outputs": self._outputs,
            "inouts": self._inouts,
            "fill": frozenset(self._fill),
        }

    def reads(self, name: str) -> bool:
        """Return whether the function reads an argument."""
        return name not in self._outputs

    def writes(self, name: str) -> bool:
        """Return whether the function writes an argument."""
        return name in self._outputs or name in self._inouts

    def fill_of(self, name: str, dtype: np.dtype[Any]) -> bytes:
        """Return an element of an argument's padding.

        Raises:
            ValueError: when the dtype cannot hold the number.
        """
        fill = self._fill.get(name, 0)
        with np.errstate(all="ignore"):  # past the range of floats lies infinity
            element = np.asarray(fill).astype(dtype)
        if dtype.kind in "iub" and element != np.asarray(fill):
            raise ValueError(
                f"fill: expected a number for {name} that {dtype} holds, came {fill!r}"
            )
        return element.tobytes()


def _names(what: str, given: Iterable[str]) -> frozenset[str]:
    # A str has names, too: its letters.
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(f"{what}: expected names of arguments, came {given!r}")
    names = frozenset(given)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"{what}: expected names of arguments, came {set(names)}")
    return names


def _check_fill(fill: object) -> None:
    if not isinstance(fill, Mapping):
        raise TypeError(f"fill: expected numbers by name of the argument, came {fill!r}")
    for name, value in fill.items():
        number = np.asarray(value)
        # ml_dtypes' numbers are "V" to NumPy.
        if number.dtype.kind not in "biufcV":
            raise TypeError(f"fill: expected a number for {name}, came {value!r}")
        if number.shape != ():
            raise ValueError(f"fill: expected one number for {name}, came {value!r}")


@dataclass(frozen=True)
class Request:
    """What all requests with arguments of the same shapes have in common.

    Attributes:
        names: the names of all arguments, in their order.
        infos: the array arguments by name; the addresses are those of the first such request.
        values: the other arguments, which a capture bakes in.
        fit: the bucket they fall into, or why there is none.
        key: the signature of that bucket's graph.
        bindings: to that graph, by the alignment that their addresses share.
        variants: the same shape with some of its inputs rebound, by their names.
        base: of a variant, the request with nothing rebound.
    """

    names: tuple[str, ...]
    infos: Mapping[str, ArrayInfo]
    values: Mapping[str, Hashable]
    fit: Fit
    key: Signature
    bindings: dict[int, Binding] = field(default_factory=dict)
    variants: dict[tuple[str, ...], Request] = field(default_factory=dict)
    base: Request | None = None

    def rebinding(self, names: tuple[str, ...]) -> Request:
        """Return the request with some inputs rebound: another graph answers it."""
        variant = self.variants.get(names)
        if variant is None:
            key = replace(self.key, rebound=names)
            variant = replace(self, key=key, bindings={}, variants={}, base=self)
            self.variants[names] = variant
        return variant

    def all_bindings(self) -> Iterator[Binding]:
        """Yield the bindings to its graph and to those of its variants."""
        for request in (self, *self.variants.values()):
            yield from request.bindings.values()

    def forget_bindings(self) -> None:
        """Drop the bindings to its graph and to those of its variants."""
        for request in (self, *self.variants.values()):
            request.bindings.clear()


class RequestReader:
    """Looks at requests as a pool was told to.

    Args:
        fn: what the arguments are for.
        lattice: the buckets.
        roles: what the pool was told about them.
        key: called with the arguments, returns what else the graphs depend on.
    """

    def __init__(
        self,
        fn: UserFunction,
        lattice: Lattice,
        roles: Roles,
        key: Callable[..., Hashable] | None,
    ) -> None:
        self._fn = fn
        self._lattice = lattice
        self._roles = roles
        self._key = key

    def look(self, arguments: Mapping[str, object]) -> tuple[Seen, list[int]]:
        """Return what says that two requests have the same shape, and the arrays' addresses."""
        seen, addresses = look_at(arguments)
        if self._key is not None:
            seen.append(typed_value(self._key(**arguments), "key"))
        return tuple(seen), addresses

    def read(self, seen: Seen, arguments: Mapping[str, object]) -> Request:
        """Look at a request.

        Args:
            seen: what it is looked up by. ``key`` is not asked again: what it looks at may have
                changed since, and this shape would be answered by the graph of another key.
            arguments: its arrays and values by name.

        Raises:
            TypeError: arguments that the function does not take, host arrays, values that cannot
                be a part of a key.
            ValueError: names that the pool was given and the request has not, or extents that the
                buckets do not take.
        """
        self._fn.check(arguments)
        infos = {
            # Not the owner: a shape is remembered for longer than its arrays live.
            name: describe(value, name)._replace(owner=None)
            for name, value in arguments.items()
            if is_array(value)
        }
        for what, given in self._roles.names.items():
            unknown = sorted(given - infos.keys())
            if unknown:
                names = ", ".join(infos)
                raise ValueError(
                    f"{what}: expected names of array arguments ({names}), came {unknown}"
                )
        fit = self._lattice.fit({name: info.shape for name, info in infos.items()})
        if fit.reason is None:
            fit = self._stageable(fit, infos)
        values = {name: value for name, value in arguments.items() if name not in infos}
        devices = {name: device_of(arguments[name], name) for name in infos}
        if len(set(devices.values())) > 1:
            raise ValueError(f"arguments: expected arrays of one device, came {devices}")
        device = next(iter(devices.values()), 0)
        key = Signature.of(arguments, device=device).with_shapes(fit.shapes)
        if self._key is not None and seen[-1] != _NO_KEY:
            key = replace(key, extra=seen[-1])
        return Request(tuple(arguments), infos, values, fit, key)

    def _stageable(self, fit: Fit, infos: Mapping[str, ArrayInfo]) -> Fit:
        """Return the fit, or one without a bucket when an array is none that staging copies."""
        for name, info in infos.items():
            fill = self._roles.fill_of(name, info.dtype)
            # Addresses may come less aligned, but not less than an element needs.
            alignment = info.dtype.itemsize & -info.dtype.itemsize
            for inward, used in (
                (True, self._roles.reads(name)),
                (False, self._roles.writes(name)),
            ):
                if not used:
                    continue
                copy = staging_copy(info, fit.shapes[name], fill, alignment, inward=inward)
                try:
                    CopyTemplate([copy])
                except ValueError as error:
                    own = {other: given.shape for other, given in infos.items()}
                    return fit.refused(own, "ineligible", f"{name} cannot be staged: {error}")
        return fit
