"""Diamonds of bench/flow.py: kernels side by side, by derived edges, beside one after the other.

One kernel writes what ``k`` others read, each of which writes a row of its own, and a last one adds
the rows up. The ones in the middle are small, one block each, and long: a chain of ROUNDS dependent
integer operations. Nothing keeps them apart but edges.

NOTES. Predictions, written before the first measurement on an H200:

- a link of the chain takes 4 or 5 cycles, so that a kernel takes 2.5 us for 1,000 rounds: 20 us.
- one after the other, a diamond of k takes 20 k + 3 us; side by side 20 + 4 + 0.3 k us, since the
  device starts parallel branches one by one: for 8 in the middle 163 against 27 us, six times as
  fast; for 2 43 against 25.
- derived edges, edges by hand and a captured fork make the same graph: the same time.
- adding a node to a derived graph costs 8 us of Python more than the 4 of a given one.

Measured: 26.5 us for 2, 28.3 for 8, 30.3 for 16 side by side, 45, 157 and 309 one after the other;
derived, by hand and by fork alike. A derived node costs 11 us more than a given one's 4.2.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flow_setting import OWN, Case, FlowCall, FlowSetting, Maker, WrongResultError

SIZES = (2, 4, 8, 16)
ROUNDS = 8000
N = 128  # numbers in a row, and threads of a block
NODES = 200

WHAT = "a diamond of kernels"
DERIVED = f'{OWN} edges="derived"'
FORK = f"{OWN} fork in a capture"
BY_HAND = f"{OWN} deps= by hand"
LINE = f"{OWN} one after the other"

WHAT_ADD = "adding a kernel node"
GIVEN = f"{OWN} deps= given"

# The factor comes as an argument: a compiler that knew it could fold two rounds into one.
_SOURCE = r"""
extern "C" __global__ void fill_row(unsigned* x, unsigned seed) {
    x[threadIdx.x] = threadIdx.x * 2654435761u + seed;
}

extern "C" __global__ void churn(
    const unsigned* x, unsigned* y, unsigned factor, unsigned term, int rounds) {
    unsigned value = x[threadIdx.x];
    for (int i = 0; i < rounds; i++) {
        value = value * factor + term;
    }
    y[threadIdx.x] = value;
}

