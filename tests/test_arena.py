"""Staging memory that grows: what new graphs use, and what older ones keep."""

from graphkit.arena import Arena


def test_it_grows_when_more_is_asked_for(runtime):
    arena = Arena(runtime)
    assert (arena.nbytes, arena.growth(64)) == (0, 64)
    first = arena.reserve(64)
    assert (first.nbytes, arena.nbytes) == (64, 64)
    assert arena.growth(64) == arena.growth(1) == 0
    assert arena.reserve(10) is first
    assert arena.growth(65) == 65


def test_old_memory_counts_as_long_as_somebody_uses_it(runtime):
    arena = Arena(runtime)
    first = arena.reserve(64)
    view = first.view(4, "float32")
    second = arena.reserve(100)
    assert second.ptr != first.ptr
    assert arena.nbytes == 164
    del first
    assert arena.nbytes == 164  # a view is enough
    del view
    assert arena.nbytes == 100
    assert arena.reserve(64) is second
