"""Which inputs of a request an exec pool rebinds, and which it copies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from graphkit.buffers import ALIGNMENT
from graphkit.cost_model import CostModel
from graphkit.pool_request import Request, Roles
from graphkit.signature import Signature

__all__ = ["CopiedError", "ReboundInputs"]

# Buckets whose inputs are known to be copied, before all are looked at anew.
_REMEMBERED = 4096


class CopiedError(Exception):
    """A bucket's graph was to rebind inputs that are copied from now on; never seen by users."""


class ReboundInputs:
    """Decides by measured costs what to rebind, and remembers what it was found not to pay for.

    An input can be rebound that the function only reads, in just the shape of the bucket, without
    gaps, and aligned as what cudaMalloc returns. It takes one exec call for each node that it
    touches, where a copy takes time on the device for each byte.

    Args:
        roles: what the function's arguments are for.
        costs: what changes and copies take.
        wanted: True rebinds whatever can be, False nothing, None what costs less so.

    Attributes:
        refusals: why inputs are copied that could have been rebound, by the signature that they
            were refused for.
    """

    def __init__(self, roles: Roles, costs: CostModel, wanted: bool | None) -> None:
        self._roles = roles
        self._costs = costs
        self._wanted = wanted
        self._copied: dict[Signature, set[str]] = {}
        self.refusals: dict[Signature, str] = {}

    def choose(self, request: Request, addresses: Sequence[int]) -> Request:
        """Return the request, or the variant of it that rebinds what is worth it."""
        if self._wanted is False or request.fit.reason is not None:
            return request
        copied = self._copied.get(request.key, ())
        names = tuple(
            name
            # Sorted as in the rest of the key: one graph, whatever the arguments' order.
            for name, address in sorted(zip(request.names, addresses, strict=True))
            if name in request.infos
            and name not in copied
            and not address % ALIGNMENT
            and self._may_be(request, name)
        )
        return request.rebinding(names) if names else request

    def _may_be(self, request: Request, name: str) -> bool:
        info = request.infos[name]
        return (
            self._roles.reads(name)
            and not self._roles.writes(name)
            and info.contiguous
            and info.shape == request.fit.shapes[name]
            and self.pays(info.nbytes, 1)
        )

    def pays(self, nbytes: int, nodes: int) -> bool:
        """Return whether to set so many nodes rather than copy so many bytes."""
        return nbytes > 0 and (self._wanted is True or self._costs.rebinding_pays(nbytes, nodes))

    def observe_copy(self, nbytes: int, us: float) -> None:
        """Note what a copy into the staging memory took on the device."""
        self._costs.observe_copy(nbytes, us)

    def copy(self, key: Signature, names: Iterable[str], why: str) -> None:
        """Have some inputs of a bucket copied from now on.

        Args:
            key: the signature of the graph that rebinds, or was to rebind, them.
            names: their names.
            why: what was found, in a sentence.
        """
        if len(self._copied) >= _REMEMBERED:
            self._copied.clear()
            self.refusals.clear()
        self._copied.setdefault(key.staged(), set()).update(names)
        self.refusals[key.staged()] = why