extern "C" __global__ void add_rows(const unsigned* rows, unsigned* sums, int k, int n) {
    unsigned sum = 0;
    for (int row = 0; row < k; row++) {
        sum += rows[row * n + threadIdx.x];
    }
    sums[threadIdx.x] = sum;
}
"""
_FACTOR, _TERM = 1664525, 1013904223


def _fill_row(launch: Any, x: Any, seed: Any) -> None:
    x.view(N)[:] = np.arange(N, dtype=np.uint32) * np.uint32(2654435761) + seed


def _churn(launch: Any, x: Any, y: Any, factor: Any, term: Any, rounds: Any) -> None:
    scale, shift = _power(int(factor), int(term), int(rounds))
    y.view(N)[:] = x.view(N) * np.uint32(scale) + np.uint32(shift)


def _add_rows(launch: Any, rows: Any, sums: Any, k: Any, n: Any) -> None:
    sums.view(n)[:] = rows.view((k, n)).sum(axis=0, dtype=np.uint32)


def _power(factor: int, term: int, rounds: int) -> tuple[int, int]:
    """Return what ``rounds`` rounds of ``value * factor + term`` are in one."""
    scale, shift = 1, 0
    while rounds:
        if rounds & 1:
            scale, shift = scale * factor & 0xFFFFFFFF, (shift * factor + term) & 0xFFFFFFFF
        factor, term = factor * factor & 0xFFFFFFFF, (term * factor + term) & 0xFFFFFFFF
        rounds >>= 1
    return scale, shift


class Diamonds:
    """The contenders of one case: ``k`` kernels in the middle."""

    def __init__(self, setting: FlowSetting, k: int, rounds: int = ROUNDS) -> None:
        self.setting = setting
        self.k = k
        self.rounds = rounds
        gk = self.gk = setting.gk
        self.fill_row = gk.Kernel(_SOURCE, "fill_row", twin=_fill_row)
        self.churn = gk.Kernel(_SOURCE, "churn", twin=_churn)
        self.add_rows = gk.Kernel(_SOURCE, "add_rows", twin=_add_rows)
        self.x, self.sums = (gk.zeros(N, np.uint32) for _ in range(2))
        self.rows = gk.zeros((k, N), np.uint32)

    def makers(self) -> Sequence[Maker]:
        """Return how to make each contender."""
        return (
            (DERIVED, self.derived),
            (BY_HAND, self.by_hand),
            (FORK, self.forked),
            (LINE, self.line),
        )

    # --- the kernels

    @property
    def _first(self) -> tuple[Any, ...]:
        return self.fill_row, 1, N, (self.x, 7)

    def _middle(self, row: int) -> tuple[Any, ...]:
        # Each its own factor, so that no row stands for another.
        args = (self.x, self.rows[row], _FACTOR + 4 * row, _TERM, self.rounds)
        return self.churn, 1, N, args

    @property
    def _last(self) -> tuple[Any, ...]:
        return self.add_rows, 1, N, (self.rows, self.sums, self.k, N)

    def expected(self) -> np.ndarray[Any, np.dtype[np.uint32]]:
        """Return the sums, by NumPy."""
        x = np.arange(N, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(7)
        sums = np.zeros(N, np.uint32)
        for row in range(self.k):
            scale, shift = _power(_FACTOR + 4 * row, _TERM, self.rounds)
            sums += x * np.uint32(scale) + np.uint32(shift)
        return sums

    # --- the contenders

    def _call(self, name: str, graph: Any, *, edges: int) -> FlowCall:
        came = len(graph.edges)
        if came != edges:
            raise WrongResultError(f"expected {edges} edges, came {came}")
        races = graph.check_races()
        if races:
            raise WrongResultError(f"expected no races, came {races[0]}")
        exe = graph.instantiate()
        self.setting.cleanup.callback(graph.close)
        self.setting.cleanup.callback(exe.close)
        names = {"go": exe.launcher(self.setting.stream)}
        return FlowCall(name, "go()", names, self._verify)

    def _verify(self, once: Callable[[], None]) -> None:
        for array in (self.x, self.rows, self.sums):
            array.set(np.zeros(array.shape, np.uint32))
        once()
        if not np.array_equal(self.sums.get(), self.expected()):
            raise WrongResultError("expected the sums that NumPy gives, came others")

    def derived(self) -> FlowCall:
        """No ``deps=`` at all."""
        graph = self.gk.Graph(edges="derived")
        graph.add_kernel_node(*self._first)
        for row in range(self.k):
            graph.add_kernel_node(*self._middle(row))
        graph.add_kernel_node(*self._last)
        return self._call(DERIVED, graph, edges=2 * self.k)

    def by_hand(self) -> FlowCall:
        """The same edges, given."""
        graph = self.gk.Graph()
        first = graph.add_kernel_node(*self._first)
        middle = [graph.add_kernel_node(*self._middle(row), deps=first) for row in range(self.k)]
        graph.add_kernel_node(*self._last, deps=middle)
        return self._call(BY_HAND, graph, edges=2 * self.k)

    def forked(self) -> FlowCall:
        """The same, captured on as many branches."""
        fork, stream = importlib.import_module("graphkit.fork").fork, self.setting.stream
        with self.gk.capture(stream) as graph:
            kernel, *launch = self._first
            kernel(*launch, stream=stream)
            with fork(stream, self.k) as branches:
                for row, branch in enumerate(branches):
                    kernel, *launch = self._middle(row)
                    kernel(*launch, stream=branch)
            kernel, *launch = self._last
            kernel(*launch, stream=stream)
        return self._call(FORK, graph, edges=2 * self.k)

    def line(self) -> FlowCall:
        """Each kernel behind the one before, as on one stream."""
        graph = self.gk.Graph()
        node = graph.add_kernel_node(*self._first)
        for row in range(self.k):
            node = graph.add_kernel_node(*self._middle(row), deps=node)
        graph.add_kernel_node(*self._last, deps=node)
        return self._call(LINE, graph, edges=self.k + 1)


class Adding:
    """What it costs the host to build a graph of NODES kernel nodes, edges given or derived."""

    def __init__(self, setting: FlowSetting, nodes: int = NODES) -> None:
        self.setting = setting
        self.nodes = nodes
        gk = self.gk = setting.gk
        self.churn = gk.Kernel(_SOURCE, "churn", twin=_churn)
        self.rows = [gk.zeros(N, np.uint32) for _ in range(8)]

    def makers(self) -> Sequence[Maker]:
        """Return how to make each contender."""
        return ((GIVEN, self.given), (DERIVED, self.derived))

    def given(self) -> FlowCall:
        """A line, each node behind the one before."""
        return self._call(GIVEN, self._given)

    def derived(self) -> FlowCall:
        """The same line, since each node reads what the one before wrote."""
        return self._call(DERIVED, self._derived)

    def _given(self, look: bool = False) -> int:
        with self.gk.Graph() as graph:
            add, churn, rows = graph.add_kernel_node, self.churn, self.rows
            node: Any = ()
            for i in range(self.nodes):
                args = (rows[i & 7], rows[(i + 1) & 7], _FACTOR, _TERM, 1)
                node = add(churn, 1, N, args, deps=node)
            return len(graph.edges) if look else 0

    def _derived(self, look: bool = False) -> int:
        with self.gk.Graph(edges="derived") as graph:
            add, churn, rows = graph.add_kernel_node, self.churn, self.rows
            for i in range(self.nodes):
                add(churn, 1, N, (rows[i & 7], rows[(i + 1) & 7], _FACTOR, _TERM, 1))
            return len(graph.edges) if look else 0

    def _call(self, name: str, build: Callable[..., int]) -> FlowCall:
        def verify(once: Callable[[], None]) -> None:
            once()
            edges = build(look=True)
            if edges != self.nodes - 1:
                raise WrongResultError(f"expected {self.nodes - 1} edges, came {edges}")

        return FlowCall(name, "build()", {"build": build}, verify, self.nodes)


def _case(k: int) -> Case:
    return Case(
        WHAT,
        f"{k} side by side",
        lambda setting: Diamonds(setting, k).makers(),
        baseline=LINE,
        ways=("until done", "on the device"),
    )


CASES = (
    *map(_case, SIZES),
    Case(
        WHAT_ADD,
        f"{NODES} in a line",
        lambda setting: Adding(setting).makers(),
        baseline=GIVEN,
        ways=("host busy",),
    ),
)
