"""What it takes to move an executable graph to another graph, learnt from the moves there were."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf

__all__ = ["CostModel", "Move"]

# Between two tries of the dearer of two ways to move an exec, the other one takes so many times as
# long in all: at first, and after so many tries.
_SOON, _SELDOM, _TRIES = 3, 30, 3
_MIB = 1 << 20


class Move(StrEnum):
    """How an exec is moved to another graph of its topology."""

    NODES = "nodes"
    UPDATE = "update"


@dataclass(slots=True)
class _Timed:
    us: float = inf
    count: int = 0
    unused: int = 0  # moves the other way since


@dataclass(slots=True)
class CostModel:
    """Microseconds that moving an exec, or a request's arrays, takes; learnt from those it took.

    A move of a kind not yet timed for so many nodes is predicted: ``nodes`` by a rate for each
    node that differs, ``update`` by one for each node and one more for each that differs. The
    rates begin at what an H200 needed (driver 580) and follow what is measured.
    """

    set_node_us: float = 0.9
    update_node_us: float = 0.06
    update_changed_us: float = 0.25
    instantiate_node_us: float = 5.5
    copy_mib_us: float = 0.5
    _timed: dict[Hashable, dict[int, dict[Move, _Timed]]] = field(default_factory=dict)

    def observe(self, topology: Hashable, total: int, changed: int, move: Move, us: float) -> None:
        """Note what a move of ``changed`` of ``total`` nodes took."""
        ways = self._timed.setdefault(topology, {}).setdefault(changed, _untimed())
        for way in ways.values():
            way.unused += 1
        timed = ways[move]
        timed.unused = 0
        timed.count += 1
        if timed.count <= _TRIES:
            # A disturbance makes a move slower, never faster; the first also makes what is kept.
            timed.us = min(timed.us, us)
        else:
            timed.us += _error(us, timed.us) / 4
        if timed.count > 1:
            self._learn(total, changed, move, us)

    def _learn(self, total: int, changed: int, move: Move, us: float) -> None:
        """Move the rates towards one measurement, each by its share in it."""
        error = _error(us, self._predict(total, changed, move)) / 4
        if move is Move.NODES:
            self.set_node_us += error / max(changed, 1)
            return
        error /= max(total**2 + changed**2, 1)
        self.update_node_us = max(self.update_node_us + error * total, 0.0)
        self.update_changed_us = max(self.update_changed_us + error * changed, 0.0)

    def observe_instantiate(self, nodes: int, us: float) -> None:
        """Note what an instantiation took."""
        each = us / max(nodes, 1)
        self.instantiate_node_us += _error(each, self.instantiate_node_us) / 4

    def observe_copy(self, nbytes: int, us: float) -> None:
        """Note what a copy into the staging memory took on the device."""
        each = us / (nbytes / _MIB)
        self.copy_mib_us += _error(each, self.copy_mib_us) / 4

    def rebinding_pays(self, nbytes: int, nodes: int) -> bool:
        """Return whether setting so many nodes takes the host less than the device a copy takes.

        Which of the two a pipeline waits for is not known, so a microsecond of either counts the
        same.
        """
        return nodes * self.set_node_us < nbytes / _MIB * self.copy_mib_us

    def forget(self, topology: Hashable) -> None:
        """Forget the moves between graphs of a topology."""
        self._timed.pop(topology, None)

    def _predict(self, total: int, changed: int, move: Move) -> float:
        if move is Move.NODES:
            return changed * self.set_node_us
        return total * self.update_node_us + changed * self.update_changed_us

    def _ways(self, topology: Hashable, changed: int) -> dict[Move, _Timed]:
        return self._timed.get(topology, {}).get(changed) or _untimed()

    def cost(self, topology: Hashable, total: int, changed: int, move: Move) -> float:
        """Return the microseconds of a move: measured where it was, else predicted."""
        timed = self._ways(topology, changed)[move]
        return timed.us if timed.count > 1 else self._predict(total, changed, move)

    def cheaper(self, topology: Hashable, total: int, changed: int) -> Move:
        """Choose how to move an exec.

        The way that seems dearer is tried whenever that costs a third of the moves since it was
        tried last, and after a few times a thirtieth: neither a wrong prediction nor a disturbance
        is believed for ever.
        """
        ways = self._ways(topology, changed)
        costs = {move: self.cost(topology, total, changed, move) for move in Move}
        best, other = sorted(Move, key=costs.__getitem__)
        if ways[best].count <= 1:
            return best
        share = _SELDOM if ways[other].count >= _TRIES else _SOON
        return other if ways[other].unused * costs[best] > share * costs[other] else best


def _untimed() -> dict[Move, _Timed]:
    return {move: _Timed() for move in Move}


def _error(came: float, expected: float) -> float:
    """Return by how much a time is off. A disturbed one says nothing by being far off."""
    return min(came - expected, expected / 2)
