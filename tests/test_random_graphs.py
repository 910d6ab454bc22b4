"""Random graphs: eager == launched == changed node by node == updated whole == made afresh.

A program is a list of operations on a few small buffers. Run one after the other on a stream it is
eager; its hazards (a read after a write, a write after either) give the edges that a graph needs,
and random edges come on top. All arithmetic is on integers, so that results are equal or wrong.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from examples import judged_by_itself
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import graphkit as gk

# Examples of the whole run, shared by the ways of changing a graph below.
EXAMPLES = 2000
WAYS = ("setters", "switches", "update", "all")

N = 4  # elements of a buffer
DEVICE, HOST = 4, 2  # buffers; the first are on the device, the last in pinned memory
WIDTHS = {"copy": slice(None), "part": slice(1, 3)}

_MIX = r"""
extern "C" __global__ void mix(const unsigned* a, const unsigned* b, unsigned* out, unsigned k) {
    int i = threadIdx.x;
    out[i] = a[i] * 3 + b[i] * 5 + k;
}
"""


def _mix(launch, a, b, out, k):
    n = launch.block[0]
    out.view(n)[:] = a.view(n) * np.uint32(3) + b.view(n) * np.uint32(5) + k


MIX = gk.Kernel(_MIX, "mix", twin=_mix)


# --- programs ------------------------------------------------------------------------------------


class Op(NamedTuple):
    """One operation: what it writes, what it reads, and a number."""

    kind: str
    dst: int = 0
    a: int = 0
    b: int = 0
    value: int = 0
    inner: tuple[Op, ...] = ()

    @property
    def reads(self):
        if self.kind == "child":
            return set().union(*(op.reads for op in self.inner))
        return {"mix": {self.a, self.b}, "fill": set(), "host": {self.dst}}.get(self.kind, {self.a})

    @property
    def writes(self):
        if self.kind == "child":
            return set().union(*(op.writes for op in self.inner))
        return {self.dst}


KINDS = ("mix", "copy", "fill", "mix", "part", "host", "mix", "child")


def decode(raw, kinds=KINDS):
    """Read an operation out of eight random bytes; small bytes make simple operations."""
    kind = kinds[raw[0] % len(kinds)]
    if kind == "child":
        rest = [bytes((byte * (3 + i) + i) & 255 for byte in raw) for i in range(1 + raw[7] % 3)]
        return Op("child", inner=tuple(decode(part, kinds[:-1]) for part in rest))
    if kind == "host":
        return Op(kind, DEVICE + raw[1] % HOST, value=raw[4])
    if kind in WIDTHS:
        dst, a = raw[1] % (DEVICE + HOST), raw[2] % (DEVICE + HOST)
        if dst == a or min(dst, a) >= DEVICE:  # not onto itself, and one end on the device
            a = (dst + 1) % DEVICE
        return Op(kind, dst, a)
    return Op(kind, raw[1] % DEVICE, raw[2] % DEVICE, raw[3] % DEVICE, raw[4])


def hazards(program):
    """Return for each operation the earlier ones it must wait for, as bits."""
    found = []
    for j, later in enumerate(program):
        bits = 0
        for i, earlier in enumerate(program[:j]):
            if earlier.writes & (later.reads | later.writes) or earlier.reads & later.writes:
                bits |= 1 << i
        found.append(bits)
    return found


def closure(edges):
    """Return for each operation all that are ordered before it, as bits."""
    before = []
    for bits in edges:
        before.append(bits)
        for i in range(len(before) - 1):
            if bits >> i & 1:
                before[-1] |= before[i]
    return before


def changed(program, edges, index, raw):
    """Return the program with one operation changed as the exec's setters could change it."""
    old = program[index]
    if old.kind == "child":
        inner = tuple(op._replace(value=(op.value + raw[4]) & 255) for op in old.inner)
        return [*program[:index], old._replace(inner=inner), *program[index + 1 :]]
    new = decode(raw, (old.kind,))
    same_ends = [(x < DEVICE, y < DEVICE) for x, y in ((old.dst, old.a), (new.dst, new.a))]
    if old.kind not in WIDTHS or same_ends[0] == same_ends[1]:
        candidate = [*program[:index], new, *program[index + 1 :]]
        ordered = closure(edges)
        if all(not need & ~have for need, have in zip(hazards(candidate), ordered, strict=True)):
            return candidate
    return [*program[:index], old._replace(value=raw[4]), *program[index + 1 :]]


