"""What an exec pool decides, played through without a runtime: a clock, sizes and costs by hand."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from graphkit.cost_model import Move
from graphkit.pool_policy import Decision, PoolPolicy, Reason, Step

NODE_BYTES = 2400
INSTANTIATE_US = 5.5  # a node


class RefusedError(Exception):
    """A capture of the model pool failed."""


class Pool:
    """Does what the policy decides and checks that it can be done, as an exec pool would.

    A key is a tuple (topology, nodes, which).
    """

    def __init__(self, **options):
        self.now = 0.0
        self.policy = PoolPolicy(clock=lambda: self.now, **options)
        self.graphs, self.execs, self.busy, self.failing = set(), {}, set(), set()
        self.node_bytes = NODE_BYTES
        self.move_us = 50.0
        self.made = 0
        self.counts = Counter()

    def idle(self, exec_id):
        assert exec_id in self.execs, "asked about an exec that is gone"
        return exec_id not in self.busy

    def plan(self, key, growth=0, *, warm=False):
        return self.policy.decide(key, self.idle, growth, warm=warm)

    def ask(self, key, *, growth=0, warm=False, times=1):
        """Answer requests; return the steps that the last one took, a fallback by its reason."""
        for _ in range(times):
            steps = self._climb(key, growth, warm)
            if warm:
                continue
            self.policy.requests += 1
            if steps[-1] is Step.LAUNCH:
                self.policy.keys[key].launches += 1
            else:
                self.policy.state(key).eager += 1
        return steps

    def _climb(self, key, growth, warm):
        steps = []
        for _ in range(10):
            decision = self.plan(key, growth, warm=warm)
            assert isinstance(decision, Decision)
            assert decision.why
            if decision.step is Step.EAGER:
                assert not decision.close
                return [*steps, decision.reason]
            steps.append(decision.step)
            self.counts[decision.step] += 1
            if decision.step is Step.LAUNCH:
                assert self.execs[decision.exec_id] == key
                return steps
            try:
                if self._take(decision, key, growth):
                    growth = 0
            except RefusedError:
                self.policy.failed(key)
        raise AssertionError(f"no end of steps: {steps}")

    def _take(self, decision, key, growth):
        for exec_id in decision.close:
            assert self.idle(exec_id)
            self.close(exec_id)
        topology, nodes, _ = key
        if decision.step is Step.CAPTURE:
            assert key not in self.graphs
            if key in self.failing:
                raise RefusedError
            self.graphs.add(key)
            self.policy.captured(key, topology, nodes)
            self.policy.arena_bytes += growth
            for other in self.policy.surplus():
                assert other not in self.execs.values()
                self.forget(other)
            assert key in self.graphs, "captured for nothing"
            return True
        assert key in self.graphs
        if decision.step is Step.INSTANTIATE:
            self.made += 1
            self.execs[self.made] = key
            us = nodes * INSTANTIATE_US
            self.policy.instantiated(self.made, key, nodes * self.node_bytes, us)
            for exec_id in self.policy.over_budget(self.idle, self.made):
                assert self.idle(exec_id)
                self.close(exec_id)
                if exec_id == self.made:
                    self.policy.refused()
        else:
            assert decision.step is Step.RETARGET
            assert self.execs[decision.exec_id][:2] == key[:2]
            self.execs[decision.exec_id] = key
            self.policy.moved(decision.exec_id, key, self.move_us)
        return False

    def place(self, key, us=1.0):
        """Make an exec whatever the policy thinks of it."""
        topology, nodes, _ = key
        self.made += 1
        self.graphs.add(key)
        self.execs[self.made] = key
        self.policy.captured(key, topology, nodes)
        self.policy.instantiated(self.made, key, nodes * self.node_bytes, us)

    def close(self, exec_id):
        self.counts["evictions"] += 1
        _, nodes, _ = self.execs.pop(exec_id)
        self.busy.discard(exec_id)
        self.policy.closed(exec_id, nodes * self.node_bytes)

    def forget(self, key):
        self.graphs.remove(key)
        self.policy.forgotten(key)

    def hit(self, key, times):
        """Answer requests on the hot path, which the policy does not see."""
        assert key in self.execs.values()
        self.policy.requests += times
        self.policy.keys[key].launches += times

    def exec_of(self, key):
        return next((exec_id for exec_id, held in self.execs.items() if held == key), None)


def key(topology, which=0, nodes=100):
    return topology, nodes, which


A, B, C = key("a"), key("b"), key("c")
ONE = 100 * NODE_BYTES  # bytes of an exec


# --- the ladder ----------------------------------------------------------------------------------


def test_a_first_request_is_captured_instantiated_and_launched():
    pool = Pool()
    assert pool.ask(A) == [Step.CAPTURE, Step.INSTANTIATE, Step.LAUNCH]
    assert pool.ask(A) == [Step.LAUNCH]


def test_a_key_of_the_same_topology_moves_the_exec_that_is_there():
    pool = Pool()
    pool.ask(A)
    assert pool.ask(key("a", 1)) == [Step.CAPTURE, Step.RETARGET, Step.LAUNCH]
    assert pool.ask(A) == [Step.RETARGET, Step.LAUNCH]
    assert len(pool.execs) == 1


def test_a_key_of_another_topology_gets_an_exec_of_its_own():
    pool = Pool()
    pool.ask(A)
    assert pool.ask(B) == [Step.CAPTURE, Step.INSTANTIATE, Step.LAUNCH]
    assert len(pool.execs) == 2


def test_an_exec_in_flight_may_be_moved():
    pool = Pool()
    pool.ask(A)
    pool.busy = {1}
    assert pool.ask(key("a", 1))[-2:] == [Step.RETARGET, Step.LAUNCH]


def test_the_exec_that_is_moved_is_the_one_whose_key_is_asked_for_least():
    pool = Pool()
    often, seldom, other = (key("a", which) for which in range(3))
    pool.move_us = 1e6
    for which in (often, seldom, often, seldom):  # moves have cost more than an exec
        pool.ask(which)
    pool.ask(often, times=20)
    assert {*pool.execs.values()} == {often, seldom}
    pool.ask(other)
    assert {*pool.execs.values()} == {often, other}


def test_the_exec_that_serves_many_keys_is_moved_and_not_one_that_serves_a_single_key():
    pool = Pool(max_execs=2)
    dedicated = key("a", 0)
    pool.place(dedicated)
    pool.place(key("a", 1))
    pool.hit(dedicated, 30)
    for which in range(2, 100):
        pool.ask(key("a", which))
    assert dedicated in pool.execs.values()


def test_a_key_moved_by_a_shared_exec_is_asked_for_as_often_as_it_was_before():
    pool = Pool(max_execs=1)
    first, second = key("a", 0), key("a", 1)
    for _ in range(5):
        pool.ask(first)
        pool.ask(second)
    assert pool.policy.keys[first].weight == pool.policy.keys[second].weight == 5


def test_a_graph_that_shares_with_none_is_no_sibling():
    pool = Pool()
    first, second = (object(), 100, 0), (object(), 100, 1)
    assert pool.ask(first) == pool.ask(second) == [Step.CAPTURE, Step.INSTANTIATE, Step.LAUNCH]


def test_a_key_that_cuda_refused_to_move_an_exec_to_gets_one_of_its_own():
    pool = Pool()
    first, second = key("a", 0), key("a", 1)
    pool.ask(first)
    pool.policy.captured(second, "a", 100)
    assert pool.plan(second).step is Step.RETARGET
    pool.policy.captured(second, object(), 100)
    assert pool.plan(second).step is Step.INSTANTIATE
    assert pool.plan(first).step is Step.LAUNCH


def test_a_key_that_no_graph_may_serve_is_answered_eagerly_and_says_why():
    pool = Pool()
    pool.policy.state(A).ineligible = "its graph takes longer"
    decision = pool.plan(A)
    assert (decision.reason, decision.why) == (Reason.INELIGIBLE, "its graph takes longer")


# --- when to capture -----------------------------------------------------------------------------


def test_captures_wait_for_as_many_requests_as_they_are_told_to():
    pool = Pool(capture_after=2)
    assert pool.ask(A) == pool.ask(A) == [Reason.KEY_MISS]
    assert pool.ask(A)[0] is Step.CAPTURE


def test_waiting_is_counted_by_key():
    pool = Pool(capture_after=1)
    pool.ask(A)
    assert pool.ask(B) == [Reason.KEY_MISS]
    assert "request" in pool.plan(C).why


def test_without_captures_only_warming_up_captures():
    pool = Pool(capture_after=None)
    assert pool.ask(A, times=100) == [Reason.KEY_MISS]
    assert pool.ask(A, warm=True) == [Step.CAPTURE, Step.INSTANTIATE, Step.LAUNCH]
    assert pool.ask(A) == [Step.LAUNCH]
    assert pool.ask(B) == [Reason.KEY_MISS]


def test_warming_up_does_not_wait_for_requests():
    assert Pool(capture_after=5).ask(A, warm=True)[0] is Step.CAPTURE


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_execs": 0}, ValueError, "max_execs: expected an int of 1 or more, came 0"),
        ({"max_execs": 1.5}, TypeError, "max_execs: expected an int of 1 or more, came 1.5"),
        ({"max_execs": True}, TypeError, "max_execs: expected an int of 1 or more, came True"),
        ({"max_graphs": 0}, ValueError, "max_graphs: expected an int of 1 or more, came 0"),
        ({"max_graphs": None}, TypeError, "max_graphs: expected an int of 1 or more, came None"),
        ({"capture_after": -1}, ValueError, "capture_after: expected an int of 0 or more, came -1"),
        ({"capture_after": "1"}, TypeError, "capture_after: expected an int of 0 or more, came"),
    ],
)
def test_numbers_that_are_none_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        PoolPolicy(**options)


# --- quarantine ----------------------------------------------------------------------------------


def test_a_failed_capture_is_answered_eagerly_and_tried_again_later():
    pool = Pool()
    pool.failing = {A}
    assert pool.ask(A) == [Step.CAPTURE, Reason.QUARANTINED]
    assert pool.ask(A) == [Reason.QUARANTINED]
    assert pool.plan(A).why == "its capture failed 1 time; the next try is in 1.0 s"
    pool.now = 0.999
    assert pool.ask(A) == [Reason.QUARANTINED]
    pool.now = 1.0
    assert pool.ask(A) == [Step.CAPTURE, Reason.QUARANTINED]


def test_each_failure_doubles_the_quarantine_up_to_ten_minutes():
    policy = PoolPolicy(clock=lambda: 0.0)
    seconds = [policy.failed(A) for _ in range(1100)]  # 2.0 ** 1100 is no float
    assert seconds[:4] == [1, 2, 4, 8]
    assert seconds[9:11] == [512, 600]
    assert {*seconds[10:]} == {600}


def test_a_quarantine_holds_for_one_key():
    pool = Pool()
    pool.policy.failed(A)
    assert pool.ask(B)[-1] is Step.LAUNCH


def test_a_quarantine_holds_while_warming_up():
    pool = Pool()
    pool.policy.failed(A)
    assert pool.ask(A, warm=True) == [Reason.QUARANTINED]


def test_an_exec_ends_a_row_of_failures():
    pool = Pool()
    pool.failing = {A}
    for _ in range(3):
        pool.ask(A)
        pool.now = pool.policy.keys[A].retry_at
    pool.failing = set()
    assert pool.ask(A) == [Step.CAPTURE, Step.INSTANTIATE, Step.LAUNCH]
    assert pool.policy.keys[A].failures == 0
    assert pool.policy.failed(A) == 1


def test_a_graph_that_can_be_captured_but_not_instantiated_is_tried_less_and_less():
    policy = PoolPolicy(clock=lambda: 0.0)
    seconds = []
    for _ in range(3):
        policy.captured(A, "a", 100)
        seconds.append(policy.failed(A))
        policy.forgotten(A)
    assert seconds == [1, 2, 4]


# --- the budget ----------------------------------------------------------------------------------


def test_what_fits_the_budget_exactly_is_made():
    pool = Pool(memory_budget=2 * ONE)
    pool.ask(A)
    assert pool.ask(B)[-1] is Step.LAUNCH
    assert pool.policy.exec_bytes == 2 * ONE
    assert pool.policy.held_bytes() == {A: ONE, B: ONE}


def test_what_no_longer_fits_is_answered_eagerly():
    pool = Pool(memory_budget=2 * ONE - 1)
    pool.ask(A, times=10)
    assert pool.ask(B) == [Step.CAPTURE, Reason.BUDGET]
    assert f"arenas have 0 bytes, 1 exec {ONE}, {2 * ONE - 1} allowed" in pool.plan(B).why
    assert pool.ask(A) == [Step.LAUNCH]


def test_arenas_count():
    pool = Pool(memory_budget=2 * ONE)
    pool.policy.arena_bytes = ONE
    pool.ask(A, times=10)
    assert pool.ask(B)[-1] is Reason.BUDGET


def test_a_budget_smaller_than_one_exec_makes_one_and_then_no_more():
    pool = Pool(memory_budget=ONE - 1)
    assert pool.ask(A) == [Step.CAPTURE, Step.INSTANTIATE, Reason.BUDGET]
    assert pool.execs == {}
    assert pool.ask(A, times=50) == [Reason.BUDGET]
    assert pool.counts[Step.INSTANTIATE] == 1


def test_arenas_that_do_not_fit_are_not_made():
    pool = Pool(memory_budget=ONE)
    assert pool.ask(A, growth=ONE + 1) == [Reason.BUDGET]
    assert f"its arenas need {ONE + 1} bytes more" in pool.plan(A, ONE + 1).why
    assert pool.ask(A, growth=ONE)[0] is Step.CAPTURE


def test_arenas_take_the_place_of_an_exec_that_nobody_asks_for():
    pool = Pool(memory_budget=ONE)
    pool.ask(A)
    pool.ask(B, growth=1000, times=3)
    assert B in pool.graphs
    assert pool.execs == {}


def test_arenas_do_not_take_the_place_of_an_exec_that_is_used():
    pool = Pool(memory_budget=ONE)
    pool.ask(A, times=10)
    assert pool.ask(B, growth=1000, times=10) == [Reason.BUDGET]


def test_an_often_used_exec_is_not_evicted_by_a_key_asked_for_once():
    pool = Pool(memory_budget=ONE)
    pool.ask(A, times=100)
    for which in range(50):
        pool.ask(key(f"one-off {which}"))
    assert pool.counts["evictions"] == 0
    assert pool.ask(A) == [Step.LAUNCH]


def test_an_exec_that_was_just_made_is_worth_what_it_was_made_for():
    pool = Pool(memory_budget=ONE)
    pool.ask(A)
    pool.ask(B, times=10)
    assert pool.exec_of(B)
    evictions = pool.counts["evictions"]
    pool.ask(A, times=3)
    assert pool.counts["evictions"] == evictions


def test_a_formerly_hot_key_ages_away():
    pool = Pool(memory_budget=ONE)
    pool.ask(A)
    pool.hit(A, 100_000)
    asked = 0
    while pool.ask(B)[-1] is not Step.LAUNCH:
        asked += 1
        assert asked < 20_000
    assert asked > 100


@pytest.mark.parametrize("at_a_time", [100, 3_000, 100_000])
def test_of_requests_without_end_the_last_count(at_a_time):
    """The sum of a half for each 2,000 requests ago, however often that is seen to."""
    pool = Pool()
    pool.ask(A)
    for _ in range(100_000 // at_a_time):
        pool.hit(A, at_a_time)
        pool.policy.state(B)
    assert pool.policy.keys[A].weight == pytest.approx(2_885, rel=0.1)


def test_two_keys_asked_for_in_turn_do_not_drive_each_other_out():
    pool = Pool(memory_budget=ONE)
    for _ in range(3000):
        pool.ask(A)
        pool.ask(B)
    assert pool.counts["evictions"] == 0


@given(st.integers(0, 2**32), st.integers(2, 6))
@settings(max_examples=20, deadline=None)
def test_random_requests_settle_on_the_execs_that_are_worth_most(seed, fitting):
    """Zipf-like: each key is asked for half as often as the one before it."""
    chance = random.Random(seed)
    keys = [key(f"topology {rank}") for rank in range(12)]
    pool = Pool(memory_budget=fitting * ONE)
    for asked in chance.choices(keys, [0.5**rank for rank in range(12)], k=4000):
        pool.ask(asked)
    held = {*pool.execs.values()}
    assert {*keys[: fitting - 1]} <= held
    assert pool.counts["evictions"] <= 4 * fitting


def test_of_equally_wanted_execs_the_one_that_is_quickly_made_again_goes():
    pool = Pool(memory_budget=2 * ONE)
    pool.place(key("slow"), 9000.0)
    pool.place(key("quick"), 100.0)
    pool.hit(key("slow"), 10)
    pool.hit(key("quick"), 10)
    pool.ask(C, times=15)
    assert {*pool.execs.values()} == {key("slow"), C}


def test_of_equally_wanted_execs_the_one_that_takes_more_bytes_goes():
    """Made equally fast, so that a byte of the large one is worth less."""
    pool = Pool(memory_budget=4 * ONE)
    large, small = key("large", nodes=300), key("small", nodes=100)
    for which in (small, large):
        pool.place(which, 550.0)
        pool.hit(which, 10)
    pool.ask(C, times=30)
    assert {*pool.execs.values()} == {small, C}


def test_where_only_their_number_is_limited_it_does_not_matter_how_large_execs_are():
    """One exec gives way, the least worth in all: by the byte, it would be the large one."""
    pool = Pool(max_execs=2)
    large, small = key("large", nodes=1000), key("small", nodes=10)
    for which, us in ((small, 500.0), (large, 5000.0)):
        pool.place(which, us)
        pool.hit(which, 10)
    pool.ask(C, times=30)
    assert {*pool.execs.values()} == {large, C}


def test_no_exec_in_flight_is_closed():
    pool = Pool(memory_budget=2 * ONE)
    pool.ask(A)
    pool.ask(B, times=2)
    pool.busy = {pool.exec_of(A)}
    pool.ask(C, times=20)
    assert {*pool.execs.values()} == {A, C}
    pool.busy = {1, 2, 3}
    assert pool.ask(key("d"), times=500) == [Reason.BUDGET]


def test_a_large_exec_takes_the_place_of_several():
    pool = Pool(memory_budget=4 * ONE)
    for which in "abcd":
        pool.ask(key(which))
    large = key("large", nodes=300)
    pool.ask(large, times=12)
    assert pool.exec_of(large)
    assert len(pool.execs) == 2


def test_no_more_execs_are_closed_than_need_be():
    """The cheapest is too small alone; with the next one closed, it may stay."""
    pool = Pool(memory_budget=4 * ONE)
    small, large = key("small", nodes=10), key("large", nodes=390)
    pool.ask(small)
    pool.ask(large, times=3)
    new = key("new", nodes=300)
    pool.ask(new, times=20)
    assert {*pool.execs.values()} == {small, new}


def test_nothing_is_closed_where_all_of_it_would_not_be_enough():
    pool = Pool(memory_budget=2 * ONE)
    pool.ask(A)
    assert pool.ask(key("large", nodes=300), times=100) == [Reason.BUDGET]
    assert pool.exec_of(A)


# --- execs that several keys share ---------------------------------------------------------------


def test_an_exec_is_worth_what_all_its_keys_are_asked_for():
    """A shared exec that holds a rare key is not driven out by one asked for more than that key."""
    pool = Pool(memory_budget=ONE)
    for which in range(200):
        pool.ask(key("shared", which % 50))
    assert pool.ask(A, times=50)[-1] is Reason.BUDGET
    assert pool.counts["evictions"] == 0


def test_keys_that_would_share_an_exec_ask_for_it_together():
    pool = Pool(memory_budget=ONE)
    pool.ask(A, times=10)
    for which in range(30):
        pool.ask(key("shared", which))
    assert [held[0] for held in pool.execs.values()] == ["shared"]


def test_an_exec_whose_place_another_could_take_goes_first():
    """Losing it costs moves; losing the only one of a topology costs an instantiation."""
    pool = Pool(memory_budget=3 * ONE)
    pool.move_us = 1e6
    first, second = key("a", 0), key("a", 1)
    pool.ask(first)
    pool.ask(second)
    pool.ask(B, times=2)
    pool.ask(first, times=5)
    pool.ask(second, times=5)
    assert {*pool.execs.values()} == {first, second, B}
    pool.ask(C, times=3)
    assert B in pool.execs.values()
    assert C in pool.execs.values()


def test_of_a_topology_the_last_exec_is_worth_more_than_those_before_it():
    """Closing both of one topology counts the second as the only one that it then is."""
    pool = Pool(memory_budget=2 * ONE)
    pool.move_us = 1e6
    first, second = key("a", 0), key("a", 1)
    pool.ask(first)
    pool.ask(second, times=2)
    pool.ask(first, times=20)
    pool.ask(second, times=20)
    assert len(pool.execs) == 2
    pool.ask(key("large", nodes=200), times=10)
    assert len(pool.execs) == 2


# --- an exec of its own --------------------------------------------------------------------------


def test_a_key_gets_an_exec_of_its_own_once_moves_have_cost_as_much():
    pool = Pool()
    pool.move_us = 100 * INSTANTIATE_US / 10
    first, second = key("a", 0), key("a", 1)
    pool.ask(first)
    for _ in range(10):  # ten moves to each cost as much as an exec
        assert pool.ask(second)[-2:] == [Step.RETARGET, Step.LAUNCH]
        assert pool.ask(first) == [Step.RETARGET, Step.LAUNCH]
    assert pool.ask(second) == [Step.INSTANTIATE, Step.LAUNCH]
    assert pool.ask(first) == pool.ask(second) == [Step.LAUNCH]


def test_moves_that_cost_nearly_nothing_never_earn_an_exec():
    pool = Pool()
    pool.move_us = 0.001
    for _ in range(500):
        pool.ask(key("a", 0))
        pool.ask(key("a", 1))
    assert len(pool.execs) == 1


def test_moving_starts_anew_once_a_key_had_an_exec_of_its_own():
    pool = Pool()
    pool.move_us = 1e6
    for which in (0, 1, 0, 1):
        pool.ask(key("a", which))
    assert pool.policy.keys[key("a", 0)].moving_us == 1e6
    assert pool.policy.keys[key("a", 1)].moving_us == 0


@given(st.lists(st.integers(0, 3), max_size=300), st.floats(1, 1000))
@settings(deadline=None)
def test_moving_costs_at_most_twice_what_execs_of_their_own_would(asked, move_us):
    """Without limits: every key pays at most one instantiation and as much again in moves."""
    pool = Pool()
    pool.move_us = move_us
    for which in asked:
        pool.ask(key("a", which))
    own = 100 * INSTANTIATE_US
    for state in pool.policy.keys.values():
        assert state.moving_us < own + move_us
    assert len(pool.execs) <= len({*asked})


def test_without_room_a_key_goes_on_with_the_execs_of_others():
    pool = Pool(max_execs=1)
    pool.move_us = 1e6
    for _ in range(10):
        pool.ask(key("a", 0))
        assert pool.ask(key("a", 1))[-2:] == [Step.RETARGET, Step.LAUNCH]
    assert pool.counts["evictions"] == 0


def test_no_exec_of_its_topology_is_closed_to_make_one():
    pool = Pool(max_execs=2)
    pool.move_us = 1e6
    pool.place(key("a", 0))
    pool.place(key("a", 1))
    for which in (2, 0, 1, 0, 1):
        pool.ask(key("a", which))
    pool.policy.state(key("a", 2)).eager += 50
    assert pool.plan(key("a", 2)).step is Step.RETARGET


def test_a_key_that_moves_have_cost_much_takes_the_place_of_an_exec_nobody_asks_for():
    pool = Pool(max_execs=2)
    pool.move_us = 2 * 100 * INSTANTIATE_US
    pool.ask(B)
    for _ in range(50):
        pool.ask(key("a", 0))
        pool.ask(key("a", 1))
    assert {*pool.execs.values()} == {key("a", 0), key("a", 1)}


# --- how many ------------------------------------------------------------------------------------


def test_there_are_never_more_execs_than_allowed():
    pool = Pool(max_execs=2)
    for round_ in range(20):
        for name in "abcd":
            pool.ask(key(name), times=1 + round_ * (name == "d"))
            assert len(pool.execs) <= 2
    assert pool.exec_of(key("d"))
    assert "2 of 2 execs" in next(
        pool.plan(key(name)).why for name in "abc" if not pool.exec_of(key(name))
    )


def test_graphs_beyond_the_most_are_those_asked_for_least():
    pool = Pool(max_graphs=2, max_execs=1)
    pool.ask(A, times=3)
    keys = [key("a", which) for which in (1, 2, 3)]
    for asked, times in zip(keys, (9, 5, 11), strict=True):
        pool.ask(asked, times=times)
    assert pool.policy.surplus() == []
    assert len(pool.graphs) <= 3  # two, and the one that the exec holds
    assert keys[0] in pool.graphs
    assert keys[2] in pool.graphs


def test_a_graph_that_an_exec_holds_is_not_surplus():
    pool = Pool(max_graphs=1)
    for name in "abcdef":
        assert pool.ask(key(name))[-1] is Step.LAUNCH
    assert len(pool.graphs) == 6


def test_one_off_keys_are_not_captured_once_there_are_enough_graphs():
    pool = Pool(max_graphs=10, max_execs=1)
    for which in range(500):
        pool.ask(key("a", which))
    assert pool.counts[Step.CAPTURE] == 11
    assert pool.ask(key("a", 1000)) == [Reason.KEY_MISS]
    assert "as many graphs as are kept, 10" in pool.plan(key("a", 1000)).why


def test_a_key_asked_for_often_is_captured_in_place_of_another():
    pool = Pool(max_graphs=10, max_execs=1)
    for which in range(50):
        pool.ask(key("a", which))
    assert pool.ask(key("a", 1000), times=5)[-1] is Step.LAUNCH
    assert len(pool.graphs) == 11


def test_equally_wanted_keys_do_not_drive_out_each_others_graphs():
    pool = Pool(max_graphs=3, max_execs=1)
    for request in range(2000):
        pool.ask(key("a", request % 6))
    assert pool.counts[Step.CAPTURE] == 4


def test_warming_up_more_keys_than_graphs_are_kept_keeps_the_first():
    pool = Pool(max_graphs=3, max_execs=1)
    for which in range(10):
        pool.ask(key("a", which), warm=True)
    assert pool.graphs == {key("a", which) for which in range(4)}


def test_keys_without_end_do_not_fill_the_memory():
    pool = Pool(max_graphs=10, max_execs=1, capture_after=1)
    pool.ask(A, times=5)
    for position in range(20_000):
        pool.ask(key("a", position + 1))
        pool.hit(A, 1) if pool.exec_of(A) else pool.ask(A)
    assert len(pool.policy.keys) <= 4096 + 11
    assert A in pool.graphs
    assert pool.policy.keys[A].launches > 19_000


def test_a_key_asked_for_now_and_then_is_remembered_among_keys_without_end():
    pool = Pool(capture_after=5)
    for position in range(20_000):
        pool.ask(key("a", position))
        if position % 3000 == 0 and position < 15_000:
            assert pool.ask(B) == [Reason.KEY_MISS]
    assert pool.ask(B)[-1] is Reason.KEY_MISS or pool.exec_of(B)
    assert B in pool.policy.keys


def test_a_key_whose_graph_is_forgotten_keeps_its_counts():
    pool = Pool()
    pool.policy.captured(A, "a", 100)
    pool.policy.state(A).eager += 3
    pool.policy.forgotten(A)
    assert pool.policy.state(A).eager == 3
    assert pool.plan(A).step is Step.CAPTURE


def test_what_moves_took_is_forgotten_with_the_last_graph_of_a_topology():
    pool = Pool()
    costs = pool.policy.costs
    for which in range(2):
        pool.policy.captured(key("a", which), "a", 100)
    for _ in range(2):
        costs.observe("a", 100, 7, Move.NODES, 1234.0)
    pool.policy.forgotten(key("a", 0))
    assert costs.cost("a", 100, 7, Move.NODES) == 1234
    pool.policy.forgotten(key("a", 1))
    assert costs.cost("a", 100, 7, Move.NODES) != 1234


# --- measured bytes ------------------------------------------------------------------------------


def test_measuring_more_than_the_budget_closes_the_others_first():
    pool = Pool(memory_budget=2 * ONE)
    pool.ask(A)
    pool.ask(B)
    pool.hit(A, 50)
    pool.place(C)
    assert pool.policy.over_budget(pool.idle, 3) == (2,)
    pool.busy = {2}
    assert pool.policy.over_budget(pool.idle, 3) == (1,)
    pool.busy = {1, 2}
    assert pool.policy.over_budget(pool.idle, 3) == (3,)
    pool.busy = {1, 2, 3}
    assert pool.policy.over_budget(pool.idle) == ()


def test_the_newest_is_closed_when_closing_all_others_is_not_enough():
    pool = Pool(memory_budget=2 * ONE)
    pool.ask(A)
    large = key("large", nodes=300)
    pool.place(large)
    assert pool.policy.over_budget(pool.idle, 2) == (2,)  # and then A need not go


def test_arenas_alone_over_the_budget_close_all_that_is_idle():
    pool = Pool(memory_budget=4 * ONE)
    for each in (A, B, C):
        pool.ask(each)
    pool.policy.arena_bytes = 5 * ONE
    pool.busy = {2}
    assert sorted(pool.policy.over_budget(pool.idle)) == [1, 3]
    assert pool.plan(key("d")).step is Step.CAPTURE
    pool.busy = set()
    assert pool.ask(key("d"), times=50)[-1] is Reason.BUDGET


def test_without_bytes_over_the_budget_nothing_is_closed():
    pool = Pool(memory_budget=2 * ONE)
    pool.ask(A)
    assert pool.policy.over_budget(pool.idle, 1) == ()


def test_an_exec_that_showed_as_nothing_counts_once_its_memory_shows():
    """CUDA takes memory in pieces: the first exec had room in one, the second needed another."""
    policy = PoolPolicy()
    policy.captured(A, "a", 100)
    policy.captured(B, "b", 300)
    policy.instantiated(1, A, 0, 1.0)
    assert policy.exec_bytes == 0
    policy.instantiated(2, B, 2 << 20, 1.0)
    assert policy.exec_bytes == 2 << 20
    assert policy.held_bytes() == {A: 1 << 19, B: 3 << 19}


def test_memory_that_others_gave_back_meanwhile_is_not_negative():
    policy = PoolPolicy()
    policy.captured(A, "a", 100)
    policy.instantiated(1, A, -(5 << 20), 1.0)
    assert policy.exec_bytes == 0
    policy.closed(1, -7)
    assert policy.exec_bytes == 0


@pytest.mark.parametrize("kept", [True, False], ids=["kept by CUDA", "given back"])
def test_execs_in_memory_of_closed_ones_teach_nothing_wrong(kept):
    """Whether or not the memory of a closed exec shows as free, there is room for as many."""
    pool = Pool(memory_budget=10 * ONE)
    for which in range(10):
        pool.place(key(which))
    for which in range(10, 300):
        exec_id = min(pool.execs)
        pool.execs.pop(exec_id)
        pool.policy.closed(exec_id, 0 if kept else ONE)
        new = key(which)
        pool.policy.captured(new, which, 100)
        assert pool.plan(new).step is Step.INSTANTIATE
        pool.made += 1
        pool.execs[pool.made] = new
        pool.policy.instantiated(pool.made, new, 0 if kept else ONE, 1.0)
        assert pool.policy.exec_bytes == 10 * ONE
        pool.policy.captured(C, "c", 100)
        assert not pool.plan(C).close
        assert pool.plan(C).reason is Reason.BUDGET


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 20)), max_size=200),
    st.integers(4, 12),
    st.booleans(),
)
@settings(deadline=None)
def test_memory_taken_in_pieces_stays_within_the_budget(requests, pieces, keeps):
    """CUDA takes pieces, and keeps those of closed execs or gives back what it need not have."""
    piece = 100 * ONE
    pool = Pool(memory_budget=pieces * piece)
    policy, taken = pool.policy, 0

    def shrank():
        nonlocal taken
        nodes = sum(nodes for _, nodes, _ in pool.execs.values())
        needed = -(-nodes * NODE_BYTES // piece) * piece
        before, taken = taken, max(needed, taken) if keeps else needed
        return taken - before

    def close(exec_id):
        del pool.execs[exec_id]
        policy.closed(exec_id, -shrank())

    for which, tens in requests:
        # Each topology keeps the size of its first request.
        asked = next(
            (known for known in pool.graphs if known[0] == which), key(which, nodes=1000 * tens)
        )
        for _ in range(10):
            decision = pool.plan(asked)
            for exec_id in decision.close:
                close(exec_id)
            if decision.step is Step.CAPTURE:
                pool.graphs.add(asked)
                policy.captured(asked, which, asked[1])
            elif decision.step is Step.INSTANTIATE:
                pool.made += 1
                pool.execs[pool.made] = asked
                policy.instantiated(pool.made, asked, shrank(), asked[1] * INSTANTIATE_US)
                for exec_id in policy.over_budget(pool.idle, pool.made):
                    close(exec_id)
                    if exec_id == pool.made:
                        policy.refused()
            else:
                break
        else:
            raise AssertionError("no end of steps")
        policy.requests += 1
        policy.state(asked).eager += 1
        assert policy.exec_bytes == taken <= policy.memory_budget


def test_where_closing_gives_nothing_back_execs_are_not_closed_for_arenas():
    pool = Pool(memory_budget=2 * ONE)
    pool.place(A)
    pool.place(B)
    del pool.execs[1]
    pool.policy.closed(1, 0)
    pool.policy.arena_bytes = ONE
    assert pool.policy.over_budget(pool.idle) == ()
    assert pool.policy.over_budget(pool.idle, 2) == (2,)
    assert pool.ask(C, growth=1, times=20) == [Reason.BUDGET]


def test_a_graph_of_no_nodes_is_an_exec_as_well():
    pool = Pool(memory_budget=ONE)
    for which in range(3):
        assert pool.ask(key(f"nothing {which}", nodes=0))[-1] is Step.LAUNCH
    pool.ask(A)
    pool.ask(B, times=50)
    assert pool.exec_of(B)


# --- deciding changes nothing --------------------------------------------------------------------

KEYS = [key(name, which, nodes) for name, nodes in (("a", 50), ("b", 120)) for which in range(3)]
KEYS += [key("c", 0, 400), key("d", 0, 10)]


@given(
    st.lists(st.tuples(st.sampled_from(KEYS), st.integers(1, 4000)), max_size=60),
    st.lists(st.sampled_from([*KEYS, key("never")]), min_size=1, max_size=5),
)
@settings(deadline=None)
def test_a_pool_that_is_asked_for_plans_does_the_same_as_one_that_is_not(requests, planned):
    options = {"memory_budget": 500 * NODE_BYTES, "max_graphs": 4}
    asked, left_alone = Pool(**options), Pool(**options)
    for which, hits in requests:
        for each in planned:
            assert asked.plan(each, 100) == asked.plan(each, 100)
            asked.plan(each, warm=True)
        assert asked.ask(which) == left_alone.ask(which)
        if asked.exec_of(which):
            asked.hit(which, hits)
            left_alone.hit(which, hits)
    assert asked.execs == left_alone.execs
    assert [*asked.policy.keys] == [*left_alone.policy.keys]


# --- anything may happen -------------------------------------------------------------------------


class AnyPool(RuleBasedStateMachine):
    """Random requests against a model pool, whose execs take exactly what is measured."""

    def __init__(self):
        super().__init__()
        self.pool = None

    @precondition(lambda self: self.pool is None)
    @rule(
        budget=st.none() | st.integers(1, 800 * NODE_BYTES),
        max_execs=st.none() | st.integers(1, 4),
        max_graphs=st.integers(1, 6),
        capture_after=st.none() | st.integers(0, 2),
        move_us=st.sampled_from([1.0, 50.0, 1e4]),
    )
    def open(self, budget, max_execs, max_graphs, capture_after, move_us):
        self.pool = Pool(
            memory_budget=budget,
            max_execs=max_execs,
            max_graphs=max_graphs,
            capture_after=capture_after,
        )
        self.pool.move_us = move_us

    @precondition(lambda self: self.pool is not None)
    @rule(
        which=st.sampled_from(KEYS),
        growth=st.sampled_from([0, 0, 0, 10_000]),
        warm=st.booleans(),
        times=st.integers(1, 8),
    )
    def ask(self, which, growth, warm, times):
        if which in self.pool.graphs:
            growth = 0
        self.pool.ask(which, growth=growth, warm=warm, times=1 if growth else times)

    @precondition(lambda self: self.pool and self.pool.execs)
    @rule(data=st.data(), times=st.integers(1, 30_000))
    def hit(self, data, times):
        self.pool.hit(data.draw(st.sampled_from([*self.pool.execs.values()])), times)

    @precondition(lambda self: self.pool and self.pool.execs)
    @rule(data=st.data())
    def fly(self, data):
        self.pool.busy = data.draw(st.sets(st.sampled_from([*self.pool.execs])))

    @precondition(lambda self: self.pool is not None)
    @rule(failing=st.sets(st.sampled_from(KEYS)), seconds=st.floats(0, 1000))
    def wait(self, failing, seconds):
        self.pool.failing = failing
        self.pool.now += seconds

    @precondition(lambda self: self.pool and self.pool.graphs)
    @rule(data=st.data(), ineligible=st.booleans())
    def give_up(self, data, ineligible):
        which = data.draw(st.sampled_from(sorted(self.pool.graphs)))
        exec_id = self.pool.exec_of(which)
        if exec_id is not None:
            self.pool.close(exec_id)
        self.pool.forget(which)
        self.pool.policy.state(which).ineligible = "slow" if ineligible else ""

    @precondition(lambda self: self.pool is not None)
    @invariant()
    def it_keeps_its_limits(self):
        pool, policy = self.pool, self.pool.policy
        exact = sum(nodes for _, nodes, _ in pool.execs.values()) * NODE_BYTES
        assert policy.exec_bytes == exact
        if policy.memory_budget is not None:
            assert policy.arena_bytes + exact <= policy.memory_budget
        assert len(pool.execs) <= (policy.max_execs or len(KEYS))
        assert {*policy.held_bytes()} == {*pool.execs.values()}
        assert len({*pool.execs.values()}) == len(pool.execs)
        assert {*pool.execs.values()} <= pool.graphs

    @precondition(lambda self: self.pool is not None)
    @invariant()
    def it_launches_what_an_exec_holds(self):
        held = {which: exec_id for exec_id, which in self.pool.execs.items()}
        for which in KEYS:
            decision = self.pool.plan(which)
            launched = decision.exec_id if decision.step is Step.LAUNCH else None
            if not self.pool.policy.keys.get(which) or decision.reason is None:
                assert launched == held.get(which)


TestAnyPool = AnyPool.TestCase
TestAnyPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
