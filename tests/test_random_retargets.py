"""Random graphs of one topology: set node by node == updated whole == instantiated for itself.

One exec is moved to and fro between the graphs by the nodes that differ, one by whole updates, one
by either in turn, and each graph has an exec of its own. Nothing waits in between: every launch is
in flight when the next move is made.
"""

from __future__ import annotations

import numpy as np
import pytest
from examples import judged_by_itself
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_random_graphs import DEVICE, EIGHT, KINDS, Machine, Op, changed, decode, hazards

import graphkit as gk
from graphkit.retarget import ExecTarget, GraphValues, compare
from graphkit.topology import topology_of

EXAMPLES = 300

# Events say nothing about buffers; an operation that is one touches none that the others do.
RECORD, WAIT = "record", "wait"


class Events(Machine):
    """A machine whose programs may also record events and wait for them."""

    def __init__(self):
        super().__init__()
        # Those that are waited for are recorded before a launch, never in it.
        self.recorded, self.awaited = ([gk.Event() for _ in range(3)] for _ in range(2))
        self.first = gk.asarray(self.start)

    def add(self, graph, op, deps):
        if op.kind == RECORD:
            return graph.add_event_record_node(self.recorded[op.value % 3], deps=deps)
        if op.kind == WAIT:
            return graph.add_event_wait_node(self.awaited[op.value % 3], deps=deps)
        return super().add(graph, op, deps)

    def expected(self, program, off=()):
        return super().expected([op for op in program if op.kind not in (RECORD, WAIT)])

    def begin(self):
        """Set all buffers to the values that they start with, in stream order."""
        gk.memcpy_async(self.device, self.first[:DEVICE], self.stream)
        gk.memcpy_async(self.host, self.first[DEVICE:], self.stream)
        for event in self.awaited:
            event.record(self.stream)

    def seen(self):
        """Copy all buffers, in stream order."""
        found = gk.empty(self.start.shape, np.uint32)
        gk.memcpy_async(found[:DEVICE], self.device, self.stream)
        gk.memcpy_async(found[DEVICE:], self.host, self.stream)
        return found


def program_of(ops):
    """Read a program out of bytes, every now and then an event in it, and the edges it needs."""
    program, edges = [], []
    for raw in ops:
        kind = {0: RECORD, 1: WAIT}.get(raw[7] % 8)
        program.append(Op(kind, value=raw[4]) if kind else decode(raw, KINDS))
    touching = [op if op.kind not in (RECORD, WAIT) else Op("child") for op in program]
    for index, (need, raw) in enumerate(zip(hazards(touching), ops, strict=True)):
        edges.append(need | raw[5] & raw[6] & ((1 << index) - 1))
    return program, edges


def variant_of(program, edges, changes):
    """Return a program that an exec of the first can be moved to."""
    for raw in changes:
        index = raw[0] % len(program)
        if program[index].kind in (RECORD, WAIT):
            new = program[index]._replace(value=raw[1])
            program = [*program[:index], new, *program[index + 1 :]]
        else:
            quiet = [op if op.kind not in (RECORD, WAIT) else Op("child") for op in program]
            new = changed(quiet, edges, index, raw[1:] + raw[:1])[index]
            program = [*program[:index], new, *program[index + 1 :]]
    return program


def check(ops, variants, route):
    """Move execs along a route of (graph, whole or by nodes, forget), and look at what they do."""
    machine = Events()
    program, edges = program_of(ops)
    programs = [program]
    for changes in variants:
        programs.append(variant_of(programs[-1], edges, changes))
    graphs = [machine.build(each, edges)[0] for each in programs]
    topology, *others = (topology_of(graph) for graph in graphs)
    assert all(other == topology for other in others)
    assert topology.unshareable is None
    values = [GraphValues(graph) for graph in graphs]
    own = [graph.instantiate() for graph in graphs]
    by_nodes, by_update, by_either = (graphs[0].instantiate() for _ in range(3))
    targets = [ExecTarget(exe) for exe in (by_nodes, by_update, by_either)]
    held, seen = 0, []
    for wanted, whole, forget in route:
        wanted %= len(graphs)
        changes = compare(values[held], values[wanted])
        for place in range(len(program)):
            # Host functions are new in every graph, also those inside of a child graph.
            if programs[held][place] == programs[wanted][place]:
                assert place not in changes.places or program[place].kind in ("host", "child")
        settable = all(program[place].kind != "child" for place in changes.places)
        assert changes.settable is settable
        for target, update in zip(targets, (False, True, whole), strict=True):
            if forget:
                target.forget(values[wanted])
            if settable and not update:
                target.set_nodes(values[wanted], changes.places)
            else:
                report = target.update(graphs[wanted])
                assert report, str(report)
        held = wanted
        for exe in (by_nodes, by_update, by_either, own[wanted]):
            machine.begin()
            exe.launch(machine.stream)
            seen.append((wanted, machine.seen()))
    machine.stream.synchronize()
    for wanted, found in seen:
        assert np.array_equal(found.get(), machine.expected(programs[wanted]))


@pytest.mark.untraced
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    ops=st.lists(EIGHT, min_size=1, max_size=10),
    variants=st.lists(st.lists(EIGHT, min_size=1, max_size=5), min_size=1, max_size=3),
    route=st.lists(
        st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), min_size=1, max_size=8
    ),
)
def test_random_retargets(runtime, ops, variants, route):
    with judged_by_itself():
        check(ops, variants, route)
