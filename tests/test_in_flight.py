"""What launches may still use: kept until an event says that they are done, and no longer."""

from __future__ import annotations

import weakref

import pytest

import graphkit as gk
from graphkit.in_flight import InFlight


class Owner:
    """Something that launches use."""


@pytest.fixture
def flight(runtime, stream):
    made = InFlight(runtime, stream.ptr)
    yield made
    made.close(())


def launched(flight, exec_, owner):
    """Note a launch as the pool's hot path does it."""
    flight.pending.append((exec_, owner))
    flight.load += flight.load_of(0)
    if flight.load >= 1:
        flight.mark()


def busy(stream):
    """Put work on a stream that is not done before somebody waits, or a while has passed."""
    gk.memset_async(gk.empty(1 << 20), 0, stream)


def test_owners_live_until_their_launch_is_done(flight, stream):
    owner = Owner()
    gone = weakref.ref(owner)
    busy(stream)
    launched(flight, object(), owner)
    del owner
    assert gone() is not None
    flight.mark()
    stream.synchronize()
    flight.mark()
    assert gone() is None


def test_an_exec_is_held_until_its_launch_is_done(flight, stream):
    one, other = object(), object()
    assert not flight.holds(one)
    launched(flight, one, None)
    stream.synchronize()
    launched(flight, other, None)
    stream.synchronize()
    assert not flight.holds(one)
    assert not flight.holds(other)


def test_launches_are_marked_in_batches(flight, runtime, stream, monkeypatch):
    marks = []
    record = runtime.event_record

    def counted(event, at):
        marks.append(event)
        record(event, at)

    monkeypatch.setattr(runtime, "event_record", counted)
    for _ in range(1000):
        launched(flight, object(), None)
    stream.synchronize()
    flight.mark()
    assert 2 <= len(marks) <= 100


def test_launches_that_keep_much_make_smaller_batches(flight):
    owners = []
    for _ in range(100):
        owner = Owner()
        owners.append(weakref.ref(owner))
        flight.keep(owner, 1 << 30)
        assert len(flight.pending) <= 1
        del owner


def test_events_are_used_again(flight, stream):
    for _ in range(50):
        flight.keep(Owner())
        flight.mark()
        stream.synchronize()
    assert gk.live_handles()["event"] <= 2


def test_nothing_is_recorded_while_a_capture_is_live(flight, stream):
    owner = Owner()
    gone = weakref.ref(owner)
    flight.keep(owner)
    del owner
    with gk.capture(stream) as graph:
        flight.mark()
        assert flight.holds(object()) is False
    graph.close()
    assert gone() is not None
    flight.mark()
    stream.synchronize()
    flight.mark()
    assert gone() is None


def test_close_hands_over_what_is_left(runtime, stream):
    flight = InFlight(runtime, stream.ptr)
    kept, owner = Owner(), Owner()
    gone = weakref.ref(kept), weakref.ref(owner)
    busy(stream)
    flight.keep(kept)
    flight.close(owner)
    del kept, owner
    stream.synchronize()
    gk.live_handles()  # asks what is done
    assert [each() for each in gone] == [None, None]


def test_close_keeps_nothing_for_what_is_done(runtime, stream):
    flight = InFlight(runtime, stream.ptr)
    owner = Owner()
    gone = weakref.ref(owner)
    flight.keep(Owner())
    flight.mark()
    stream.synchronize()
    flight.mark()
    flight.close(owner)
    del owner
    assert gone() is None