def compute(op, state):
    """Do one operation in NumPy."""
    if op.kind == "child":
        for inner in op.inner:
            compute(inner, state)
    elif op.kind == "mix":
        state[op.dst] = (
            state[op.a] * np.uint32(3) + state[op.b] * np.uint32(5) + np.uint32(op.value)
        )
    elif op.kind == "fill":
        state[op.dst] = op.value * 0x01010101
    elif op.kind == "host":
        state[op.dst] = state[op.dst] * np.uint32(5) + np.uint32(op.value)
    else:
        state[op.dst, WIDTHS[op.kind]] = state[op.a, WIDTHS[op.kind]]


# --- on a runtime --------------------------------------------------------------------------------


class Machine:
    """Buffers, and what runs programs on them."""

    def __init__(self):
        self.device = gk.empty((DEVICE, N), np.uint32)
        self.host = gk.empty_pinned((HOST, N), np.uint32)
        self.buffers = [self.device[i] for i in range(DEVICE)] + list(self.host)
        self.start = np.arange((DEVICE + HOST) * N, dtype=np.uint32).reshape(-1, N)
        self.stream = gk.Stream()
        self.kept = []

    def expected(self, program, off=()):
        state = self.start.copy()
        for index, op in enumerate(program):
            if index not in off:
                compute(op, state)
        return state

    def results(self, go):
        """Start from the same values, go, and return all buffers."""
        self.device.set(self.start[:DEVICE])
        self.host[:] = self.start[DEVICE:]
        go(self.stream)
        self.stream.synchronize()
        return np.concatenate([self.device.get(), self.host])

    def on_host(self, op):
        row, value = self.host[op.dst - DEVICE], np.uint32(op.value)

        def callback():
            row[:] = row * np.uint32(5) + value

        return callback

    def eager(self, op, stream):
        dst, a, b = self.buffers[op.dst], self.buffers[op.a], self.buffers[op.b]
        runtime = stream.runtime
        if op.kind == "child":
            for inner in op.inner:
                self.eager(inner, stream)
        elif op.kind == "mix":
            MIX(1, N, (a, b, dst, op.value), stream=stream)
        elif op.kind == "fill":
            runtime.memset_async(dst.ptr, op.value, dst.nbytes, stream.ptr)
        elif op.kind == "host":
            self.kept.append(stream.launch_host_func(self.on_host(op)))
        else:
            to, from_ = gk.describe(dst[WIDTHS[op.kind]]), gk.describe(a[WIDTHS[op.kind]])
            runtime.memcpy_async(to.ptr, from_.ptr, to.nbytes, gk.MemcpyKind.DEFAULT, stream.ptr)

    def build(self, program, edges, late=()):
        """Return a graph and its nodes; ``late`` operations get their edges one by one."""
        graph, nodes = gk.Graph(), []
        for index, op in enumerate(program):
            deps = [nodes[i] for i in range(index) if edges[index] >> i & 1]
            nodes.append(self.add(graph, op, () if index in late else deps))
            if index in late:
                for node in deps:
                    graph.add_dependency(node, nodes[-1])
        return graph, nodes

    def add(self, graph, op, deps):
        dst, a, b = self.buffers[op.dst], self.buffers[op.a], self.buffers[op.b]
        if op.kind == "mix":
            return graph.add_kernel_node(MIX, 1, N, (a, b, dst, op.value), deps=deps)
        if op.kind == "fill":
            return graph.add_memset_node(dst, op.value * 0x01010101, deps=deps)
        if op.kind == "host":
            return graph.add_host_node(self.on_host(op), deps=deps)
        if op.kind == "child":
            child, _ = self.build(op.inner, hazards(op.inner))
            return graph.add_child_graph_node(child, deps=deps)
        part = WIDTHS[op.kind]
        return graph.add_memcpy_node(dst[part], a[part], deps=deps)

    def change(self, exe, node, old, new):
        """Bring one node of an exec in line with an operation, naming only what differs."""
        dst, a, b = (self.buffers[i] for i in (new.dst, new.a, new.b))
        if new.kind == "mix":
            args = {"a": a, "b": b, "out": dst, "k": new.value}
            differ = {"a": old.a != new.a, "b": old.b != new.b, "out": old.dst != new.dst}
            args = {name: args[name] for name in args if differ.get(name, True)}
            exe.set_kernel_node_params(node, args=args)
        elif new.kind == "fill":
            exe.set_memset_node_params(node, dst=dst, value=np.uint32(new.value * 0x01010101))
        elif new.kind == "host":
            exe.set_host_node_params(node, self.on_host(new))
        elif new.kind == "child":
            child, _ = self.build(new.inner, hazards(new.inner))
            exe.set_child_graph_node_params(node, child)
        else:
            part = WIDTHS[new.kind]
            exe.set_memcpy_node_params(node, dst=dst[part], src=a[part])


