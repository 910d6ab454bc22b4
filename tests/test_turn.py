"""Turns: one at a time, and none is ever lost."""

from __future__ import annotations

import threading

import pytest

from graphkit.lifetime import host_function
from graphkit.turn import Turn


def test_only_one_thread_has_the_turn():
    turn, count = Turn(), [0]

    def work():
        for _ in range(500):
            with turn:
                before = count[0]
                count[0] = before + 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == [2000]
    assert len(turn) == 1


def test_the_turn_comes_back_after_an_exception():
    turn = Turn()
    with pytest.raises(KeyError), turn:
        raise KeyError
    assert len(turn) == 1


def test_an_interrupt_while_the_turn_is_taken_gives_it_back():
    class Interrupted(Turn):
        def pop(self):
            super().pop()
            raise KeyboardInterrupt  # as a signal does: behind the call

    turn = Interrupted()
    for take in (turn.__enter__, turn.wait):
        with pytest.raises(KeyboardInterrupt):
            take()
        assert len(turn) == 1


def test_a_host_function_does_not_wait_for_a_turn():
    turn = Turn()
    with turn, host_function(), pytest.raises(Exception, match="must not call CUDA"):
        turn.wait()
    assert len(turn) == 1
