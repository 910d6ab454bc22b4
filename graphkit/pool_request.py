"""One shape of request to an exec pool, looked at once: its arrays, its values, its bucket."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from graphkit.arrays import ArrayInfo, describe, is_array
from graphkit.lattice import Fit, Lattice
from graphkit.pool_graph import Binding
from graphkit.signature import Signature
from graphkit.user_function import UserFunction

__all__ = ["Request", "RequestReader"]


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
    """

    names: tuple[str, ...]
    infos: Mapping[str, ArrayInfo]
    values: Mapping[str, Hashable]
    fit: Fit
    key: Signature
    bindings: dict[int, Binding] = field(default_factory=dict)


class RequestReader:
    """Looks at requests as a pool was told to.

    Args:
        fn: what the arguments are for.
        lattice: the buckets.
        names: further names of arguments that the pool was given, by what they were given as.
        key: called with the arguments, returns what else the graphs depend on.
    """

    def __init__(
        self,
        fn: UserFunction,
        lattice: Lattice,
        names: Mapping[str, Iterable[str]],
        key: Callable[..., Hashable] | None,
    ) -> None:
        self._fn = fn
        self._lattice = lattice
        self._names = {what: frozenset(given) for what, given in names.items()}
        self._key = key

    def read(self, arguments: Mapping[str, object]) -> Request:
        """Look at a request.

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
        for what, given in self._names.items():
            unknown = sorted(given - infos.keys())
            if unknown:
                names = ", ".join(infos)
                raise ValueError(
                    f"{what}: expected names of array arguments ({names}), came {unknown}"
                )
        fit = self._lattice.fit({name: info.shape for name, info in infos.items()})
        extra = None if self._key is None else self._key(**arguments)
        values = {name: value for name, value in arguments.items() if name not in infos}
        key = Signature.of(arguments, extra).with_shapes(fit.shapes)
        return Request(tuple(arguments), infos, values, fit, key)