def check(way, ops, changes):
    """Run one random program in every manner."""
    machine = Machine()
    program = [decode(raw) for raw in ops]
    edges = [
        need | raw[5] & raw[6] & ((1 << index) - 1)
        for index, (need, raw) in enumerate(zip(hazards(program), ops, strict=True))
    ]
    expected = machine.expected(program)

    def eagerly(stream):
        for op in program:
            machine.eager(op, stream)

    assert np.array_equal(machine.results(eagerly), expected)
    late = {index for index, raw in enumerate(ops) if raw[6] & 1}
    graph, nodes = machine.build(program, edges, late)
    exe = graph.instantiate()
    assert np.array_equal(machine.results(exe.launch), expected)

    off = set()
    now = program

    def compare():
        expected = machine.expected(now, off)
        assert np.array_equal(machine.results(exe.launch), expected)

    def set_nodes():
        nonlocal now
        for raw in changes:
            index = raw[0] % len(now)
            new = changed(now, edges, index, raw[1:] + raw[:1])
            machine.change(exe, nodes[index], now[index], new[index])
            now = new
        compare()

    def switch_nodes():
        for raw in changes:
            index = raw[0] % len(now)
            if now[index].kind not in ("child", "host"):
                off.symmetric_difference_update({index})
                exe.set_node_enabled(nodes[index], index not in off)
        compare()

    def update():
        nonlocal now
        for raw in changes:
            now = changed(now, edges, raw[0] % len(now), raw[1:] + raw[:1])
        other, _ = machine.build(now, edges, late)
        report = exe.update(other)
        assert report, str(report)
        compare()

    parts = {"setters": (set_nodes,), "switches": (switch_nodes,), "update": (update,)}
    for part in parts.get(way, (set_nodes, switch_nodes, update, set_nodes)):
        part()
    fresh, new_nodes = machine.build(now, edges)
    again = fresh.instantiate()
    for index in off:
        again.set_node_enabled(new_nodes[index], False)
    assert np.array_equal(machine.results(again.launch), machine.expected(now, off))


EIGHT = st.binary(min_size=8, max_size=8)


@pytest.mark.untraced
@pytest.mark.parametrize("way", WAYS)
@settings(
    max_examples=EXAMPLES // len(WAYS),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    ops=st.lists(EIGHT, min_size=1, max_size=12), changes=st.lists(EIGHT, min_size=1, max_size=4)
)
def test_random_graphs(runtime, way, ops, changes):
    with judged_by_itself():
        check(way, ops, changes)
